"""What a launcher was told: the command lines of `accelerate launch` and of `torchrun`.

`accelerate launch --num_machines 2` without GPUs starts one process a machine and tells it MASTER_ADDR and
MASTER_PORT, but neither how many machines there are nor which one this is (prepare_simple_launcher_cmd_env in
accelerate/utils/launch.py). So both are read where they were told: on the command line of the process that started
ours, and in the file that `accelerate config` writes (accelerate_config.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from lowmem_seq.errors import UsageError

Launcher = Literal["accelerate", "torchrun"]
BY_SCRIPT: dict[str, Launcher] = {
    "accelerate": "accelerate",
    "accelerate-launch": "accelerate",
    "torchrun": "torchrun",
}
BY_MODULE: dict[str, Launcher] = {
    "accelerate.commands.accelerate_cli": "accelerate",
    "accelerate.commands.launch": "accelerate",
    "torch.distributed.run": "torchrun",
    "torch.distributed.launch": "torchrun",
}
WITH_SUBCOMMAND = ("accelerate", "accelerate.commands.accelerate_cli")
FLAGS: dict[Launcher, frozenset[str]] = {
    "accelerate": frozenset(
        {
            *(
                "cpu",
                "multi_gpu",
                "tpu",
                "same_network",
                "module",
                "m",
                "no_python",
                "quiet",
                "q",
                "debug",
                "help",
                "h",
            ),
            *("use_deepspeed", "use_fsdp", "use_megatron_lm", "use_parallelism_config", "enable_cpu_affinity"),
            *("dynamo_use_dynamic", "dynamo_use_fullgraph", "dynamo_use_regional_compilation", "downcast_bf16"),
            *("tpu_cluster", "no_tpu_cluster", "tpu_use_sudo", "fp8_use_autocast_during_eval"),
        }
    ),
    "torchrun": frozenset(
        {"module", "m", "no_python", "run_path", "standalone", "use_env", "virtual_local_rank", "help", "h"}
    ),
}
"""The options without a value, so that the script can be told from an option's value; tests compare them with the
parsers of the packages that are installed."""
TORCHRUN_OPTIONS = (
    "nnodes",
    "nproc_per_node",
    "node_rank",
    "master_addr",
    "master_port",
    "rdzv_endpoint",
    "rdzv_backend",
)
"""torchrun takes an option's beginning for the option, as argparse does by default; accelerate does not."""
INTERPRETER = re.compile(r"(python|pypy)[\d.]*w?")
INTERPRETER_VALUES = ("W", "X")
DEFAULT_PORT = 29500
"""What torch and accelerate take where no port is told, and so do we."""

Key = Literal[
    "machines", "processes", "local_processes", "machine_rank", "process_rank", "local_rank", "address", "port"
]


class Told(NamedTuple):
    """A value, and where it was found, in words for a message."""

    value: Any
    where: str


Asked = dict[Key, Told]


@dataclass(frozen=True)
class Command:
    """A launcher's command line, up to the script that it starts.

    Args:
        launcher: which one.
        options: by name with underscores, without the leading dashes; a flag's value is empty.
    """

    launcher: Launcher
    options: Mapping[str, str]


def read_command(words: tuple[str, ...]) -> Command | None:
    """Return what a launcher's process was told, None when these are not the words of one."""
    started = _program(words)
    if started is None:
        return None
    program, rest = started
    launcher = BY_MODULE.get(program) or BY_SCRIPT.get(program)
    if launcher is None:
        return None
    if program in WITH_SUBCOMMAND:
        if rest[:1] != ("launch",):
            return None
        rest = rest[1:]
    return Command(launcher, dict(_options(launcher, rest)))


