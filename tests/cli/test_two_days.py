"""48 hours of events: who reads them holds no more than after an hour."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.simulated import Story, Trainer
from lowmem_seq.cli.watch import Watched
from lowmem_seq.report.status import read_status
from lowmem_seq.report.summary import summarise_all
from lowmem_seq.report.table import rows
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.folder import RunFolder

HOURS = 48
SECONDS_A_MEMORY_EVENT = 15.0
MOST_GROWTH_BYTES = 200_000


def two_days() -> Iterator[Event]:
    """What a machine writes in 48 hours that does three steps a second; its trainer dies twice an hour."""
    story = Story(
        "two days", epochs=1475, step_seconds=1 / 3, kills=tuple(1800.0 * count for count in range(1, 90))
    )
    trainer = Trainer(story)
    yield trainer.start()
    told_at = 0.0
    for event in trainer.go():
        yield event
        while trainer.active_seconds - told_at >= SECONDS_A_MEMORY_EVENT:
            told_at += SECONDS_A_MEMORY_EVENT
            at = event["time_unix_seconds"]
            memory = {"tree_bytes": 5 * 10**8, "peak_tree_bytes": 6 * 10**8, "cap_bytes": 10**9}
            yield {"time_unix_seconds": at, "event": "memory", **memory}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return [json.dumps(event) + "\n" for event in two_days()]


def held_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def test_it_is_two_days(lines: list[str]) -> None:
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert last["time_unix_seconds"] - first["time_unix_seconds"] >= HOURS * 3600
    assert len(lines) > 35_000


def test_watching_takes_no_more_memory_on_the_second_day(run: RunFolder, lines: list[str]) -> None:
    watched = Watched(run)
    tracemalloc.start()
    try:
        held = []
        for part in range(4):
            with run.events.path.open("a") as file:
                file.writelines(lines[part * len(lines) // 4 : (part + 1) * len(lines) // 4])
            watched.look()
            held.append(held_bytes())
    finally:
        tracemalloc.stop()
    assert watched.status.figures["state"] == "finished"
    assert held[3] - held[0] < MOST_GROWTH_BYTES


@pytest.mark.parametrize("read", [read_status, lambda run: rows(summarise_all([run]))], ids=["status", "report"])
def test_reading_all_of_it_takes_little_memory(
    run: RunFolder, lines: list[str], read: object, tmp_path: Path
) -> None:
    run.events.path.write_text("".join(lines))
    assert callable(read)
    tracemalloc.start()
    try:
        read(run)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2_000_000
