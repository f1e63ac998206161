"""The clock and the terminal: each made to fail."""

from __future__ import annotations

import io
import time

import pytest

from lowmem_seq.doctor.desk import check_clock, check_terminal, installation_time
from tests.doctor.builders import the_only

INSTALLED = 1_795_000_000.0


@pytest.mark.parametrize(
    ("now", "verdict"),
    [(INSTALLED - 1000, "pass"), (INSTALLED + 10**8, "pass"), (0.0, "fail"), (-5.0, "fail"), (2.0**33, "fail")],
)
def test_a_clock_from_before_the_installation_or_far_ahead_fails(now: float, verdict: str) -> None:
    assert the_only(check_clock(now, INSTALLED)).verdict == verdict


def test_this_machine_s_clock_passes() -> None:
    assert the_only(check_clock(time.time(), installation_time())).verdict == "pass"


@pytest.mark.parametrize(
    ("encoding", "platform", "fix"),
    [("cp437", "win32", "chcp 65001"), ("ascii", "linux", "export LANG=C.UTF-8"), ("utf-8", "win32", "")],
)
def test_a_terminal_that_lacks_letters_is_told(encoding: str, platform: str, fix: str) -> None:
    finding = the_only(check_terminal(io.TextIOWrapper(io.BytesIO(), encoding), platform))
    assert finding.verdict == ("note" if fix else "pass")
    assert finding.fix.startswith(fix)
    assert finding.told.isascii()
