from __future__ import annotations

import errno
import json
import math
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq import files
from lowmem_seq.disk import SystemDisk
from lowmem_seq.runs.events import LONGEST_LINE_BYTES, MOST_WAITING, EventLog
from tests.builders import NEEDS_LINKS, end, start_python


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "events.jsonl")


def test_there_are_no_events_before_the_first(log: EventLog) -> None:
    assert list(log) == []
    assert log.count_torn() == 0
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
    assert log.count_torn() == 1


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
    assert log.count_torn() == (line != b"")


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


class FullDisk(SystemDisk):
    """A disk that takes so many bytes more of what is appended."""

    def __init__(self, room: int = 0, code: int = errno.ENOSPC) -> None:
        super().__init__()
        self.room, self.code = room, code

    def append(self, path: Path, data: bytes) -> None:
        super().append(path, data[: self.room])
        self.room -= len(data)
        if self.room < 0:
            self.room = 0
            raise OSError(self.code, "the disk refuses")


@pytest.fixture
def full() -> Iterator[FullDisk]:
    disk = FullDisk()
    with files.using(disk):
        yield disk


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_events_wait_while_the_disk_refuses_and_come_in_order_afterwards(
    log: EventLog, full: FullDisk, code: int
) -> None:
    full.code = code
    written = [log.append("train", step=step) for step in range(3)]
    assert list(log) == []
    full.room = 10**6
    written.append(log.append("train", step=3))
    assert [event["step"] for event in written] == [0, 1, 2, 3]
    assert list(log) == written


def test_a_line_that_the_disk_took_a_part_of_is_written_again(
    tmp_path: Path, full: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1.5)
    line = b'{"time_unix_seconds": 1.5, "event": "first"}\n'
    for room in range(len(line)):
        log = EventLog(tmp_path / f"room for {room}.jsonl")
        full.room = room
        first = log.append("first")
        assert log.path.read_bytes() == line[:room]
        full.room = 10**6
        second = log.append("second")
        twice = room == len(line) - 1  # all but the line's end: the reader can't know that it was to come again
        assert list(log) == [first, *([first] if twice else []), second]


def test_events_that_wait_longest_are_dropped_where_too_many_wait(log: EventLog, full: FullDisk) -> None:
    for step in range(MOST_WAITING + 5):
        log.append("train", step=step)
    full.room = 10**9
    log.append("train", step=MOST_WAITING + 5)
    assert [event["step"] for event in log] == list(range(6, MOST_WAITING + 6))


def test_what_waiting_can_not_mend_is_told(log: EventLog) -> None:
    log.path.mkdir()
    with pytest.raises(OSError, match=r"events\.jsonl"):
        log.append("train")


@NEEDS_LINKS
def test_a_link_in_the_place_of_the_events_is_refused(log: EventLog, tmp_path: Path) -> None:
    target = tmp_path / "somebody's file"
    target.write_bytes(b"mine")
    log.path.symlink_to(target)
    with pytest.raises(OSError, match=r"events\.jsonl") as caught:
        log.append("train")
    assert caught.value.errno == errno.ELOOP
    assert target.read_bytes() == b"mine"


HOSTILE = {
    "a line without end": b"x" * 10**7,
    "an event without end": b'{"event": "train", "filling": "' + b"x" * 10**7 + b'"}',
    "two events on a line that is too long": b" " * LONGEST_LINE_BYTES + b'{"event": "hidden"}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"event": ' * 50_000,
    "a deep event": b'{"event": "train", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "no UTF-8": b'{"event": "\xff\xfe"}',
    "a number without end": b'{"event": "train", "step": ' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_lines_are_passed_over_and_take_little_memory(log: EventLog, kind: str) -> None:
    first = log.append("first")
    with log.path.open("ab") as file:
        file.write(HOSTILE[kind] + b"\n")
    second = log.append("second")
    tracemalloc.start()
    try:
        found = list(log)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == [first, second]
    assert log.count_torn() == 1
    assert peak_bytes < 8 * LONGEST_LINE_BYTES


def test_an_event_may_be_as_long_as_the_longest_line(log: EventLog) -> None:
    rest = len(json.dumps({"event": "train", "filling": ""}))
    for length, found in ((LONGEST_LINE_BYTES, 1), (LONGEST_LINE_BYTES + 1, 0)):
        text = json.dumps({"event": "train", "filling": "x" * (length - rest)})
        assert len(text) == length
        log.path.write_text(text + "\n")
        assert len(list(log)) == found


# Read as it grows.


def test_a_reader_reads_each_event_once(log: EventLog) -> None:
    reader = log.follow()
    assert list(reader.events()) == []
    first = log.append("first")
    assert list(reader.events()) == [first]
    assert list(reader.events()) == []
    later = [log.append("train", step=step) for step in range(3)]
    assert list(reader.events()) == later


@given(st.lists(st.integers(min_value=0, max_value=400), max_size=6))
def test_however_lines_arrive_in_pieces_no_event_is_lost_or_read_twice(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    log = EventLog(tmp_path_factory.mktemp("events") / "events.jsonl")
    written = [log.append("train", step=step, name="\u00e4") for step in range(3)]
    content = log.path.read_bytes() + b"torn {\n" + json.dumps(written[0]).encode()  # the last one lacks its end
    log.path.write_bytes(b"")
    reader, found, before = log.follow(), [], 0
    for cut in sorted({*(min(cut, len(content)) for cut in cuts), len(content)}):
        with log.path.open("ab") as file:
            file.write(content[before:cut])
        before = cut
        found += list(reader.events())
    assert found == [*written, written[0]]
    last = log.append("after")
    assert list(reader.events()) == [last]


def test_a_line_that_is_too_long_is_passed_over_while_it_grows(log: EventLog) -> None:
    reader = log.follow()
    with log.path.open("ab") as file:
        for _ in range(3):
            file.write(b"x" * (LONGEST_LINE_BYTES // 2))
            file.flush()
            assert list(reader.events()) == []
    after = log.append("after")
    assert list(reader.events()) == [after]
