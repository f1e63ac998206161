from __future__ import annotations

from pathlib import Path

import pytest

from lowmem_seq import __version__
from lowmem_seq.runs.folder import RunFolder
from tests.builders import end, start_python, tiny_config
from tests.cli.conftest import CommandLine, Ended

IMPORTED = """
import sys
from lowmem_seq.cli.main import main

sys.argv[0] = "lowmem-seq"
try:
    main()
except SystemExit as end:
    print("code", end.code or 0)
print("imported", *sorted({"torch", "torchvision", "accelerate", "numpy", "PIL", "safetensors"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["plan", "--help"],
        ["data", "--help"],
        ["doctor", "--help"],
        ["train", "no-such-preset"],
        ["report", "RUN"],
        ["report", "RUN", "--json"],
    ],
    ids=" ".join,
)
def test_what_must_answer_at_once_imports_nothing_large(arguments: list[str], run: RunFolder) -> None:
    code, out, _ = end(start_python(IMPORTED, *(str(run.path) if word == "RUN" else word for word in arguments)))
    assert code == 0
    assert out.splitlines()[-1] == "imported"
    if "no-such-preset" not in arguments:
        assert "code 0" in out or arguments[0] == "report"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["train"],
        ["plan"],
        ["resume"],
        ["report"],
        ["doctor"],
        ["data"],
        ["data", "list"],
        ["data", "add"],
        ["data", "show"],
    ],
    ids=lambda arguments: " ".join(arguments) or "all",
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself(command_line: CommandLine, arguments: list[str], flag: str) -> None:
    ended = command_line(*arguments, flag)
    assert ended.code == 0
    assert ended.out.startswith("Usage: ")
    assert " ".join(arguments or ["COMMAND [ARGS]"]) in ended.out.splitlines()[0]
    assert ended.err == ""


def test_the_version_is_the_package_s(command_line: CommandLine) -> None:
    assert command_line("--version") == (0, f"lowmem-seq {__version__}\n", "")


def assert_refused(ended: Ended, code: int, message: str, hint: str) -> None:
    """The house's form: what happened, an empty line, what to do; and no traceback."""
    assert ended.code == code
    told, empty, last = ended.err.rpartition("\n\nhint: ")
    assert told.startswith("error: ")
    assert empty
    assert message in told
    assert hint in last
    assert last.endswith("\n")
    assert last.count("\n") == 1
    assert "Traceback" not in ended.err + ended.out


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["plan", "smal"], "there is no preset 'smal'.", "did you mean 'small'?"),
        (["train", "smal"], "there is no preset 'smal'.", "did you mean 'small'?"),
        (["train", "no.yaml"], "there is no file no.yaml.", "a YAML file"),
        (["train", "tiny", "--max-ram", "6"], "'6' has no unit of memory.", "6GB (10^9 bytes)"),
        (["train", "tiny", "--max-ram", "6GX"], "'GX' is not a unit of memory.", "6GB (10^9 bytes)"),
        (["train", "tiny", "--set", "seed"], "--set 'seed' is no assignment.", "--set recipe."),
        (
            ["train", "tiny", "--set", "recipe.epoch=3"],
            "there is no setting 'recipe.epoch'",
            "did you mean 'epochs'?",
        ),
        (["train", "tiny", "--set", "epochs=3"], "there is no setting 'epochs'", "did you mean 'recipe.epochs'?"),
        (["train", "tiny", "--set", "data.seed=3"], "there is no setting 'data.seed'", "did you mean 'seed'?"),
        (["train", "tiny", "--epochs", "0"], "recipe.epochs: ", "config"),
        (["train", "tiny", "--device", "tpu"], "machine.device: ", "config"),
        (["train", "tiny", "--checkpoint-every", "200"], "'200' is neither steps nor a time.", "200steps"),
        (["train", "tiny", "--micro-batch", "many"], "--micro-batch 'many' is no number", "--micro-batch 32"),
        (["train", "tiny", "--micro-batch", "0"], "machine.micro_batch: ", "config"),
        (["resume", "nowhere"], "there is no folder nowhere.", "lowmem-seq report"),
        (["report", "nowhere"], "there is no run in nowhere.", "lowmem-seq report"),
        (["report"], "there is no run under runs.", "lowmem-seq train small --data shapes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_ends_with_2_and_a_hint(
    command_line: CommandLine, arguments: list[str], message: str, hint: str
) -> None:
    assert_refused(command_line(*arguments), 2, message, hint)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["frob"], "No such command 'frob'.", "lowmem-seq --help"),
        (["trian"], "No such command 'trian'.", "did you mean 'train'? lowmem-seq --help"),
        (["data", "lst"], "No such command 'lst'.", "did you mean 'list'? lowmem-seq data --help"),
        (["train", "tiny", "--epoch", "3"], "No such option: --epoch", "did you mean '--epochs'? lowmem-seq train"),
        (["plan", "tiny", "--max_ram=3GB"], "No such option: --max_ram", "did you mean '--max-ram'?"),
        (["train"], "Missing argument", "lowmem-seq train --help"),
        (["train", "tiny", "--epochs", "many"], "Invalid value for '--epochs'", "lowmem-seq train --help"),
        (["train", "tiny", "--frob"], "No such option: --frob", "lowmem-seq train --help"),
        (["data", "frob"], "No such command 'frob'", "lowmem-seq data --help"),
    ],
)
def test_what_the_parser_refuses_ends_with_2_and_a_hint(
    command_line: CommandLine, arguments: list[str], message: str, hint: str
) -> None:
    assert_refused(command_line(*arguments), 2, message, hint)


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_nothing_typed_shows_the_help_and_no_error(command_line: CommandLine, arguments: list[str]) -> None:
    ended = command_line(*arguments)
    assert ended.code == 0
    assert "Usage: lowmem-seq" in ended.out
    assert "error" not in ended.err


