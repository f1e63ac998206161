from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from lowmem_seq.cluster.compression import CHUNK
from lowmem_seq.cluster.layout import Floats, Layout
from lowmem_seq.cluster.member import Member
from lowmem_seq.cluster.member_settings import MemberSettings
from lowmem_seq.cluster.messages import Refused
from lowmem_seq.cluster.ranges import Range
from lowmem_seq.cluster.token import Token
from lowmem_seq.errors import ClusterError
from tests.cluster.pocket_hub import PocketHub, never, zeros
from tests.cluster.vectors import vector_of
from tests.cluster.wires import KEY, SECONDS_TO_ARRIVE, TOKEN, Relay

LAYOUT = Layout.of_shapes({"bias": [7], "weight": [CHUNK + 300]})
FIRST = vector_of(LAYOUT.elements)
BATCH, TOTAL = 8, 2400


@pytest.fixture
def hub() -> Iterator[PocketHub]:
    with PocketHub(LAYOUT, FIRST, TOTAL) as made:
        yield made


@pytest.fixture
def member_at() -> Iterator[Callable[..., Member]]:
    """Make members that are closed at the end."""
    made: list[Member] = []

    def make(port: int, token: Token = TOKEN) -> Member:
        settings = MemberSettings(
            token, "127.0.0.1", port, KEY, "HP", "0.1.0", "2.13.0", "3.12.1", "Linux x86_64",
            "e0e0e0e0e0e0e0e0", "d0d0d0d0d0d0d0d0", "cpu", "fp32", BATCH,
        )  # fmt: skip
        made.append(Member(settings, LAYOUT, lambda _event: None))
        return made[-1]

    yield make
    for member in made:
        member.close()


MemberAt = Callable[..., Member]


def flat_of(tensors: dict[str, Floats]) -> Floats:
    flat = np.empty(LAYOUT.elements, np.float32)
    LAYOUT.flatten(tensors, flat)
    return flat


def begin(member: Member) -> dict[str, Floats]:
    member.join(SECONDS_TO_ARRIVE)
    tensors = zeros(LAYOUT)
    member.adopt(tensors, never)
    return tensors


def step(member: Member, tensors: dict[str, Floats], ranges: list[Range]) -> None:
    """A step that takes a fifth of the way to 1."""
    for tensor in tensors.values():
        tensor += (1 - tensor) * np.float32(0.2)
    member.trained(ranges, 0.02)


def train(member: Member, tensors: dict[str, Floats], until: Callable[[], bool]) -> list[Range]:
    """Train until something is so; return all that was trained."""
    deadline = time.monotonic() + SECONDS_TO_ARRIVE
    done: list[Range] = []
    while not until():
        assert time.monotonic() < deadline
        ranges = member.take(BATCH, lambda: time.monotonic() > deadline)
        if ranges:
            step(member, tensors, ranges)
            done += ranges
            time.sleep(0.002)
        member.between_steps(tensors)
    return done


def test_a_run_of_one_machine_goes_to_its_end(hub: PocketHub, member_at: MemberAt) -> None:
    member = member_at(hub.port)
    joined = member.join(SECONDS_TO_ARRIVE)
    assert joined is not None
    assert (joined.total, joined.base.accepted, joined.settings) == (TOTAL, 0, hub.settings)
    tensors = zeros(LAYOUT)
    member.adopt(tensors, never)
    assert np.array_equal(flat_of(tensors), FIRST)
    done = train(member, tensors, lambda: member.finished)
    assert done[0] == (0, 8)
    assert [start for start, _ in done[1:]] == [end for _, end in done[:-1]]
    assert (done[-1][1], member.position) == (TOTAL, done[-1][0])
    hub.average = vector_of(LAYOUT.elements, 5)
    average = member.final_average(SECONDS_TO_ARRIVE)
    assert average is not None
    assert np.array_equal(flat_of(average), hub.average)
    member.end(tensors, "finished")
    assert np.array_equal(flat_of(tensors), hub.weights.base)
    assert abs(flat_of(tensors) - 1).max() < 0.05
    assert hub.round > 2
    assert member.bytes_received > 2 * FIRST.nbytes
    assert member.bytes_sent > FIRST.nbytes


def test_nothing_due_costs_nothing(hub: PocketHub, member_at: MemberAt) -> None:
    member = member_at(hub.port)
    tensors = begin(member)
    before = time.perf_counter()
    for _ in range(1000):
        assert not member.between_steps(tensors)
    assert time.perf_counter() - before < 0.5


def test_the_last_work_is_handed_in_before_the_leave(hub: PocketHub, member_at: MemberAt) -> None:
    member = member_at(hub.port)
    tensors = begin(member)
    step(member, tensors, member.take(BATCH, never))
    member.end(tensors, "stopped")
    assert hub.ledger.accepted == BATCH
    assert np.array_equal(flat_of(tensors), hub.weights.base)
    wait_for(lambda: len(hub.byes) == 1)
    assert hub.byes[0].reason == "stopped"


def test_the_leave_does_not_wait_for_ever(hub: PocketHub, member_at: MemberAt) -> None:
    hub.merges = False
    member = member_at(hub.port)
    tensors = begin(member)
    step(member, tensors, member.take(BATCH, never))
    before = time.monotonic()
    member.end(tensors, "stopped", wait_seconds=0.3)
    assert 0.3 <= time.monotonic() - before < 3


