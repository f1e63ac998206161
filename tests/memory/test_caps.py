from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from benchmarks.caps import CASES, GRID, broken_promises, table, turns
from benchmarks.groups import available, small_machine
from benchmarks.outside import LONGEST_SECONDS, PAST_THE_CAP, Sampler, Samples
from benchmarks.page import machine
from benchmarks.watched import TOO_SMALL, named_cap, problems, train_watched
from lowmem_seq.data.cache import cache_folder
from lowmem_seq.memory.plan import Setting
from lowmem_seq.memory.remembered import Request
from lowmem_seq.runs.folder import RunFolder
from tests.memory.builders import FakeReader
from tests.sessions import wait_until

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells resident pages and command lines so")
NO_GROUPS = available() if sys.platform == "linux" else "control groups are known to Linux only"
IN_A_GROUP = pytest.mark.skipif(NO_GROUPS is not None, reason=str(NO_GROUPS))
CAP = 1000
ROOT, CHILD = 1, 2**22 + 7
"""The child's number is larger than any that Linux gives."""
SLEEPS = "import sys, time; print(flush=True); time.sleep(60)"
HOLDS_200_MB = f"held = bytearray(b'x') * 200_000_000; {SLEEPS}"


class Tree:
    """A tree of two processes that hold what a test says, looked at when it says."""

    def __init__(self, child: int = CHILD) -> None:
        self.reader, self.child = FakeReader(family=[child]), child
        self.now = 0.0
        self.beside = 0
        self.sampler = Sampler(ROOT, CAP, lambda: self.beside, self.reader, lambda: self.now)

    def look(self, root: int, child: int, after: float = 0.004) -> Samples:
        self.now += after
        self.reader.held = {ROOT: root, self.child: child}
        self.sampler.look()
        return self.sampler.seen()


@contextlib.contextmanager
def python(code: str, *arguments: str) -> Iterator[int]:
    """A process that has begun to do something."""
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_a_tree_that_passes_its_cap_is_found_with_who_held_how_much() -> None:
    tree = Tree()
    tree.look(300, 700)  # the cap itself is allowed
    seen = tree.look(300, 701)
    assert (seen.count, seen.above, seen.highest_bytes) == (2, 1, 1001)
    assert seen.highest_held == {"supervisor (1)": 300, f"another ({CHILD})": 701}
    (excess,) = seen.excesses
    assert (excess.samples, excess.highest_bytes, excess.held) == (1, 1001, seen.highest_held)


def test_no_look_at_a_tree_within_its_cap_is_counted() -> None:
    tree = Tree()
    for child in (100, 700, 200):
        seen = tree.look(300, child)
    assert (seen.count, seen.above, seen.highest_bytes, seen.excesses) == (3, 0, 1000, [])


def test_every_look_above_counts_also_where_it_is_not_the_highest() -> None:
    tree = Tree()
    for child in (2000, 1500, 900):
        seen = tree.look(300, child)
    assert (seen.above, seen.highest_bytes) == (3, 2300)
    (excess,) = seen.excesses
    assert (excess.samples, excess.highest_bytes) == (3, 2300)
    assert excess.seconds == pytest.approx(0.008)


def test_two_times_above_the_cap_are_told_apart() -> None:
    tree = Tree()
    for child in (800, 700, 900, 600):
        seen = tree.look(300, child)
    assert [excess.highest_bytes for excess in seen.excesses] == [1100, 1200]


def test_a_process_that_has_ended_counts_no_more() -> None:
    tree = Tree()
    tree.look(300, 900)
    tree.reader.family = []
    seen = tree.look(300, 0)
    assert (seen.count, seen.above) == (2, 1)
    assert tree.sampler.seen().excesses[0].samples == 1


def test_a_gap_in_sampling_is_reported() -> None:
    tree = Tree()
    for after in (1.0, 0.003, 0.003, 0.003, 0.3):
        seen = tree.look(1, 1, after)
    assert seen.interval_median_seconds == pytest.approx(0.003)
    assert seen.interval_longest_seconds == pytest.approx(0.3)
    assert seen.late_seconds == pytest.approx(0.3)
    assert seen.late == 1
    assert LONGEST_SECONDS == 0.005


