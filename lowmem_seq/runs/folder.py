"""A run is a folder: its names, how one is made, opened and locked."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lowmem_seq.config import RunConfig, load_config
from lowmem_seq.errors import RunLockedError, UsageError
from lowmem_seq.files import read_json, write_json, write_text
from lowmem_seq.runs.environment import describe_environment
from lowmem_seq.runs.events import EventLog


class RunFolder:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.environment_file = path / "environment.json"
        self.plan_file = path / "plan.json"
        self.data_file = path / "data.json"
        self.checkpoints = path / "checkpoints"
        self.weights_file = path / "model.safetensors"
        self.log_file = path / "trainer.log"
        self.events = EventLog(path / "events.jsonl")

    @property
    def config(self) -> RunConfig:
        """The run's settings, read from its folder."""
        return load_config(self.config_file)

    def write_config(self, config: RunConfig) -> None:
        """Replace the run's settings."""
        write_text(self.config_file, config.to_yaml())

    def read_json(self, path: Path) -> dict[str, Any] | None:
        """Return the JSON object in a file of the run, or None where there is no such file yet.

        Raises:
            UsageError: the file is there, and is no JSON object.
        """
        try:
            value = read_json(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} can't be read: {error}", "restore it from a copy of the run") from error
        if not isinstance(value, dict):
            raise UsageError(f"{path} holds no JSON object.", "restore it from a copy of the run")
        return value

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the system lets go of it when the process ends, however it ends.

        Raises:
            RunLockedError: another process holds it.
        """
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunLockedError(
                f"{self.path} is being written by another process.",
                "wait for it, or stop it with Ctrl-C in its own terminal",
            ) from None
        try:
            yield
        finally:
            lock.release()

    @property
    def resume_command(self) -> str:
        """What goes on with this run, to be pasted into a shell."""
        path = str(self.path)
        if sys.platform == "win32":
            return f'lowmem-seq resume "{path}"' if " " in path else f"lowmem-seq resume {path}"
        return f"lowmem-seq resume {shlex.quote(path)}"

    def is_locked(self) -> bool:
        """Whether a process holds the run now."""
        if not (self.path / "lock").exists():
            return False
        try:
            with self.locked():
                return False
        except RunLockedError:
            return True
        except OSError:  # a copy on a disk that can't be written: nobody trains there
            return False


def default_run_path(name: str, root: Path) -> Path:
    """Return `root/NAME-DATE-TIME`, with a number behind it where that is taken."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = root / stem
    number = 2
    while path.exists():
        path = root / f"{stem}-{number}"
        number += 1
    return path


def create_run(path: Path, config: RunConfig) -> RunFolder:
    """Make a run folder that holds its settings and its environment.

    Raises:
        UsageError: the folder is there already and not empty, or can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        taken = any(path.iterdir())
    except OSError as error:
        raise UsageError(
            f"the run folder {path} can't be made: {error.strerror}.", "choose another: --run-dir DIR"
        ) from error
    run = RunFolder(path)
    if taken:
        hint = run.resume_command if run.config_file.exists() else "choose another: --run-dir DIR"
        raise UsageError(f"the run folder {path} is not empty.", hint)
    write_json(run.environment_file, describe_environment())
    run.write_config(config)
    return run


def open_run(path: Path) -> RunFolder:
    """Return an existing run.

    Raises:
        UsageError: there is no run in `path`, or its settings are not valid.
    """
    run = RunFolder(path)
    if not run.config_file.is_file():
        what = "there is no folder" if not path.exists() else "there is no run in"
        raise UsageError(f"{what} {path}.", "lowmem-seq report   lists the runs under ./runs")
    load_config(run.config_file)
    return run
