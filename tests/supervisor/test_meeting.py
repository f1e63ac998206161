"""Ranks that meet on loopback, each a thread with a run folder of its own."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq.cluster.pulse import RankLost
from lowmem_seq.cluster.rank import Rank
from lowmem_seq.cluster.table import TableLine
from lowmem_seq.config import RunConfig
from lowmem_seq.errors import ClusterError
from lowmem_seq.files import write_json
from lowmem_seq.runs.folder import RunFolder, create_run
from lowmem_seq.supervisor.meeting import FAST_BYTES_PER_SECOND, Meeting
from lowmem_seq.supervisor.signals import StopSignals
from tests.builders import free_port, tiny_config
from tests.supervisor.lives import Screen

IMAGES = "ab" * 32
SETTINGS = ("cluster.form_within=20s", "cluster.lost_after=20s")
SECONDS_TO_NOTICE = 10.0
Act = Callable[["One"], None]


class Stops(StopSignals):
    """Signals that a test sends, in a thread that has none."""

    def hear(self) -> None:
        self._hear(2, None)


@dataclass
class One:
    """A rank."""

    rank: Rank
    run: RunFolder
    config: RunConfig
    stops: Stops
    screen: Screen
    meeting: Meeting

    def pack(self, images: str = IMAGES) -> None:
        write_json(self.run.data_file, {"fingerprint": images})

    def show(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.screen.shown if message["event"] == kind]


class World:
    """Ranks that are under way."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor) -> None:
        self._folder, self._pool, self.port = folder, pool, free_port()

    def rank(self, number: int, of: int, *assignments: str, **more: Any) -> One:
        rank = Rank(number, of, number, of, "127.0.0.1", self.port)
        config = tiny_config(*SETTINGS, *assignments)
        rank = replace(rank, **more)
        run = create_run(self._folder / f"{number}-{rank.attempt}", config)
        stops, screen = Stops(), Screen()
        return One(rank, run, config, stops, screen, Meeting(run, rank, config, screen, stops))

    def begin(self, one: One, act: Act) -> Future[BaseException | None]:
        """Have a rank do this, and return how its session ended."""

        def session() -> BaseException | None:
            try:
                with one.meeting:
                    act(one)
            except (KeyboardInterrupt, ClusterError, RuntimeError) as error:
                return error
            return None

        return self._pool.submit(session)

    def ends(self, ranks: Sequence[One], *acts: Act) -> list[Any]:
        """How the sessions of these ranks end, which do this all at once."""
        begun = [self.begin(one, act) for one, act in zip(ranks, acts, strict=True)]
        return [one.result(60.0) for one in begun]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ThreadPoolExecutor(4) as pool:
        yield World(tmp_path, pool)


def goes_through(one: One) -> None:
    one.meeting.knock()
    one.pack()
    one.meeting.open()
    one.meeting.wait()


def packs_until_it_is_told(one: One) -> None:
    """Meet, and be busy from there on as a packer is: until somebody ends it."""
    one.meeting.knock()
    until = time.monotonic() + SECONDS_TO_NOTICE
    while time.monotonic() < until:
        one.stops.wait(0.1)
        one.stops.raise_if_any()


def test_all_meet_and_begin_together(world: World) -> None:
    ranks = [world.rank(number, 3) for number in range(3)]
    assert world.ends(ranks, *[goes_through] * 3) == [None] * 3
    for one in ranks:
        assert one.show("forming") == [{"event": "forming", "address": f"127.0.0.1:{world.port}", "ranks": 3}]
        (met,) = [event for event in one.run.events if event["event"] == "ranks_met"]
        assert (met["rank"], len(met["machines"]), met["network_bytes_per_second"]) == (one.rank.number, 3, None)


