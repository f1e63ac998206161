from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.runs.events import EventLog
from tests.builders import end, start_python


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "events.jsonl")


def test_there_are_no_events_before_the_first(log: EventLog) -> None:
    assert list(log) == []
    assert not log.path.exists()


def test_events_come_back_in_order_as_they_were_returned(log: EventLog) -> None:
    before = time.time() - 0.001
    written = [log.append("train", step=step, name="ä\n|") for step in range(3)]
    assert list(log) == written
    assert [event["step"] for event in written] == [0, 1, 2]
    assert all(before <= event["time_unix_seconds"] <= time.time() + 0.001 for event in written)
    assert log.path.read_bytes().count(b"\n") == 3


def test_what_json_does_not_know_is_refused_and_writes_nothing(log: EventLog) -> None:
    log.append("train", step=1)
    with pytest.raises(ValueError, match="JSON compliant"):
        log.append("train", train_loss=math.nan)
    assert len(list(log)) == 1


@pytest.mark.parametrize("torn", [b'{"event": "train", "st', b"\xff\xfe\xc3", b'{"event": "a', b"[1, 2", b"nul"])
def test_a_torn_last_line_is_passed_over_and_the_next_event_stands_alone(log: EventLog, torn: bytes) -> None:
    first = log.append("first")
    with log.path.open("ab") as file:
        file.write(torn)
    assert list(log) == [first]
    second = log.append("second")
    assert list(log) == [first, second]
    assert log.path.read_bytes().splitlines()[1] == torn


@given(st.integers(min_value=0))
def test_wherever_a_kill_tears_the_file_the_whole_lines_stay(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    log = EventLog(tmp_path_factory.mktemp("events") / "events.jsonl")
    written = [log.append("train", step=step) for step in range(3)]
    content = log.path.read_bytes()
    kept = content[: cut % (len(content) + 1)]
    log.path.write_bytes(kept)
    whole = kept.count(b"\n")
    complete = whole + (len(kept) > 0 and kept.endswith(b"}"))  # only its line end is lost
    assert list(log) == written[:complete]
    last = log.append("after")
    assert list(log) == [*written[:complete], last]


@pytest.mark.parametrize("line", [b"[1]", b'"text"', b"{}", b'{"event": 3}', b"3", b""])
def test_lines_that_are_no_events_are_passed_over(log: EventLog, line: bytes) -> None:
    log.path.write_bytes(line + b"\n")
    event = log.append("train")
    assert list(log) == [event]


APPENDING = """
import sys
from pathlib import Path
from lowmem_seq.runs.events import EventLog

log = EventLog(Path(sys.argv[1]))
for number in range(100):
    log.append("train", writer=sys.argv[2], number=number, filling="x" * int(sys.argv[3]))
"""


@pytest.mark.parametrize("filling", [10, 30_000])
def test_two_processes_may_append_at_once(log: EventLog, filling: int) -> None:
    writers = [start_python(APPENDING, str(log.path), name, str(filling)) for name in ("a", "b")]
    assert [end(writer)[0] for writer in writers] == [0, 0]
    events = list(log)
    for name in ("a", "b"):
        numbers = [event["number"] for event in events if event["writer"] == name]
        assert numbers == list(range(100))
    assert len([line for line in log.path.read_bytes().splitlines() if line]) == 200
