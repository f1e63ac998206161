"""A run is a folder: its names, how one is made, opened and locked."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from lowmem_seq.config import RunConfig, load_config
from lowmem_seq.disk import is_link
from lowmem_seq.errors import RunLockedError, UsageError, closest
from lowmem_seq.files import (
    copy_file,
    is_temporary,
    make_folder,
    read_json,
    remove_leftover,
    sha256_of,
    write_json,
    write_text,
)
from lowmem_seq.runs.environment import describe_environment
from lowmem_seq.runs.events import EventLog

RANKS = "ranks"
"""Folder, within a run's, in which the processes that train it together in engine mode keep what is their own."""
SECONDS_FOR_A_READER = 1.0
SECONDS_FOR_AN_INSTANT = 0.05
"""What a reader waits for another one that looks at the same moment; a run that is held stays held for longer."""
WITHOUT_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})
"""What a disk says that can't lock files: some network disks, and some that a phone or a virtual machine shares."""


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
        self.initial_file = path / "initial.safetensors"
        self.predictions_file = path / "predictions.safetensors"
        self.log_file = path / "trainer.log"
        self.page_file = path / "report.html"
        self.logs = path / "logs"
        self.events = EventLog(path / "events.jsonl")
        self.lock_file = path / "lock"
        self._writer_lock_file = path / "lock-writer"

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

        So there are no stale locks: a lock file that is left behind, by a dead process or from before a reboot,
        holds nothing, and no process id is compared. A reader that looks whether the run is held holds it for an
        instant; hence the short wait.

        Raises:
            RunLockedError: another process holds it.
            UsageError: its disk knows no locks, or the folder can't be written.
        """
        lock = _lock(self.lock_file)
        try:
            _acquire(lock, SECONDS_FOR_A_READER)
        except Timeout:
            raise RunLockedError(
                f"{self.path} is being written by another process{self._told_holder()}.",
                "wait for it, or stop it with Ctrl-C in its own terminal",
            ) from None
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def writing(self, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the run's writer's lock, which a trainer has beside its supervisor's.

        A trainer whose supervisor died saves and ends by itself; until then nobody else may write.

        Args:
            wait_seconds: how long to wait for another trainer to end.

        Raises:
            RunLockedError: another trainer is still there.
            UsageError: as for `locked`.
        """
        lock = _lock(self._writer_lock_file)
        try:
            _acquire(lock, max(wait_seconds, SECONDS_FOR_A_READER))
        except Timeout:
            raise RunLockedError(
                f"a trainer of an earlier session of {self.path} is still running.",
                "wait until it has saved and ended, and try again",
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _told_holder(self) -> str:
        holders = [event.get("supervisor_pid") for event in self.events if event["event"] == "session_opened"]
        return f" (process {holders[-1]})" if holders and isinstance(holders[-1], int) else ""

    def has_a_writer(self) -> bool:
        """Whether a trainer is there, with its supervisor or without."""
        return self._is_held(self._writer_lock_file)

    def forget_plan(self) -> None:
        """Delete the plan, so that the next session measures a new one."""
        remove_leftover(self.plan_file)

    def remove_leftovers(self) -> None:
        """Delete what killed writes left beside the run's files; only who holds the run may do so."""
        for path in self.path.iterdir():
            if is_temporary(path):
                remove_leftover(path)

    def refuse_links(self) -> None:
        """See that everything written in a run lies in its folder.

        Raises:
            UsageError: something in it is a link, which could lead a write out of the folder, or a pipe, at which
                a read waits for ever.
        """
        for folder, folders, names in os.walk(self.path):
            for path in (Path(folder, name) for name in (*folders, *names)):
                if is_link(path):
                    raise UsageError(
                        f"{path} is a link, and a run's files must lie in its own folder.",
                        "copy the run with its links resolved: cp -rL RUN_DIR COPY",
                    )
                if path.exists() and not path.is_file() and not path.is_dir():
                    raise UsageError(
                        f"{path} is a pipe or a device.", "remove it; a run has files and folders only"
                    )

    @property
    def resume_command(self) -> str:
        """What goes on with this run, to be pasted into a shell."""
        path = str(self.path)
        if sys.platform == "win32":
            quoted = f'"{path}"' if " " in path else path
        else:
            quoted = shlex.quote(path)
        return f"lowmem-seq resume {quoted}{self._told_part()}"

    def _told_part(self) -> str:
        """Return the flags by which a run among several machines goes on with them (cluster/membership.py)."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            part = read_json(self.path / "cluster" / "membership.json")
            if part["role"] == "host":
                return f" --host --port {int(part['port'])}"
            if part["role"] == "member":
                address = str(part["address"])
                told = f"[{address}]" if ":" in address else address
                return f" --join {shlex.quote(told)}:{int(part['port'])}"
        return ""

    def is_locked(self) -> bool:
        """Whether a process holds the run now."""
        return any(self._is_held(lock_file) for lock_file in (self.lock_file, self._writer_lock_file))

    @staticmethod
    def _is_held(lock_file: Path) -> bool:
        if not lock_file.exists():
            return False
        lock = _lock(lock_file)
        try:
            lock.acquire(timeout=SECONDS_FOR_AN_INSTANT, poll_interval=0.01)
        except Timeout:
            return True
        except OSError:  # somebody else's run, or a disk that can't be written
            return _is_held_by_another(lock_file)
        lock.release()
        return False


def _lock(lock_file: Path) -> BaseFileLock:
    """Return the system's own lock on a file, and never filelock's other kind, which outlives a killed process."""
    return FileLock(lock_file, fallback_to_soft=False)


def _acquire(lock: BaseFileLock, seconds: float) -> None:
    """Take a lock, waiting so long for it.

    Raises:
        Timeout: another process has it.
        UsageError: its disk knows no locks, or its folder can't be written.
        OSError: what else the disk said.
    """
    try:
        lock.acquire(timeout=seconds, poll_interval=0.02)
    except OSError as error:
        folder = Path(lock.lock_file).parent
        if isinstance(error, PermissionError):
            raise UsageError(
                f"{folder} can't be written: {error.strerror}.",
                "copy the run to a folder of your own, and resume it there",
            ) from error
        if error.errno in WITHOUT_LOCKS:
            raise UsageError(
                f"the disk of {folder} knows no locks ({error.strerror}), so two processes could write one run.",
                "keep runs on a disk of this machine: --run-dir DIR",
            ) from error
        raise


def _is_held_by_another(lock_file: Path) -> bool:
    """Whether a process holds a lock file that may only be read here; False where the system doesn't tell."""
    if sys.platform == "win32":
        return False
    fcntl: Any = importlib.import_module("fcntl")
    with contextlib.suppress(OSError), lock_file.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
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


def create_run(path: Path, config: RunConfig, initial: Path | None = None) -> RunFolder:
    """Make a run folder that holds its settings and its environment; config.yaml comes last, and makes it a run.

    What a start left that was killed before that does not count.

    Args:
        path: the folder.
        config: the settings.
        initial: the weights that it begins with, of which it gets a copy.

    Raises:
        UsageError: the folder is there already and not empty, or can't be made; or the weights have changed.
        RunLockedError: another process is starting in it.
    """
    run = RunFolder(path)
    try:
        make_folder(path)
        _require_free(run)  # before the lock, which would be one file more
    except OSError as error:
        raise UsageError(
            f"the run folder {path} can't be made: {error.strerror}.", "choose another: --run-dir DIR"
        ) from error
    with run.locked():  # of two that start in one folder, the second finds the first one's settings
        _require_free(run)
        write_json(run.environment_file, describe_environment())
        if initial is not None:
            copy_file(initial, run.initial_file)
            if sha256_of(run.initial_file) != config.init_sha256:
                raise UsageError(f"{initial} has changed while it was copied.", "run it again")
        run.write_config(config)
    return run


def _require_free(run: RunFolder) -> None:
    """See that nothing is in a folder but what a start leaves behind that was killed early.

    Raises:
        UsageError: something is.
    """
    of_a_start = (run.environment_file, run.initial_file, run.lock_file, run.path / RANKS)
    if any(not is_temporary(entry) and entry not in of_a_start for entry in run.path.iterdir()):
        hint = run.resume_command if run.config_file.exists() else "choose another: --run-dir DIR"
        raise UsageError(f"the run folder {run.path} is not empty.", hint)


def open_run(path: Path) -> RunFolder:
    """Return an existing run.

    Raises:
        UsageError: there is no run in `path`, its settings are not valid, or something in it is a link.
    """
    run = RunFolder(path)
    if not run.config_file.is_file():
        what = "there is no folder" if not path.exists() else "there is no run in"
        raise UsageError(f"{what} {path}.", which_runs(path))
    run.refuse_links()
    load_config(run.config_file)
    return run


def which_runs(missing: Path) -> str:
    """Return the hint for a path at which there is no run: the one beside it that is nearest in name."""
    with contextlib.suppress(OSError):
        beside = {entry.name: entry for entry in missing.parent.iterdir() if (entry / "config.yaml").is_file()}
        meant = closest(missing.name, list(beside))
        if meant:
            return f"did you mean {shlex.quote(str(beside[meant]))}?"
    return "lowmem-seq report   lists the runs under ./runs"
