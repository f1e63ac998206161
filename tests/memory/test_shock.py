from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.groups import Group, available, small_machine
from lowmem_seq.memory.readings import SHORT
from tests.sessions import Session, events, python_with, wait_until

NO_GROUPS = available() if sys.platform == "linux" else "control groups are known to Linux only"
pytestmark = [pytest.mark.skipif(NO_GROUPS is not None, reason=str(NO_GROUPS)), pytest.mark.slow]
MACHINE_BYTES, CAP = 1_300_000_000, "1GB"
LEFT_BYTES = 40_000_000
"""Half of what must stay free on such a machine."""
SECONDS_TO_SHRINK = 3.0
"""A look every 0.25 s, a micro-batch of some tenths, and plan.json, while other programs keep the cores busy."""
SECONDS_TO_SETTLE = 30.0
"""It shrinks once more where that was not enough, and a step takes seconds while others keep the cores busy."""
SECONDS_LOOKED_AT = 1.5
"""More than a step of Small; memory goes up and down within a step."""
SECONDS_OF_CALM = 3.0
CALM_COMES_SOON = f"import lowmem_seq.memory.governor as governor; governor.CALM_SECONDS = {SECONDS_OF_CALM}"
TRAIN = (
    *("train", "small", "--data", "shapes", "--max-ram", CAP, "--effective-batch", "128", "--epochs", "1000"),
    *("--micro-batch", "128", "--set", "recipe.evaluate_every_epochs=1000", "--run-dir", "run"),
    *("--set", "machine.lstm_path=torch"),
)
"""One micro-batch a step holds some 700 MB by nn.LSTM, of which most can be given back."""
TAKES_MEMORY = """
import sys
held = bytearray(b"x") * int(sys.stdin.readline())
print(flush=True)
sys.stdin.readline()
"""


class Browser:
    """Another process in a group, which takes memory in one go and keeps it until it ends."""

    def __init__(self, group: Group) -> None:
        command = [sys.executable, "-c", TAKES_MEMORY]
        self.process = group.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="ascii")

    def __enter__(self) -> Browser:
        return self

    def take(self, size_bytes: int) -> None:
        """Return as soon as it holds so much more."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(size_bytes, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "\n"

    def __exit__(self, *error: object) -> None:
        self.process.communicate()


def highest_bytes(group: Group) -> int:
    """The most anonymous memory that a group holds in a while."""
    until, highest = time.monotonic() + SECONDS_LOOKED_AT, 0
    while time.monotonic() < until:
        highest = max(highest, group.anonymous_bytes())
        time.sleep(0.001)
    return highest


def settled_bytes(group: Group, bound_bytes: float) -> int:
    """The most that a group holds in a while, once that is below a bound or should have been for long."""
    until = time.monotonic() + SECONDS_TO_SETTLE
    while (highest := highest_bytes(group)) >= bound_bytes and time.monotonic() < until:
        pass
    return highest


def changes(run: Path) -> list[dict[str, Any]]:
    return events(run, "setting_changed")


def grown(run: Path) -> list[dict[str, Any]]:
    """The changes by which it became larger again."""
    return [change for change in changes(run) if change["cause"].startswith("memory was calm for")]


def test_a_run_gives_memory_back_to_who_needs_it_and_takes_it_again_when_it_is_free(tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / "path"
    path.mkdir()
    with (
        small_machine(MACHINE_BYTES) as group,
        Session(*TRAIN, cwd=tmp_path, PYTHONPATH=python_with(CALM_COMES_SOON, folder=path)) as session,
    ):
        group.take_in(session.process.pid)
        wait_until(lambda: run.exists() and events(run, "train"), "the first steps")
        (started,) = events(run, "session_started")
        with Browser(group) as browser:
            before = highest_bytes(group)
            taken = MACHINE_BYTES - LEFT_BYTES - before
            browser.take(taken)
            taken_at = time.time()
            wait_until(lambda: changes(run), "a smaller setting")
            change = changes(run)[0]
            assert change["time_unix_seconds"] - taken_at < SECONDS_TO_SHRINK
            assert change["cause"].endswith("are left on this machine")
            assert (change["micro_batch_before"], change["workers_before"]) == (128, started["workers"])
            after = settled_bytes(group, (1 - SHORT) * MACHINE_BYTES) - taken
            assert after < before - 30_000_000
            assert taken + after < (1 - SHORT) * MACHINE_BYTES
        wait_until(lambda: grown(run), "the old setting")
        first = changes(run).index(grown(run)[0])
        setting = ("micro_batch", "workers", "recomputed_layers")
        larger, shrunk = changes(run)[first], changes(run)[first - 1]
        assert [larger[key] for key in setting] == [shrunk[f"{key}_before"] for key in setting]
        session.stopped()
        assert group.oom_kills() == 0
    assert not events(run, "out_of_memory")
    assert not events(run, "trainer_restarted")


def test_planning_on_a_machine_that_is_smaller_than_the_cap_ends_before_the_system_ends_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("train", "small", "--data", "shapes", "--max-ram", "4GB", "--effective-batch", "512", "--steps", "2")
    settings = ("--set", "machine.lstm_path=torch", "--set", "recipe.evaluate_every_epochs=1000")
    with (
        small_machine(900_000_000) as group,
        Session(*command, *settings, "--run-dir", "run", cwd=tmp_path, LOWMEM_SEQ_CACHE=str(tmp_path)) as session,
    ):
        group.take_in(session.process.pid)
        wait_until(lambda: run.exists() and events(run, "train"), "the first steps")
        session.stopped()
        assert group.oom_kills() == 0
    assert events(run, "planning_cut")
    assert not events(run, "trainer_restarted")
