"""What saving and resuming cost, within bounds that no noise of a machine reaches; docs/results.md has figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.checkpoints import (
    DEFAULT_INTERVAL_SECONDS,
    METHODS,
    MOST_EXTRA_BYTES,
    MOST_RESUME_SECONDS,
    MOST_SHARE,
    ask,
    make_run,
    start,
)
from tests.builders import end, read_line


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the exact peak of a while")
def test_small_is_saved_and_resumed_at_little_cost(tmp_path: Path) -> None:
    run = make_run(tmp_path / "small", "small")
    saving = start("--serve", METHODS[0], str(run))
    assert read_line(saving) == "ready"
    figures = [ask(saving) for _ in range(3)]
    assert end(saving)[0] == 0
    assert min(one["seconds"] for one in figures) <= MOST_SHARE * DEFAULT_INTERVAL_SECONDS
    assert 0 < max(one["extra_bytes"] for one in figures) <= MOST_EXTRA_BYTES
    code, told, _ = end(start("--resume", str(run)))
    assert code == 0
    assert json.loads(told)["step"] == len(figures) + 1
    assert json.loads(told)["seconds"] <= MOST_RESUME_SECONDS