@pytest.mark.parametrize("command", ["resume", "status", "verify", "report"])
def test_a_run_that_is_nearly_named_is_suggested(command_line: CommandLine, command: str) -> None:
    Path("runs/my small").mkdir(parents=True)
    Path("runs/my small/config.yaml").touch()
    ended = command_line(command, "runs/my-small")
    assert_refused(ended, 2, "runs/my-small", "did you mean 'runs/my small'?")


def test_a_run_folder_that_is_not_empty_is_refused(command_line: CommandLine, run: RunFolder) -> None:
    before = sorted(path.name for path in run.path.iterdir())
    ended = command_line("train", "tiny", "--run-dir", str(run.path))
    assert_refused(ended, 2, f"the run folder {run.path} is not empty.", f"lowmem-seq resume {run.path}")
    assert sorted(path.name for path in run.path.iterdir()) == before


def test_a_run_that_another_process_writes_is_locked(command_line: CommandLine, run: RunFolder) -> None:
    with run.locked():
        ended = command_line("resume", str(run.path))
    assert_refused(ended, 9, f"{run.path} is being written by another process.", "Ctrl-C")
    assert run.config == tiny_config()


@pytest.mark.parametrize("command", ["train", "resume"])
@pytest.mark.parametrize(
    ("variables", "said", "hint"),
    [
        ({"MASTER_ADDR": "10.0.0.1"}, "LOWMEM_SEQ_TOKEN is not set", "join code"),
        ({"WORLD_SIZE": "2"}, "not all of RANK, LOCAL_RANK and LOCAL_WORLD_SIZE are set", "--join IP:PORT"),
        ({"WORLD_SIZE": "2", "RANK": "x"}, "RANK is 'x', which is no number", "unset RANK"),
    ],
)
def test_a_launch_of_several_that_can_t_be_is_refused(
    command_line: CommandLine,
    run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    variables: dict[str, str],
    said: str,
    hint: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ended = command_line(command, "tiny" if command == "train" else str(run.path))
    assert_refused(ended, 2, said, hint)
    assert list(Path.cwd().iterdir()) == []


def test_debug_shows_the_traceback(command_line: CommandLine) -> None:
    code, _, err = end(start_python(IMPORTED, "--debug", "train", "smal"))
    assert code == 1
    assert "Traceback" in err
    assert "there is no preset 'smal'" in err
