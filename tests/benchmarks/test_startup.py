from __future__ import annotations

import json
import os
from typing import Any

import pytest

from benchmarks.page import machine
from benchmarks.startup import (
    AT_ONCE,
    MOST_SECONDS,
    PARTS,
    TRAINER_PARTS,
    answer,
    broken_promises,
    large_imports,
    page,
    parts_of,
    trainer_parts,
)
from lowmem_seq.runs.folder import RunFolder


def results(*first_steps: float) -> dict[str, Any]:
    """Starts that took half a second in each part, but for the first step."""
    return {
        "machine": machine(),
        "commit": "abc1234",
        "starts": [{**dict.fromkeys(PARTS, 0.5), PARTS[-1]: seconds} for seconds in first_steps],
        "trainers": [dict.fromkeys(TRAINER_PARTS, 0.1) for _ in first_steps],
        "answers": {command: [0.2, 0.1, 0.3] for command in AT_ONCE},
        "imports": {command: [] for command in AT_ONCE},
    }


def test_each_part_of_a_start_ends_where_the_run_folder_says(run: RunFolder) -> None:
    began = 1_700_000_000.0
    at = {"session_opened": 0.25, "planned": 1.0, "session_started": 3.0, "train": 3.5}
    later = {"session_started": 9.0, "train": 10.0}  # of a session after it
    lines = [
        {"event": kind, "time_unix_seconds": began + seconds} for kind, seconds in (*at.items(), *later.items())
    ]
    run.events.path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    os.utime(run.data_file, (began + 0.75, began + 0.75))
    assert parts_of(run, began) == dict(zip(PARTS, (0.25, 0.5, 0.25, 2.0, 0.5), strict=True))


def test_the_parts_of_a_trainer_s_start_are_told_and_leave_its_run_as_it_was(run: RunFolder) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run.path.iterdir()}
    parts = trainer_parts(run)
    assert list(parts) == [*TRAINER_PARTS[:7], *TRAINER_PARTS[7:]]
    assert all(seconds >= 0 for seconds in parts.values())
    assert parts["import torch"] > parts["data opened"] > 0
    assert {path.name: path.stat().st_mtime_ns for path in run.path.iterdir()} == before


def test_large_imports_are_seen_and_the_help_has_none() -> None:
    assert large_imports("-c", "import torch.version") == ["torch"]
    assert large_imports("-m", "lowmem_seq", "--help") == []


def test_commands_about_a_run_are_given_its_folder(run: RunFolder) -> None:
    assert [answer(command, run) for command in AT_ONCE] == [
        ["--help"],
        ["train", "--help"],
        ["status", str(run.path)],
        ["report", "--json", str(run.path)],
    ]


def test_a_start_is_shown_part_by_part_with_its_sum() -> None:
    lines = page(results(0.5, 1.0, 3.0)).splitlines()
    assert "| first step | 1.00 s | 0.50 s | 3.00 s |" in lines
    assert "| **all** | **3.00 s** | **2.50 s** | **5.00 s** |" in lines
    assert "| **all** | **0.90 s** | **0.90 s** | **0.90 s** |" in lines
    assert "| `status` | 0.20 s | 0.10 s | 0.30 s | none |" in lines
    assert "n = 3 of each" in lines[-1]


@pytest.mark.parametrize(("longest", "words"), [(3.0, []), (3.5, ["a first step took 5.50 s"])])
def test_the_longest_start_is_what_the_promise_is_held_against(longest: float, words: list[str]) -> None:
    assert MOST_SECONDS == 5.0
    assert broken_promises(results(0.5, longest)) == words


def test_a_command_that_imports_torch_is_told() -> None:
    one = results(0.5)
    one["imports"]["status"] = ["accelerate", "torch"]
    assert broken_promises(one) == ["status imports accelerate, torch"]
    assert "| `status` | 0.20 s | 0.10 s | 0.30 s | accelerate, torch |" in page(one)