def test_a_figure_beside_the_tree_may_not_pass_the_cap_either() -> None:
    tree = Tree()
    for tree.beside in (500, 1001, 1000):
        seen = tree.look(1, 1)
    assert (seen.above, seen.beside_above, seen.highest_beside_bytes) == (0, 1, 1001)


@LINUX
def test_what_a_probe_holds_past_the_cap_to_name_another_one_is_counted_apart() -> None:
    request = Request(1, ("default",), "default", 1.0, only=Setting(1, 1))
    with python(SLEEPS, "lowmem_seq.training.probe", "run", json.dumps(asdict(request))) as pid:
        tree = Tree(pid)
        tree.beside = CAP + 1
        seen = tree.look(300, 701)
    assert (seen.above, seen.above_on_purpose, seen.highest_bytes) == (0, 1, 0)
    assert (seen.beside_above, seen.highest_beside_bytes) == (0, 0)
    (excess,) = seen.excesses
    assert (excess.on_purpose, excess.held) == (True, {"supervisor (1)": 300, f"{PAST_THE_CAP} ({pid})": 701})


@LINUX
def test_what_any_other_probe_holds_past_the_cap_is_a_broken_promise() -> None:
    request = Request(1, ("default",), "default", 1.0)
    with python(SLEEPS, "lowmem_seq.training.probe", "run", json.dumps(asdict(request))) as pid:
        tree = Tree(pid)
        tree.beside = CAP + 1
        seen = tree.look(300, 701)
    assert (seen.above, seen.above_on_purpose) == (1, 0)
    assert (seen.beside_above, seen.highest_beside_bytes) == (1, CAP + 1)
    assert seen.highest_held == {"supervisor (1)": 300, f"probe ({pid})": 701}


@LINUX
def test_a_real_tree_is_seen_with_its_grandchildren() -> None:
    starts_another = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLDS_200_MB!r}])"
    with python(starts_another) as pid:
        with Sampler(pid, 200_000_000) as sampler:
            wait_until(lambda: sampler.seen().count > 20, "a few samples")
        for grandchild in psutil.Process(pid).children():
            grandchild.kill()
    seen = sampler.seen()
    assert seen.above == seen.count
    assert 200_000_000 < seen.highest_bytes < 300_000_000
    assert len(seen.highest_held) == 2


def test_a_sampler_that_fails_says_so() -> None:
    def fails() -> int:
        raise ValueError("nothing to be read")

    with pytest.raises(RuntimeError, match="the sampler failed"), Sampler(ROOT, CAP, fails, FakeReader()):
        time.sleep(0.05)


@IN_A_GROUP
def test_a_group_counts_what_its_processes_hold_and_is_gone_in_the_end() -> None:
    with small_machine(10**9) as group:
        process = group.start([sys.executable, "-c", HOLDS_200_MB], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        assert group.processes() == [process.pid]
        assert 200_000_000 < group.anonymous_bytes() < 250_000_000
        assert group.used_bytes() >= group.anonymous_bytes() - 2**20
        assert group.oom_kills() == 0
    assert process.wait() == -9
    process.stdout.close()
    assert not group.folder.exists()


@IN_A_GROUP
def test_a_group_ends_what_passes_its_limit_and_counts_it() -> None:
    with small_machine(100 * 10**6) as group, group.start([sys.executable, "-c", HOLDS_200_MB]) as process:
        assert process.wait() == -9
        assert group.oom_kills() == 1


def kept() -> dict[str, object]:
    """A run as it should be."""
    return {
        **{"exit_code": 0, "above": 0, "beside_above": 0, "excesses": [], "highest_bytes": 1, "cap_bytes": 2},
        **{"highest_beside_bytes": 0, "group_oom_kills": 0, "machine_oom_kills": 0, "swapped_out_bytes": 0},
        **{"out_of_memory": [], "trainer_restarted": [], "smallest_cap": None, "last_words": ""},
    }


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"above": 1}, "1 samples above the cap"),
        ({"beside_above": 2}, "anonymous memory above the cap 2 times"),
        ({"out_of_memory": ["no memory"]}, "1 kills, restarts or failed allocations: no memory"),
        ({"trainer_restarted": ["it died"]}, "1 kills, restarts or failed allocations: it died"),
        ({"group_oom_kills": 1}, "1 kills, restarts or failed allocations: by the system"),
        (
            {"group_oom_kills": None, "machine_oom_kills": 1},
            "1 kills, restarts or failed allocations: by the system",
        ),
        ({"exit_code": -9}, "1 kills, restarts or failed allocations: by the system"),
        ({"swapped_out_bytes": 4096}, "4.10 KB were swapped out"),
        ({"exit_code": 1}, "ended with code 1"),
        ({"exit_code": None}, "ended with code None"),
        ({"exit_code": TOO_SMALL}, "refused without the cap that would do"),
    ],
)
def test_whatever_breaks_the_promise_is_told(broken: dict[str, object], words: str) -> None:
    assert problems(kept()) == []
    assert problems({**kept(), **broken})[0].startswith(words)