def _program(words: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """Return the script's or module's name that a process runs, and the words after it."""
    if not words or not INTERPRETER.fullmatch(_script_name(words[0])):
        return (_script_name(words[0]), words[1:]) if words else None
    index = 1
    while index < len(words) and (word := words[index]).startswith("-"):
        index += 1
        if word.startswith("--"):
            continue
        for place, letter in enumerate(
            word[1:], start=2
        ):  # letters may stand together, and before a value: -um name
            value = word[place:]
            if letter == "c":
                return None
            if letter == "m":
                following = words[index:] if value else words[index + 1 :]
                name = value or (words[index] if index < len(words) else "")
                return name, following
            if letter in INTERPRETER_VALUES:
                index += not value
                break
    return (_script_name(words[index]), words[index + 1 :]) if index < len(words) else None


def _script_name(path: str) -> str:
    """Return a program's bare name: Windows starts `accelerate.exe` or `accelerate-script.py`."""
    name = re.split(r"[\\/]", path)[-1]
    return re.sub(r"(\.exe|-script\.pyw?|\.pyw?)$", "", name.lower())


def _options(launcher: Launcher, words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the options in front of the script: both parsers leave everything behind it to the script."""
    index = 0
    while index < len(words) and (word := words[index]).startswith("-") and word not in ("-", "--"):
        index += 1
        written, equals, value = word.partition("=")
        name = _full_name(launcher, written.lstrip("-").replace("-", "_"))
        if equals:
            yield name, value
        elif not written.startswith("--") and len(name) > 1:  # -r3
            yield name[0], word[2:]
        elif name in FLAGS[launcher] or index == len(words) or words[index].startswith("-"):
            yield name, ""  # also a flag of a later version that stands in front of another option
        else:
            yield name, words[index]
            index += 1


def _full_name(launcher: Launcher, name: str) -> str:
    if launcher != "torchrun" or len(name) == 1:
        return name
    known = (*TORCHRUN_OPTIONS, *FLAGS["torchrun"])
    begun = [option for option in known if len(option) > 1 and option.startswith(name)]
    return name if name in known or len(begun) != 1 else begun[0]


def asked_by_command(command: Command) -> Asked:
    """Return what a command line says about machines and processes, and nothing that it leaves to a default."""
    if command.launcher == "torchrun":
        return _asked_of_torchrun(command.options)
    names: dict[str, Key] = {
        "num_machines": "machines",
        "num_processes": "processes",
        "main_process_port": "port",
        "main_process_ip": "address",
        "machine_rank": "machine_rank",
    }
    if command.options.get("rdzv_backend", "static") != "static":
        del names["machine_rank"]  # it is left out then: who comes first is 0
    asked: Asked = {}
    for name, key in names.items():
        if text := command.options.get(name):
            asked[key] = Told(text if key == "address" else int(text), f"--{name} of accelerate launch")
    return asked


def _asked_of_torchrun(options: Mapping[str, str]) -> Asked:
    asked: Asked = {}

    def note(key: Key, value: int | str, name: str) -> None:
        asked[key] = Told(value, f"--{name} of torchrun")

    least, _, most = options.get("nnodes", "").partition(":")
    if least and most in ("", least):  # of 1:3 only the environment knows what came of it
        note("machines", int(least), "nnodes")
    if options.get("nproc_per_node", "").isdecimal():  # else a word: gpu, cpu, auto
        note("local_processes", int(options["nproc_per_node"]), "nproc_per_node")
    if options.get("rdzv_backend", "static") == "static":
        for name, key in (("node_rank", "machine_rank"), ("master_port", "port")):
            if options.get(name):
                note(key, int(options[name]), name)  # type: ignore[arg-type]
        if options.get("master_addr"):
            note("address", options["master_addr"].strip("[]"), "master_addr")
    if endpoint := options.get("rdzv_endpoint"):
        address, port = split_endpoint(endpoint)
        note("address", address, "rdzv_endpoint")
        if port is not None:
            note("port", port, "rdzv_endpoint")
    return asked


def split_endpoint(text: str) -> tuple[str, int | None]:
    """Return the address and the port of `192.168.1.5:29500`, `[fe80::1]:29500`, `name:29500`, or one without port.

    Raises:
        UsageError: it is none of these, or the port is not one.
    """
    bare = text.strip()
    found = re.fullmatch(r"\[([^\[\]]+)\](?::(\d+))?|([^\[\]:]+)(?::(\d+))?", bare)
    if found is None:
        if bare.count(":") > 1 and not set("[]") & set(bare):  # an IPv6 address alone
            return bare, None
        raise UsageError(
            f"'{text}' is no address with a port.", "give it like 192.168.1.5:29500 or [fe80::1]:29500"
        )
    port = found[2] or found[4]
    return found[1] or found[3], read_port(port, text) if port else None


def read_port(text: str | int, where: str) -> int:
    """Return a port that can be dialled.

    Raises:
        UsageError: it is not a number from 1 to 65535.
    """
    if str(text).isdecimal() and 0 < int(text) < 2**16:
        return int(text)
    raise UsageError(f"{where}: '{text}' is no port.", f"give a number from 1 to 65535, for example {DEFAULT_PORT}")
