"""Killed at, and refused, every system call that changes a run folder: the run goes on, and ends the same.

A first, undisturbed run of each scenario tells its system calls; strace then kills or refuses each of them, in a
fresh process on a fresh folder, two at a time. A kill comes before the call is done, so the kill at the next call
is the one right behind it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import pytest

from lowmem_seq import files
from lowmem_seq.files import is_temporary
from tests.builders import end, read_line
from tests.crash import driver
from tests.disks import UnsyncedDisk

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="strace is known to Linux only"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]

OPENING = ("open", "openat")
WRITING = ("write", "pwrite64", "writev", "pwritev", "copy_file_range", "sendfile")
SYNCING = ("fsync", "fdatasync", "sync_file_range", "msync")
RENAMING = ("rename", "renameat", "renameat2")
OTHERS = (
    *("mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "link", "linkat", "symlink", "symlinkat"),
    *("ftruncate", "truncate", "fallocate", "chmod", "fchmod", "fchmodat", "utimensat"),
)
CALLS = (*OPENING, *WRITING, *SYNCING, *RENAMING, *OTHERS)
RANDOM_PART = re.compile(r"(\.partial-|\.tmp)\w+")
REMOVED_PART = re.compile(r"\.removed-\w+")
CHANGING_FLAGS = re.compile(r"O_(WRONLY|RDWR|CREAT|TRUNC)")
AT_ONCE = 2
LAST_STEP = 4
"""The step to which every run is brought after what was done to it."""


@dataclass(frozen=True)
class Call:
    """The `when`-th system call of this name in a process, and its paths without what is random in them."""

    name: str
    when: int
    where: str


@dataclass(frozen=True)
class Ending:
    """A child's exit code, and the calls by which it changed its folder."""

    code: int
    calls: list[Call]


class Driver:
    """The driver's process, whose children are put under strace."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.driver"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        assert read_line(self._process) == "ready"

    def act(self, action: str, folder: Path, injection: str | None = None) -> Ending:
        """Do an action in a child, with one injection as strace wants it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{action} {folder}\n")
        self._process.stdin.flush()
        child = int(read_line(self._process))
        trace = folder.with_suffix(".strace")
        command = ["strace", "-y", "-s", "0", "-o", str(trace), "-p", str(child)]
        command += ["-e", "trace=" + ",".join(f"?{name}" for name in CALLS)]
        command += [] if injection is None else ["-e", f"inject={injection}"]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8")
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        os.kill(child, signal.SIGCONT)
        code = int(read_line(self._process))
        said += tracer.communicate()[1]
        if "Operation not permitted" in said:
            pytest.skip(f"strace may not look into processes here: {said}")
        assert "attached" in said, said
        return Ending(code, changing_calls(trace.read_text(encoding="utf-8"), folder))

    def close(self) -> None:
        assert end(self._process)[0] == 0


def changing_calls(trace: str, folder: Path) -> list[Call]:
    """Return the calls in a trace that change something below a folder."""
    counts: Counter[str] = Counter()
    calls = []
    for line in trace.splitlines():
        name, _, rest = line.partition("(")
        if name not in CALLS:
            continue
        counts[name] += 1
        arguments = rest.rpartition(" = ")[0]
        if str(folder) not in arguments or (name in OPENING and not CHANGING_FLAGS.search(arguments)):
            continue
        paths = re.findall(r'(?<!AT_FDCWD)[<"]([^>"]+)[>"]', arguments.replace(str(folder), "RUN"))
        calls.append(Call(name, counts[name], REMOVED_PART.sub("!", RANDOM_PART.sub("~", " ".join(paths)))))
    return calls


@dataclass(frozen=True)
class Scenario:
    """What the driver does, in which folder."""

    action: str
    prepare: Callable[[Path], object]
    steps: tuple[int, ...]
    """The steps that may be gone on from afterwards; 0 is the start."""


def prepare_nothing(folder: Path) -> None:
    pass


def prepare_two_checkpoints(folder: Path) -> None:
    driver.train(folder, 2)


def prepare_damage(folder: Path) -> None:
    """A checkpoint that had not got its name yet, torn leftovers, and a broken one for the second time."""
    driver.train(folder, 2)
    checkpoints = folder / "checkpoints"
    whole = checkpoints / "step-00000002"
    shutil.copytree(whole, checkpoints / "step-00000005")
    shutil.copytree(whole, checkpoints / "broken-step-00000005")
    whole.rename(checkpoints / "step-00000002.partial-0")
    (checkpoints / "step-00000006.partial-0").mkdir()
    (checkpoints / "step-00000006.partial-0" / driver.WEIGHTS).write_bytes(b"half")
    (folder / "plan.json.partial-0").write_bytes(b"half")


