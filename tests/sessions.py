"""Whole sessions as a user has them, each in processes of its own: begun, disturbed, ended, compared."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.kills import PROGRAM, trainer_of
from lowmem_seq.files import write_json
from lowmem_seq.runs.folder import RunFolder

STEPS = 60
STEPS_AN_EPOCH = 40
CLASSES = ("circle", "cross", "ring", "square")
"""Half of the drawn shapes: 1,280 pictures are trained on, and to evaluate 2,720 takes long enough to be met."""
EVERY = 5
SECONDS_TO_WAIT = 240.0
SECONDS_TO_A_SAFE_EXIT = 10.0
SHAPES_LEFT_OUT = 1 - STEPS_AN_EPOCH * 32 / 4_000
SETTINGS = (
    *("--set", "machine.threads=1"),
    *("--set", "augmentation.mixup=0.3", "--set", "augmentation.cutmix=0.3", "--set", "augmentation.colour=0.2"),
    *("--set", "recipe.ema_decay=0.9", "--set", f"data.validation_fraction={SHAPES_LEFT_OUT}"),
    *("--set", "checkpoint.keep=100"),  # so that a copy can be taken back to any of them
)
TRAIN = (
    *("train", "tiny", "--data", "shapes", "--classes", ",".join(CLASSES), "--precision", "fp32"),
    *("--micro-batch", "16", "--max-ram", "1GB"),
    *("--checkpoint-every", f"{EVERY}steps", "--steps", str(STEPS), *SETTINGS),
)
"""Tiny with every kind of random draw: dropout, drop path, mixing, colours, and a running average."""

Story = Callable[[Path, Path], None]
Stories = dict[str, "Future[None]"]
_STORIES: dict[str, Story] = {}


def story(tell: Story) -> Callable[[Stories], None]:
    """Make a test of a story, which takes the undisturbed run and an empty folder.

    The stories of a file are told two at a time: most of a session is one process that loads torch on one core.
    """
    _STORIES[tell.__name__] = tell

    def test(stories: Stories) -> None:
        stories[tell.__name__].result()

    test.__name__, test.__module__, test.__doc__ = tell.__name__, tell.__module__, tell.__doc__
    return test


@contextlib.contextmanager
def telling(items: Iterable[pytest.Item], undisturbed: Path, folder: Path) -> Iterator[Stories]:
    """Begin the stories among some tests; those that nobody waits for any more are dropped at the end."""
    stories: Stories = {}
    pool = ThreadPoolExecutor(2)
    try:
        for item in items:
            if item.name in _STORIES and not any(mark.args[0] for mark in item.iter_markers("skipif")):
                (folder / item.name).mkdir()
                stories[item.name] = pool.submit(_STORIES[item.name], undisturbed, folder / item.name)
        yield stories
    finally:
        pool.shutdown(cancel_futures=True)


def lowmem_seq(*arguments: str, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, which must be the one expected."""
    done = subprocess.run(
        [*PROGRAM, *arguments],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=SECONDS_TO_WAIT,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def reported(run: Path) -> dict[str, Any]:
    """What `report --json` tells of a run."""
    told: list[dict[str, Any]] = json.loads(lowmem_seq("report", run.name, "--json", cwd=run.parent).stdout)
    return told[0]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind, in their order."""
    return [event for event in RunFolder(run).events if event["event"] == kind]


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Return as soon as `condition` holds."""
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.002)


@contextlib.contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    """Suspend a process; in the end it goes on, also where a test failed: nobody else would wake it."""
    process.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def rewound(run: Path, to: Path, step: int, **plan: object) -> Path:
    """Copy a finished run as it was when step `step` had been saved, with these values laid over its plan."""
    shutil.copytree(run, to)
    (to / "model.safetensors").unlink()
    for folder in (to / "checkpoints").iterdir():
        if int(folder.name.partition("-")[2]) > step:
            shutil.rmtree(folder)
    lines = (to / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line).get("step", 0) <= step]
    (to / "events.jsonl").write_text("".join(kept), encoding="utf-8")
    write_json(to / "plan.json", {**json.loads((to / "plan.json").read_text(encoding="utf-8")), **plan})
    return to


class Session:
    """A command that is under way in a process of its own; what it says can be read meanwhile.

    Args:
        arguments: of the program.
        cwd: where it runs.
        program: what the arguments are for.
        environment: variables that it has beside this process's.
    """

    def __init__(self, *arguments: str, cwd: Path, program: Sequence[str] = PROGRAM, **environment: str) -> None:
        self._log = cwd / f"said-{time.monotonic_ns()}.txt"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*program, *arguments],
                cwd=cwd,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUTF8": "1", **environment},
            )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for below in psutil.Process(self.process.pid).children(recursive=True):
                    below.kill()
            self.process.kill()
            self.process.wait()

    @property
    def said(self) -> str:
        """What it has said so far."""
        return self._log.read_text(encoding="utf-8")

    def wait_for_words(self, words: str) -> None:
        """Return as soon as it has said these."""
        wait_until(lambda: words in self.said or self.process.poll() is not None, words)
        assert words in self.said, self.said

    def trainer(self) -> psutil.Process:
        """Its trainer, as soon as there is one."""
        wait_until(lambda: trainer_of(self.process) or self.process.poll() is not None, "a trainer")
        found = trainer_of(self.process)
        assert found is not None, self.said
        return found

    @property
    def has_trainer(self) -> bool:
        """Whether it has a trainer now."""
        return trainer_of(self.process) is not None

    def ended(self, expect: int) -> str:
        """Return what it said, once it has ended with the expected code."""
        code = self.process.wait(SECONDS_TO_WAIT)
        assert code == expect, self.said
        return self.said

    def stopped(self, number: int = signal.SIGINT, expect: int = 4) -> str:
        """Send the signal, and return what was said once it has ended, in time and as expected."""
        began = time.monotonic()
        self.process.send_signal(number)
        said = self.ended(expect)
        assert time.monotonic() - began < SECONDS_TO_A_SAFE_EXIT
        if expect == 4:
            assert "hint: lowmem-seq resume" in said
        return said


class Terminal:
    """A command in a terminal of its own, which can be closed (POSIX)."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        import fcntl
        import pty
        import termios

        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=cwd,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that its end is heard as SIGHUP
        )
        os.close(theirs)
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closing.is_set():
                if select.select([self._ours], [], [], 0.02)[0] and not os.read(self._ours, 1 << 16):
                    return

    def close(self) -> None:
        """Close the window: what runs in it hears SIGHUP, and can neither read nor write any more.

        The reader ends first: another file may get the number, and it would take what is meant for others.
        """
        self._closing.set()
        self._reader.join()
        os.close(self._ours)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def resume(run: Path, *flags: str, cwd: Path | None = None) -> Session:
    """`lowmem-seq resume` of a run, under way; it runs beside the run, or in another folder."""
    return Session("resume", run.name if cwd is None else str(run), *flags, cwd=cwd or run.parent)


def resume_to_the_end(run: Path, *flags: str, cwd: Path | None = None) -> str:
    """`lowmem-seq resume` of a run, until it is finished; returns what was said."""
    with resume(run, *flags, cwd=cwd) as session:
        return session.ended(0)


def train_undisturbed(folder: Path) -> Path:
    """The run that others are compared with: trained whole, by nobody disturbed."""
    lowmem_seq(*TRAIN, "--run-dir", "undisturbed", cwd=folder)
    return folder / "undisturbed"


def python_with(*lines: str, folder: Path) -> str:
    """Write a sitecustomize.py of these lines; return the PYTHONPATH by which every Python process runs it."""
    (folder / "sitecustomize.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
