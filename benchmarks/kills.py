"""Runs that are killed at random times, and whether they end with the bits of one that was left alone.

Only the folder of a run is looked at: its events and its files. The soak (benchmarks/soak.py) does this for hours,
the tests a few times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from lowmem_seq.config import override, validate
from lowmem_seq.files import sha256_of
from lowmem_seq.runs.folder import RunFolder

PROGRAM = [sys.executable, "-m", "lowmem_seq"]
TRAINER = "lowmem_seq.training"
VICTIMS = {"trainer": 0.7, "supervisor": 0.15, "both": 0.15}
"""Who is killed, and how often: mostly the trainer, which its supervisor then starts again by itself."""
EARLY_SHARE = 0.15
"""Share of the kills that come while a trainer is still starting."""
EARLY_SECONDS = 2.0
LOOK_SECONDS = 0.005
SECONDS_FOR_A_STEP_FORWARD = 300.0
CLOCKS = ("time_unix_seconds", "images_per_second", "seconds", "wall_seconds")
"""What two equal runs differ in."""

Figures = dict[tuple[str, int], list[dict[str, Any]]]


@dataclass
class Outcome:
    """What became of one run under fire."""

    kills: Counter[str] = field(default_factory=Counter)
    """How often each victim was killed."""
    failures: list[str] = field(default_factory=list)
    """Resumes that failed, and saved steps that were lost, in words."""
    most_steps_lost: int = 0
    """The most steps that a trainer had done, as its events say, and the next one had to do again."""
    differing: list[str] = field(default_factory=list)
    """Files and figures that are not those of the undisturbed run."""


def copy_before_first_step(run: Path, to: Path, *assignments: str) -> RunFolder:
    """Copy a run as it was before its first step, planned already, with these settings laid over its own."""
    to.mkdir(parents=True)
    copy = RunFolder(to)
    for name in ("config.yaml", "environment.json", "data.json", "plan.json"):
        (to / name).write_bytes((run / name).read_bytes())
    settings = copy.config.to_settings()
    for assignment in assignments:
        override(settings, assignment)
    copy.write_config(validate(settings))
    return copy


def digests(run: Path) -> dict[str, str]:
    """Return the SHA-256 of every tensor file of the newest checkpoint, and of the final weights' numbers."""
    newest = max((run / "checkpoints").glob("step-*"))
    files = {f"{newest.name}/{file.name}": sha256_of(file) for file in newest.glob("*.safetensors")}
    content = (run / "model.safetensors").read_bytes()
    header_bytes = int.from_bytes(content[:8], "little")  # the library writes what it names in any order
    header = json.dumps(json.loads(content[8 : 8 + header_bytes]), sort_keys=True).encode()
    return {**files, "final weights": hashlib.sha256(header + content[8 + header_bytes :]).hexdigest()}


def figures(run: Path) -> Figures:
    """Return what was measured after each step: every different value that an event of that step has."""
    found: Figures = {}
    for event in RunFolder(run).events:
        if event["event"] in ("train", "validation", "test"):
            values = {key: value for key, value in event.items() if key not in CLOCKS}
            told = found.setdefault((event["event"], event["step"]), [])
            if values not in told:
                told.append(values)
    return found


def differences(run: Path, undisturbed: Path) -> list[str]:
    """Return the files and figures of a finished run that are not those of another; none if they are equal."""
    differing = []
    for ours, theirs in ((digests(run), digests(undisturbed)), (figures(run), figures(undisturbed))):
        keys = {*ours, *theirs}
        differing += [str(key) for key in keys if ours.get(key) != theirs.get(key)]
    return sorted(differing)


def lost_steps(run: RunFolder, every: int) -> tuple[int, list[str]]:
    """Return the most steps that had to be done again, as the events tell, and what should not have been.

    A trainer goes on from the newest save, so at most `every` steps are done again. A kill breaks no checkpoint.
    """
    most = done = saved = 0
    failures = []
    for event in run.events:
        kind = event["event"]
        if kind == "session_started":
            if event["step"] < saved:
                failures.append(f"step {saved} was saved, and the next trainer began after {event['step']}")
            most = max(most, done - event["step"])
            done = saved = event["step"]
        elif kind in ("train", "validation", "checkpoint"):
            done = max(done, event["step"])
            saved = max(saved, event["step"] if kind == "checkpoint" else 0)
        elif kind == "checkpoint_passed_over":
            failures.append(event["message"])
    if most > every and not failures:
        failures.append(f"{most} steps were lost, and every {every} steps were saved")
    return most, failures