def test_a_stop_ends_every_wait(hub: PocketHub, member_at: MemberAt) -> None:
    member = member_at(hub.port)
    member.join(SECONDS_TO_ARRIVE)
    hub.ledger.lease("other", 8, 1e6, 100.0)
    tensors = zeros(LAYOUT)
    member.adopt(tensors, lambda: True)
    member.adopt(tensors, never)
    deadline = time.monotonic() + 0.3
    assert member.take(BATCH, lambda: time.monotonic() > deadline) == []
    assert not member.finished
    assert member.stalled_seconds >= 0.3


def test_a_machine_that_trains_something_else_hears_what(hub: PocketHub, member_at: MemberAt) -> None:
    hub.refused = Refused("data", "d0d0", "d1d1", "lowmem-seq data list")
    with pytest.raises(ClusterError, match="its data is d1d1, the host's is d0d0") as raised:
        member_at(hub.port).join(SECONDS_TO_ARRIVE)
    assert (raised.value.hint, raised.value.exit_code) == ("lowmem-seq data list", 7)


def test_another_token_is_told(hub: PocketHub, member_at: MemberAt) -> None:
    with pytest.raises(ClusterError, match="token is another one"):
        member_at(hub.port, Token(TOKEN.number ^ 1)).join(SECONDS_TO_ARRIVE)


def test_where_nobody_answers_the_time_is_over_at_last(member_at: MemberAt) -> None:
    with pytest.raises(ClusterError, match=r"no hub .* within 0.3 s: nobody answers") as raised:
        member_at(9).join(0.3)
    assert raised.value.hint


def wait_for(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_TO_ARRIVE
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_short_cut_is_no_reason_to_stop(hub: PocketHub, member_at: MemberAt) -> None:
    relay = Relay(hub.port)
    member = member_at(relay.port)
    tensors = begin(member)
    train(member, tensors, lambda: hub.round >= 2)
    relay.cut()
    train(member, tensors, lambda: len(hub.hellos) == 2)
    assert not member.alone
    assert hub.hellos[1].base is not None
    train(member, tensors, lambda: member.finished)
    member.end(tensors, "finished")
    assert np.array_equal(flat_of(tensors), hub.weights.base)
    relay.close()


def test_without_the_hub_the_run_is_ended_alone(hub: PocketHub, member_at: MemberAt) -> None:
    member = member_at(hub.port)
    tensors = begin(member)
    train(member, tensors, lambda: hub.round >= 2)
    hub.close()
    stalled = member.stalled_seconds
    done = train(member, tensors, lambda: member.finished)
    assert member.alone
    assert member.stalled_seconds - stalled < 2
    assert done[-1][1] == TOTAL
    member.end(tensors, "finished")


def test_a_checkpoint_is_enough_to_go_on_alone(hub: PocketHub, member_at: MemberAt) -> None:
    member = member_at(hub.port)
    tensors = begin(member)
    train(member, tensors, lambda: hub.round >= 2)
    vectors, saved = member.checkpoint()
    assert vectors == {}
    member.close()
    hub.close()
    again = member_at(hub.port)
    again.restore(vectors, saved)
    with pytest.raises(ClusterError, match="no hub"):
        again.join(0.2)
    joined = again.go_alone(tensors)
    assert again.alone
    assert (joined.total, joined.settings) == (TOTAL, hub.settings)
    accepted = sum(end - start for start, end in saved["ledger"]["accepted"])
    done = train(again, tensors, lambda: again.finished)
    trained = sum(end - start for start, end in done) + sum(end - start for start, end in saved["unmerged"])
    assert trained + accepted == TOTAL
    again.end(tensors, "finished")


def test_a_checkpoint_of_nothing_cannot_go_on_alone(member_at: MemberAt) -> None:
    member = member_at(9)
    _, saved = member.checkpoint()
    member.restore({}, saved)
    with pytest.raises(ClusterError, match="can't go on without the host: the checkpoint has no ledger"):
        member.go_alone(zeros(LAYOUT))


@pytest.mark.parametrize("changes", [{"format_version": 2}, {"base": 3}, {"more": 1}])
def test_a_damaged_checkpoint_is_refused(member_at: MemberAt, changes: dict[str, object]) -> None:
    _, saved = member_at(9).checkpoint()
    with pytest.raises(ValueError, match="the cluster's part"):
        member_at(9).restore({}, {**saved, **changes})


def test_who_is_restarted_takes_the_common_weights_anew(hub: PocketHub, member_at: MemberAt) -> None:
    member = member_at(hub.port)
    tensors = begin(member)
    train(member, tensors, lambda: hub.round >= 2)
    vectors, saved = member.checkpoint()
    member.close()
    again = member_at(hub.port)
    again.restore(vectors, saved)
    tensors = begin(again)
    assert hub.hellos[-1].base is not None
    assert np.array_equal(flat_of(tensors), hub.weights.base)
    train(again, tensors, lambda: again.finished)
    again.end(tensors, "finished")


def test_a_training_that_diverges_is_told(hub: PocketHub, member_at: MemberAt) -> None:
    member = member_at(hub.port)
    tensors = begin(member)
    step(member, tensors, member.take(BATCH, never))
    tensors["bias"][3] = np.nan
    with pytest.raises(Exception, match="the training diverged: element 3 of bias"):
        train(member, tensors, lambda: False)


def test_settings_show_no_secret() -> None:
    settings = MemberSettings(
        TOKEN, "h", 1, KEY, "n", "p", "t", "p", "s", "e", None, "cpu", "fp32", 1
    )  # fmt: skip
    assert KEY not in repr(settings)
    assert KEY not in repr(replace(settings, port=2))
