"""The file that `accelerate config` writes: where it is, and what it says about machines and processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from lowmem_seq.cluster.launchers import Asked, Command, Key, Told
from lowmem_seq.errors import UsageError


@dataclass(frozen=True)
class ConfigFile:
    """What accelerate's config file says.

    Args:
        asked: see `Asked`.
        cpu: `use_cpu`.
        multi_gpu: the file is for several GPUs.
    """

    asked: Asked
    cpu: bool = False
    multi_gpu: bool = False


def config_path(environment: Mapping[str, str], home: Path, command: Command | None) -> Path | None:
    """Return accelerate's config file: the one named, or the usual one where it is there.

    accelerate itself (1.15) knows no ACCELERATE_CONFIG_FILE, and leaves its usual file out of a launch with --cpu.
    A user who set either for two machines asked for two machines all the same: leaving it out would train twice.
    """
    named = (command.options.get("config_file") if command else None) or environment.get("ACCELERATE_CONFIG_FILE")
    if named:
        return Path(named)
    cache = environment.get("XDG_CACHE_HOME") or str(home / ".cache")
    folder = environment.get("HF_HOME") or str(_under(home, cache) / "huggingface")
    usual = _under(home, folder) / "accelerate" / "default_config.yaml"
    return usual if usual.is_file() else None


def _under(home: Path, path: str) -> Path:
    """Return a path with a leading ~ replaced; os.path.expanduser would ask the system for `home`."""
    return home / path[2:] if path.startswith(("~/", "~\\")) else home if path == "~" else Path(path)


def read_config(path: Path) -> ConfigFile:
    """Read accelerate's config file, YAML or JSON (which is YAML as well).

    Raises:
        UsageError: it can't be read, or a number in it is none.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise _bad_config(path, f"can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise _bad_config(path, "holds no settings.")
    if values.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        return ConfigFile({})
    asked: Asked = {}
    keys: tuple[tuple[str, Key], ...] = (
        ("num_machines", "machines"),
        ("num_processes", "processes"),
        ("machine_rank", "machine_rank"),
        ("main_process_port", "port"),
    )
    for name, key in keys:
        value = values.get(name)
        if value is None or value == -1:  # -1: to be given on the command line
            continue
        if isinstance(value, bool) or not str(value).isdecimal():
            raise _bad_config(path, f"has {name} {value!r}, which is no number.")
        asked[key] = Told(int(value), f"{name} in {path}")
    if values.get("main_process_ip"):
        asked["address"] = Told(str(values["main_process_ip"]), f"main_process_ip in {path}")
    kind = str(values.get("distributed_type"))
    return ConfigFile(asked, cpu=bool(values.get("use_cpu")), multi_gpu=kind == "MULTI_GPU")


def _bad_config(path: Path, told: str) -> UsageError:
    return UsageError(
        f"accelerate's config file {path} {told}",
        "write it anew (accelerate config), or start without a launcher, by --host and --join",
    )