def training_seconds(run: Path) -> float:
    """Return how long the last session of a run trained, from its first step to its end."""
    times = {event["event"]: float(event["time_unix_seconds"]) for event in RunFolder(run).events}
    return times["session_ended"] - times["session_started"]


def trainer_of(supervisor: subprocess.Popen[Any]) -> psutil.Process | None:
    """Return the trainer that a supervisor has now, if it has one."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(supervisor.pid).children():
            if TRAINER in child.cmdline():
                return child
    return None


def train_under_fire(run: RunFolder, undisturbed: Path, draws: random.Random, kills: int) -> Outcome:
    """Train a run to its end, with up to so many kills on the way, and compare it with an undisturbed one.

    Args:
        run: before its first step.
        undisturbed: a finished run of the same plan; its time decides how far apart the kills come.
        draws: decide who is killed, and when.
        kills: fewer are done where the run ends before.
    """
    outcome = Outcome()
    longest_seconds = 2 * training_seconds(undisturbed) / (kills + 1)
    session = _Session(run)
    try:
        while sum(outcome.kills.values()) < kills and session.has_new_trainer():
            victim = draws.choices(list(VICTIMS), list(VICTIMS.values()))[0]
            if draws.random() < EARLY_SHARE:
                time.sleep(draws.uniform(0.0, EARLY_SECONDS))
            elif session.trains():
                time.sleep(draws.uniform(0.0, longest_seconds))
            if session.kill(victim):
                outcome.kills[victim] += 1
        code = session.process.wait(SECONDS_FOR_A_STEP_FORWARD)
        if code != 0:
            outcome.failures.append(f"ended with code {code}: {session.said}")
            return outcome
    finally:
        session.end()
    outcome.most_steps_lost, failures = lost_steps(run, int(run.config.checkpoint.interval.amount))
    outcome.failures += failures
    outcome.differing = differences(run.path, undisturbed)
    return outcome


class _Session:
    """`lowmem-seq resume` in a process of its own, begun again whenever it is killed."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._log = run.path.with_name(f"{run.path.name}.said")
        self._trainer: psutil.Process | None = None
        self._begin()

    def _begin(self) -> None:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*PROGRAM, "resume", str(self._run.path)], stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def said(self) -> str:
        """What the present process has said."""
        return self._log.read_text(encoding="utf-8", errors="replace").strip()

    def has_new_trainer(self) -> bool:
        """Wait for a trainer that wasn't there before; return whether one came before the session ended."""
        before, deadline = self._trainer, time.monotonic() + SECONDS_FOR_A_STEP_FORWARD
        self._sessions = self._count_sessions()
        while self.process.poll() is None and time.monotonic() < deadline:
            self._trainer = trainer_of(self.process)
            if self._trainer is not None and self._trainer != before:
                return True
            time.sleep(LOOK_SECONDS)
        return False

    def trains(self) -> bool:
        """Wait until the present trainer has everything loaded; return whether it came so far."""
        while self._trainer is not None and self._trainer.is_running() and self.process.poll() is None:
            if self._count_sessions() > self._sessions:
                return True
            time.sleep(LOOK_SECONDS)
        return False

    def _count_sessions(self) -> int:
        return sum(event["event"] == "session_started" for event in self._run.events)

    def kill(self, victim: str) -> bool:
        """Kill, and begin again where the supervisor is gone; return whether the victim was still there."""
        assert self._trainer is not None
        if self.process.poll() is not None or not self._trainer.is_running():
            return False
        if victim != "trainer":
            self.process.kill()
            self.process.wait()
        if victim != "supervisor":
            with contextlib.suppress(psutil.NoSuchProcess):
                self._trainer.kill()
        if victim != "trainer":
            self._begin()
        return True

    def end(self) -> None:
        """Leave nothing behind that still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