def test_one_that_takes_long_is_waited_for_and_what_it_does_is_shown(world: World) -> None:
    def is_slow(one: One) -> None:
        one.meeting.knock()
        one.stops.wait(1.5)
        goes_on(one)

    def goes_on(one: One) -> None:
        one.pack()
        one.meeting.open()
        one.meeting.wait()

    first, second = (world.rank(number, 2, "cluster.form_within=1s") for number in range(2))
    assert world.ends([first, second], goes_through, is_slow) == [None, None]
    told = [message["ranks"] for message in first.show("waiting_for_ranks")]
    assert "rank 1 (" in told[0][0]
    assert told[0][0].endswith(") prepares its images")


def test_a_rank_that_does_not_come_is_named_in_time(world: World) -> None:
    ranks = [world.rank(number, 3, "cluster.form_within=2s") for number in range(2)]
    began = time.monotonic()
    errors = world.ends(ranks, goes_through, goes_through)
    for error in errors:
        assert isinstance(error, ClusterError)
        assert "3 processes were asked for, and rank 2 did not come within 2 s" in error.message
    assert any("--set cluster.form_within=5min" in error.hint for error in errors)
    assert time.monotonic() - began < SECONDS_TO_NOTICE


@pytest.mark.parametrize("by_itself", [False, True], ids=["asked for", "taken by itself"])
def test_a_first_rank_that_does_not_come_is_named_in_time(world: World, by_itself: bool) -> None:
    one = world.rank(1, 2, "cluster.form_within=1s", needs_fast_network=by_itself)
    (error,) = world.ends([one], goes_through)
    assert isinstance(error, ClusterError)
    assert f"rank 0 did not answer at 127.0.0.1:{world.port + 1} within 1 s" in error.message
    assert "firewall" in error.hint
    assert ("LOWMEM_SEQ_TOKEN" in error.hint) == by_itself


@pytest.mark.parametrize(
    ("assignment", "words"), [("seed=5", "another experiment"), ("steps=7", "another length")], ids=str
)
def test_who_would_train_something_else_is_told_before_anything_is_packed(
    world: World, assignment: str, words: str
) -> None:
    for error in world.ends([world.rank(0, 2), world.rank(1, 2, assignment)], goes_through, goes_through):
        assert isinstance(error, ClusterError)
        assert words in error.message


def test_who_has_other_images_is_told_before_anything_is_measured(world: World) -> None:
    def has_others(one: One) -> None:
        one.meeting.knock()
        one.pack("cd" * 32)
        one.meeting.open()
        one.meeting.wait()

    first, second = world.rank(0, 2), world.rank(1, 2)
    errors = world.ends([first, second], goes_through, has_others)
    assert all(isinstance(error, ClusterError) for error in errors)
    assert all("rank 1" in error.message and "another data" in error.message for error in errors)


def test_images_that_are_known_from_before_are_compared_at_once(world: World) -> None:
    first, second = world.rank(0, 2), world.rank(1, 2)
    first.pack()
    second.pack("cd" * 32)
    for error in world.ends([first, second], packs_until_it_is_told, packs_until_it_is_told):
        assert isinstance(error, ClusterError)
        assert "another data" in error.message


def test_a_rank_that_fails_while_others_are_busy_ends_them_at_once_with_its_words(world: World) -> None:
    def fails(one: One) -> None:
        one.meeting.knock()
        raise ClusterError("its images can't be read", "")

    began = time.monotonic()
    ranks = [world.rank(number, 3) for number in range(3)]
    _, *others = world.ends(ranks, fails, packs_until_it_is_told, packs_until_it_is_told)
    for error in others:
        assert isinstance(error, RankLost)
        assert "rank 0" in error.message
        assert "has ended: its images can't be read" in error.message
    assert time.monotonic() - began < SECONDS_TO_NOTICE


def test_a_stop_of_one_rank_is_told_to_the_others(world: World) -> None:
    def is_stopped(one: One) -> None:
        one.meeting.knock()
        one.stops.hear()
        one.stops.raise_if_any()

    stopped, lost = world.ends([world.rank(0, 2), world.rank(1, 2)], is_stopped, packs_until_it_is_told)
    assert isinstance(stopped, KeyboardInterrupt)
    assert "has ended: it was asked to stop" in lost.message


