from __future__ import annotations

import time
from pathlib import Path

import pytest

from lowmem_seq.checkpoint.counters import Counters
from lowmem_seq.runs.events import EventLog
from lowmem_seq.training import journal as module
from lowmem_seq.training.journal import Journal
from tests.builders import Heard

EIGHT_HOURS = 8 * 3600.0


def test_time_asleep_is_no_time_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    awake = [100.0]
    never_stops = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: never_stops() + EIGHT_HOURS * (awake[0] > 105))  # as on Windows
    monkeypatch.setattr(module, "awake_seconds", lambda: awake[0])
    heard = Heard()
    journal = Journal(EventLog(tmp_path / "events.jsonl"), heard, batch=32, train_images=3200)
    awake[0] += 10.0
    journal.record_training(Counters(step=20, images=640), rate=0.1)
    (told,) = heard.said
    assert told["wall_seconds"] == 10.0
    assert told["images_per_second"] == 64.0