SCENARIOS = {
    "first start": Scenario("first", prepare_nothing, (0, 1)),
    "save and prune": Scenario("third", prepare_two_checkpoints, (2, 3)),
    "save in place": Scenario("again", prepare_two_checkpoints, (2,)),
    "recovery": Scenario("third", prepare_damage, (2, 3)),
}


@pytest.fixture(scope="module")
def drivers() -> Iterator[SimpleQueue[Driver]]:
    processes = [Driver() for _ in range(AT_ONCE)]
    idle: SimpleQueue[Driver] = SimpleQueue()
    for process in processes:
        idle.put(process)
    yield idle
    for process in processes:
        process.close()


@dataclass(frozen=True)
class Stage:
    """A scenario, ready to be played as often as one likes."""

    scenario: Scenario
    drivers: SimpleQueue[Driver]
    """Those that are idle."""
    folder: Path
    calls: list[Call]
    """Those of the undisturbed play."""

    def play(self, injection: str | None, name: str = "undisturbed") -> tuple[Path, Ending]:
        """Play the scenario in a fresh folder of this name."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        if (self.folder / "prepared").exists():
            shutil.copytree(self.folder / "prepared", folder)
        driver = self.drivers.get()
        try:
            return folder, driver.act(self.scenario.action, folder, injection)
        finally:
            self.drivers.put(driver)

    def play_each(self, injections: list[str]) -> Iterator[tuple[Path, Ending]]:
        """Play the scenario with one of these after the other, some of them at once; yields in their order."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from pool.map(self.play, injections, (f"run-{number}" for number in range(len(injections))))


@pytest.fixture(scope="module", params=SCENARIOS)
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, drivers: SimpleQueue[Driver]
) -> Iterator[Stage]:
    scenario = SCENARIOS[request.param]
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where a sync takes no time
    with tempfile.TemporaryDirectory(dir=in_memory) as folder:
        scenario.prepare(Path(folder) / "prepared")
        stage = Stage(scenario, drivers, Path(folder), calls=[])
        run, ending = stage.play(injection=None)
        assert ending.code == 0
        assert_it_goes_on(run, scenario.steps[-1:])
        yield replace(stage, calls=ending.calls)


def contents(folder: Path) -> dict[str, bytes]:
    """What a run holds, but for what tells the time and for what was set aside."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "broken-" not in str(path)]
    timed = ("environment.json", "events.jsonl")
    return {str(path.relative_to(folder)): b"" if path.name in timed else path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What every run must hold in the end."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    driver.train(folder, LAST_STEP)
    return contents(folder)


def assert_it_goes_on(folder: Path, steps: tuple[int, ...]) -> dict[str, bytes]:
    """Go on from one of these steps to the last one, and return what the run holds then."""
    with files.using(UnsyncedDisk()):
        trainer = driver.Trainer(folder)
        with trainer.run.locked():
            trainer.begin()
            assert trainer.step in steps
            assert not [path for path in folder.rglob("*") if is_temporary(path)]
            trainer.train(LAST_STEP)
    return contents(folder)


def test_killed_at_any_call_a_run_goes_on_to_the_same_end(stage: Stage, undisturbed: dict[str, bytes]) -> None:
    assert len(stage.calls) >= 30
    plays = stage.play_each([f"{call.name}:signal=KILL:when={call.when}" for call in stage.calls])
    for position, (call, (folder, ending)) in enumerate(zip(stage.calls, plays, strict=True)):
        assert ending == Ending(-signal.SIGKILL, stage.calls[: position + 1])
        assert assert_it_goes_on(folder, stage.scenario.steps) == undisturbed, call


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_refused_any_call_a_run_goes_on_in_the_same_process(
    stage: Stage, undisturbed: dict[str, bytes], error: str
) -> None:
    """The disk's word comes through as OSError, once, and the second try succeeds; any other exception is 99."""
    plays = stage.play_each([f"{call.name}:error={error}:when={call.when}" for call in stage.calls])
    for before, call, (folder, ending) in zip([None, *stage.calls[:-1]], stage.calls, plays, strict=True):
        assert ending.code in refusals_of(call, before), call
        assert assert_it_goes_on(folder, stage.scenario.steps[-1:]) == undisturbed, call


def refusals_of(call: Call, before: Call | None) -> tuple[int, ...]:
    """How often an action may be refused if this call, which comes after `before`, fails."""
    if call.where.endswith("events.jsonl"):
        return (0,)  # events wait in memory
    if prunes(call) or (call.name in SYNCING and before is not None and prunes(before)):
        return (0,)  # the new checkpoint is safe, and the next save deletes
    if call.name in (*OPENING, *WRITING, *SYNCING, *RENAMING):
        return (1,)
    return (0, 1)  # leftovers that can't be removed now are removed later


def prunes(call: Call) -> bool:
    """Whether the call is the first one of the deletion of an older checkpoint."""
    return call.name in RENAMING and "checkpoints/step-" in call.where and call.where.endswith("!")