def test_a_stop_is_heard_while_others_are_waited_for(world: World) -> None:
    for number in range(2):
        one = world.rank(number, 2)
        one.stops.hear()
        (error,) = world.ends([one], goes_through)
        assert isinstance(error, KeyboardInterrupt)


def test_a_rank_that_is_gone_without_a_word_is_missed(world: World) -> None:
    def is_frozen(one: One) -> None:
        one.meeting.knock()
        assert one.meeting._pulse is not None
        one.meeting._pulse.stop()
        time.sleep(4.0)
        one.meeting._is_over = True  # and says nothing

    ranks = [world.rank(number, 2, "cluster.lost_after=2s") for number in range(2)]
    _, lost = world.ends(ranks, is_frozen, packs_until_it_is_told)
    assert isinstance(lost, RankLost)
    assert "was not heard of for" in lost.message


def test_a_first_rank_that_is_gone_takes_the_table_along(world: World) -> None:
    def is_killed(one: One) -> None:
        one.meeting.knock()
        one.meeting._close()

    _, lost = world.ends([world.rank(0, 2), world.rank(1, 2)], is_killed, packs_until_it_is_told)
    assert isinstance(lost, RankLost)
    assert "rank 0" in lost.message


def test_a_port_that_is_taken_and_one_where_somebody_else_answers_are_told(world: World) -> None:
    with socket.create_server(("127.0.0.1", world.port + 1)) as listener:
        (taken,) = world.ends([world.rank(0, 2)], goes_through)
        assert "rank 0 can't listen at 127.0.0.1" in taken.message
        assert "--master_port" in taken.hint
        begun = world.begin(world.rank(1, 2), goes_through)
        with listener.accept()[0] as caller:
            caller.sendall(b"220 mail\r\n")
            foreign: Any = begun.result(20.0)
    assert "is not rank 0 of engine mode" in foreign.message
    assert "--mode" in foreign.hint


def on_two_machines(world: World, by_itself: bool) -> list[One]:
    """Two machines with two ranks each."""
    return [
        world.rank(number, 4, local=number % 2, local_of=2, needs_fast_network=by_itself) for number in range(4)
    ]


@pytest.mark.parametrize("share", [0.5, 2.0], ids=["slow", "fast"])
@pytest.mark.parametrize("by_itself", [False, True], ids=["asked for", "taken by itself"])
def test_the_network_between_machines_is_measured_and_is_fast_where_engine_mode_was_taken_by_itself(
    world: World, monkeypatch: pytest.MonkeyPatch, share: float, by_itself: bool
) -> None:
    rate = share * FAST_BYTES_PER_SECOND
    measured: list[TableLine] = []

    def bytes_per_second(line: TableLine) -> float:
        measured.append(line)
        return rate

    monkeypatch.setattr(TableLine, "bytes_per_second", bytes_per_second)
    ranks = on_two_machines(world, by_itself)
    ends = world.ends(ranks, *[goes_through] * 4)
    assert len(measured) == 1  # by the first rank of the other machine
    (met,) = ranks[3].show("ranks_met")
    assert met["network_bytes_per_second"] == rate
    if share < 1 and by_itself:
        assert all(isinstance(error, ClusterError) for error in ends)
        refusals = [error for error in ends if "2,500 Mbit/s" in error.message and "5,000" in error.message]
        assert len(refusals) > 0
        assert "LOWMEM_SEQ_TOKEN" in refusals[0].hint
    else:
        assert ends == [None] * 4


def test_an_attempt_that_has_not_ended_yet_is_no_part_of_the_next_one(world: World) -> None:
    first, stale, second = world.rank(0, 2, attempt=1), world.rank(1, 2), world.rank(1, 2, attempt=1)
    late = world.begin(stale, packs_until_it_is_told)
    assert world.ends([first, second], goes_through, goes_through) == [None, None]
    assert isinstance(late.result(60.0), ClusterError)
