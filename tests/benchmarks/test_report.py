from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.report import MOST_BYTES, invented_events, make_run, measure
from lowmem_seq.report.reading import read_run
from lowmem_seq.report.series import MOST_STRETCHES


def test_what_is_invented_is_what_a_run_writes(tmp_path: Path) -> None:
    assert sum(1 for _ in invented_events(12_000)) == 12_000
    told = read_run(make_run(tmp_path / "run", 12_000), MOST_STRETCHES)
    summary, history = told.summary, told.history
    assert (summary["state"], summary["sessions"]) == ("finished", 3)
    assert (history.event_count, history.odd_count) == (12_000, 0)
    assert {mark.kind for mark in history.marks} == {"smaller"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no wait4")
def test_a_page_s_memory_does_not_grow_with_the_events(tmp_path: Path) -> None:
    few, many = (make_run(tmp_path / str(count), count) for count in (1_000, 20_000))
    page = tmp_path / "report.html"
    _, few_bytes = measure(few, page)
    _, many_bytes = measure(many, page)
    assert many_bytes < few_bytes + 20 * 10**6
    assert many_bytes < MOST_BYTES