def test_a_process_of_somebody_else_that_the_system_ended_is_not_held_against_a_group() -> None:
    assert problems({**kept(), "machine_oom_kills": 1}) == []


def test_a_refusal_tells_the_cap_that_would_do() -> None:
    words = "hint: the smallest cap that would do is about --max-ram 540MB\n"
    assert named_cap(words) == "540MB"
    assert problems({**kept(), "exit_code": TOO_SMALL, "smallest_cap": "540MB"}) == []


def test_the_grid_is_a_hundred_runs_with_every_kind_of_run_in_each_case() -> None:
    runs = list(turns(CASES))
    assert len(runs) == len(set(runs)) == sum(GRID[case.preset].runs_a_cap for case in CASES) == 100
    for case in CASES:
        kinds = {(one.fresh, one.limited) for one in runs if one.case == case}
        assert len(kinds) == 4
    assert sum(one.limited for one in runs) in range(45, 56)
    assert sum(one.fresh for one in runs) in range(50, 61)


def test_the_table_shows_what_broke_the_promise() -> None:
    told = {
        **{"case": "small@1GB", "fresh": True, "limited": False, "commit": "abc", "seconds": 10.0, "count": 4000},
        **{"interval_median_seconds": 0.0025, "interval_longest_seconds": 0.04, "late_seconds": 0.1},
        **{"setting": {"micro_batch": 64, "workers": 2, "recomputed_layers": 3}, "allocator": "keep"},
        **{"images_per_second": 900.0, "above_on_purpose": 0, "own_peak_bytes": 950, "predicted_peak_bytes": 1000},
    }
    excess = {"on_purpose": False, "phase": "after step 3", "held": {"trainer (7)": 1100}}
    broken = {"above": 7, "excesses": [excess], "highest_bytes": 1100, "highest_beside_bytes": 900}
    runs = [
        {**kept(), **told, "run": 0, "cap_bytes": 1000},
        {**kept(), **told, "run": 1, "cap_bytes": 1000, **broken},
    ]
    state = {"machine": machine(), "swap_bytes": 0, "no_groups": None, "runs": runs}
    lines = table(state).splitlines()
    assert lines[2] == (
        "| small@1GB | 2 (2, 0) | 2, 0 | 8,000 | **7** | 110.0% | 90.0% | 95.0% | 0 | 0 B | 64x2 r3 keep | 900 |"
    )
    assert "n = 2 runs, 8,000 samples: one every 2.5 ms (median), the longest interval 40 ms; 1.00% of" in lines[4]
    assert broken_promises(state) == [
        'small@1GB, run 1: 7 samples above the cap, 1.10 KB at the most (after step 3: {"trainer (7)": 1100})'
    ]


@LINUX
@pytest.mark.slow
def test_small_under_600_mb_holds_no_more_from_its_start_to_its_end(tmp_path: Path) -> None:
    command = ["train", "small", "--data", "shapes", "--effective-batch", "128", "--steps", "6", "--quiet"]
    one = train_watched(command, "600MB", tmp_path, cache_folder(), NO_GROUPS, limited=True)
    assert problems(one) == [], (tmp_path / "said.txt").read_text(encoding="utf-8")
    assert (one["exit_code"], one["above"], one["above_on_purpose"]) == (0, 0, 0)
    assert one["highest_bytes"] > 300_000_000  # torch alone holds that: it was really seen
    assert one["count"] > 20 * one["seconds"]  # how close it looked stands in the table
    events = [event["event"] for event in RunFolder(tmp_path / "run").events]
    assert {"planned", "session_started", "checkpoint", "test"} <= {*events}
