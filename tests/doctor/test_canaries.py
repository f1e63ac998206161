"""What becomes of canaries whose process dies, hangs, or lives on."""

from __future__ import annotations

import sys
import time

import psutil
import pytest

from lowmem_seq.doctor.canaries import Outcome, try_out

DYING = "tests.doctor.dying"


def test_a_crash_is_what_one_canary_found_and_the_others_are_tried_all_the_same() -> None:
    first, crashed, second, raised = try_out(DYING, ["fine", "crashes", "also fine", "raises"])
    assert (first.name, first.trouble, second.name, second.trouble) == ("fine", "", "also fine", "")
    assert first.facts["pid"] != second.facts["pid"]
    assert crashed.name == "crashes"
    assert sys.platform == "win32" or crashed.trouble == "its process was ended by SIGSEGV"
    assert raised == Outcome("raises", trouble="RuntimeError: wrong shape")


def test_one_process_tries_all_that_live() -> None:
    one, other = try_out(DYING, ["one", "other"])
    assert one.facts["pid"] == other.facts["pid"]


def test_one_that_hangs_is_ended() -> None:
    began = time.monotonic()
    before, hung, after = try_out(DYING, ["before", "hangs", "after"], seconds_each=4.0)
    assert time.monotonic() - began < 30
    assert hung == Outcome("hangs", trouble="its process did not end within 4 s")
    assert not psutil.pid_exists(before.facts["pid"])
    assert after.facts


def test_a_program_that_can_t_be_started_is_the_trouble_of_each() -> None:
    assert [one.trouble for one in try_out("tests.doctor.no_such_module", ["a", "b"])] == [
        "its process ended with code 1"
    ] * 2


def test_whoever_has_heard_enough_leaves_no_process_behind() -> None:
    outcomes = try_out(DYING, ["fine", "hangs"])
    pid = next(outcomes).facts["pid"]
    assert psutil.pid_exists(pid)
    outcomes.close()  # type: ignore[attr-defined]
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(pid)
