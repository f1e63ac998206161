"""The hub with machines that are played: rounds, leases, weights, the end. The clock goes when it is told to."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from lowmem_seq.cluster.compression import CHUNK
from lowmem_seq.cluster.layout import Floats
from lowmem_seq.cluster.messages import (
    Beat,
    Bye,
    Finished,
    GoAway,
    Leased,
    LedgerTold,
    Merged,
    Peers,
    Progress,
    Refused,
    UpdatePiece,
    WeightsPiece,
    WeightsWanted,
    Welcome,
)
from tests.cluster.hubs import (
    HOST,
    JOINER,
    LAYOUT,
    SETTINGS,
    THIRD,
    Stage,
    constant,
    hello_of,
    parcels_in,
    prepare,
    serving,
    write_start,
)
from tests.cluster.vectors import content_of, flat_layout


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    prepare(tmp_path)
    return Stage(tmp_path)


def weights_sent(stage: Stage, machine: str) -> list[Floats]:
    return [content_of(parcel) for _, parcel in parcels_in(stage.end.said[machine], WeightsPiece, LAYOUT.elements)]


def test_before_the_host_is_there_machines_are_welcomed_and_wait(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.say(JOINER, hello_of(JOINER))
    welcome = stage.last(JOINER, Welcome)
    assert (welcome.base.round, welcome.base.accepted, welcome.total, welcome.settings) == (0, 0, 1000, SETTINGS)
    assert [peer.machine for peer in welcome.peers] == [JOINER]
    stage.say(JOINER, WeightsWanted(None, "weights", 0))
    assert stage.lease(JOINER) == []
    assert stage.last(JOINER, Leased).wait_seconds == 0.5
    assert stage.heard(JOINER, WeightsPiece) == []
    start = write_start(tmp_path)
    stage.step()
    assert stage.heard(JOINER, WeightsPiece) == []  # the host has not said which tensors it has
    stage.say(HOST, hello_of(HOST))
    assert np.array_equal(weights_sent(stage, JOINER)[0], start)
    assert stage.last(JOINER, LedgerTold).base == welcome.base
    assert stage.lease(JOINER)


def test_first_weights_of_an_earlier_try_are_not_taken(tmp_path: Path) -> None:
    prepare(tmp_path, layout=flat_layout(7))
    stage = Stage(tmp_path)
    stage.say(HOST, hello_of(HOST))
    assert stage.hub.desk.rounds is None
    write_start(tmp_path)
    stage.step()
    assert stage.hub.desk.rounds is not None


def test_what_differs_is_refused_at_once_and_told(stage: Stage) -> None:
    stage.say(JOINER, hello_of(JOINER, experiment="ffffffff"))
    assert stage.last(JOINER, Refused).field == "experiment"
    assert stage.told("refused")[0]["theirs"] == "ffffffff"
    stage.join(HOST)
    assert stage.lease(HOST)
    stage.say(JOINER, WeightsWanted(None, "weights", 0))
    assert stage.heard(JOINER, WeightsPiece) == []
    assert [peer.machine for peer in stage.last(HOST, Welcome).peers] == [HOST]


def test_another_layout_is_refused_once_the_hosts_is_known(stage: Stage) -> None:
    stage.say(JOINER, hello_of(JOINER, layout=flat_layout(7)))
    assert stage.heard(JOINER, Welcome)
    stage.say(HOST, hello_of(HOST))
    assert stage.last(JOINER, Refused).field == "layout"
    stage.say(THIRD, hello_of(THIRD, layout=flat_layout(7)))
    assert stage.last(THIRD, Refused).field == "layout"
    assert stage.told("peer_lost")[0] == {
        "event": "peer_lost",
        "machine": JOINER,
        "name": "joiner",
        "cause": "refused",
    }


def test_a_machine_without_data_gets_no_work(stage: Stage) -> None:
    stage.join(HOST)
    stage.say(JOINER, hello_of(JOINER, data=None))
    stage.say(JOINER, WeightsWanted(None, "weights", 0))
    assert stage.lease(JOINER) == []


def test_a_round_merges_by_samples_and_goes_to_all(stage: Stage) -> None:
    stage.join(HOST, JOINER)
    start = stage.weights
    first, second = stage.lease(HOST, 3.0), stage.lease(JOINER)
    sizes = [sum(end - begin for begin, end in ranges) for ranges in (first, second)]
    assert sizes == [300, 100]
    stage.forget_said()
    stage.bring(HOST, first, constant(1.0))
    assert stage.base.round == 0  # the other one is waited for
    stage.clock.go_on(4.0)
    stage.bring(JOINER, second, constant(5.0))
    assert stage.base.round == 1
    assert stage.base.accepted == 400
    assert np.allclose(stage.weights, start + 2.0)
    for machine in (HOST, JOINER):
        [(base, update)] = parcels_in(stage.end.said[machine], UpdatePiece, LAYOUT.elements)
        assert base == stage.base
        assert np.allclose(content_of(update), 2.0)
        assert stage.last(machine, UpdatePiece).merged == tuple(
            sorted((Merged(HOST, 1, 300), Merged(JOINER, 1, 100)), key=lambda one: one.machine)
        )
        assert stage.last(machine, LedgerTold).base == base
    assert stage.told("round") == [
        {
            "event": "round",
            "round": 1,
            "machines": sorted([HOST, JOINER]),
            "samples": 400,
            "accepted": 400,
            "bytes_received": 2 * 4 * LAYOUT.elements,
            "bytes_sent": 2 * 4 * LAYOUT.elements,  # the weights of before
            "seconds": 4.0,
            "waited_seconds": 4.0,
        }
    ]


def test_who_did_what_is_told_once_a_round_and_at_the_end(stage: Stage) -> None:
    stage.join(HOST, JOINER)
    stage.end.bytes_received[JOINER], stage.end.bytes_sent[JOINER] = 500, 700
    first, second = stage.lease(HOST, 3.0), stage.lease(JOINER)
    stage.bring(HOST, first, constant(1.0))
    stage.bring(JOINER, second, constant(5.0))
    stage.pass_by(3, lambda: stage.beat(HOST))
    assert [(one["round"], one["accepted"]) for one in stage.told("standing")] == [(0, 0), (1, 400)]
    told = stage.told("standing")[-1]
    assert (told["cluster"], told["branch"], told["total"]) == (stage.base.cluster, stage.base.branch, 1000)
    shares = {"name": "joiner", "accepted": 100, "repeated": 0, "discarded": 0}
    assert told["machines"][JOINER] == {**shares, "bytes_received": 500, "bytes_sent": 700}
    assert told["machines"][HOST]["accepted"] == 300
    stage.end.bytes_sent[JOINER] = 900
    stage.stop()
    assert stage.told("standing")[-1]["machines"][JOINER]["bytes_sent"] == 900
    assert len(stage.told("standing")) == 3


def test_a_round_does_not_wait_for_ever_and_what_is_late_comes_next(stage: Stage) -> None:
    stage.join(HOST, JOINER)
    first, second = stage.lease(HOST), stage.lease(JOINER)
    start = stage.weights
    stage.bring(HOST, first, constant(1.0))

    def beat() -> None:
        stage.beat(HOST)
        stage.beat(JOINER, l1=int(stage.clock.now) - 1000)

    stage.pass_by(14, beat)
    assert stage.base.round == 0
    stage.pass_by(1, beat)
    assert stage.base.round == 1
    stage.bring(JOINER, second, constant(3.0))
    assert stage.base.round == 2
    assert np.allclose(stage.weights, start + 4.0)


def test_who_evaluates_or_has_no_lease_is_not_waited_for(stage: Stage) -> None:
    stage.join(HOST, JOINER, THIRD)
    first = stage.lease(HOST)
    stage.lease(JOINER)
    stage.beat(JOINER, "evaluating", l1=10)
    stage.bring(HOST, first, constant(1.0))
    assert stage.base.round == 1


def test_the_result_does_not_depend_on_who_comes_first(tmp_path: Path) -> None:
    results = []
    for order in ((HOST, JOINER), (JOINER, HOST)):
        folder = tmp_path / order[0]
        folder.mkdir()
        prepare(folder)
        stage = Stage(folder)
        stage.join(HOST, JOINER)
        ranges = {HOST: stage.lease(HOST, 3.0), JOINER: stage.lease(JOINER)}
        for machine in order:
            rng = np.random.default_rng(int(machine, 16))
            stage.bring(machine, ranges[machine], rng.standard_normal(LAYOUT.elements).astype(np.float32))
        results.append(stage.weights)
    assert np.array_equal(results[0], results[1])


def test_a_delta_that_the_ledger_refuses_drops_its_machine(stage: Stage) -> None:
    stage.join(HOST, JOINER)
    start, first, second = stage.weights, stage.lease(HOST), stage.lease(JOINER)
    stage.bring(JOINER, first, constant(9.0))
    stage.bring(HOST, first, constant(1.0))
    assert stage.last(JOINER, GoAway).reason == "dropped"
    assert np.allclose(stage.weights, start + 1.0)
    stage.bring(JOINER, second, constant(9.0), number=2)
    stage.lease(JOINER)  # unheard until it says hello, and then it begins anew
    assert stage.base.round == 1
    stage.forget_said()
    stage.say(JOINER, hello_of(JOINER, base=stage.base))
    assert stage.heard(JOINER, LedgerTold) == []
    stage.say(JOINER, WeightsWanted(None, "weights", 0))
    assert np.array_equal(weights_sent(stage, JOINER)[0], stage.weights)
    assert stage.lease(JOINER) == second  # nobody else has had it


@pytest.mark.parametrize(
    ("ranges", "change", "samples"),
    [([(0, 100)], constant(2.0**40), None), ([(0, 100)], constant(1.0)[:5], None)],
)
def test_a_delta_that_can_not_be_used_drops_its_machine(
    stage: Stage, ranges: list[tuple[int, int]], change: Floats, samples: int | None
) -> None:
    stage.join(HOST)
    start = stage.weights
    stage.lease(HOST)
    stage.bring(HOST, ranges, change)
    assert stage.last(HOST, GoAway).reason == "dropped"
    assert "its delta can't be used" in stage.last(HOST, GoAway).text
    assert np.array_equal(stage.weights, start)


def test_a_silent_machine_is_lost_and_what_it_held_goes_to_others(stage: Stage) -> None:
    stage.join(HOST, JOINER)
    held = stage.lease(JOINER, 20.0)
    assert held == [(0, 990)] or held[0][0] == 0
    stage.pass_by(4, lambda: stage.beat(HOST))
    assert stage.told("peer_lost") == []
    stage.pass_by(1, lambda: stage.beat(HOST))
    assert stage.told("peer_lost") == [
        {"event": "peer_lost", "machine": JOINER, "name": "joiner", "cause": "silent"}
    ]
    assert [peer.machine for peer in stage.last(HOST, Peers).peers] == [HOST]
    assert stage.lease(HOST)[0][0] == 0


def test_one_that_comes_back_in_time_goes_on_with_what_it_had(stage: Stage) -> None:
    stage.join(HOST, JOINER)
    held = stage.lease(JOINER)
    base = stage.base
    stage.pass_by(8, lambda: stage.beat(HOST))
    assert stage.told("peer_lost")
    stage.forget_said()
    stage.say(JOINER, hello_of(JOINER, base=base))
    assert stage.last(JOINER, LedgerTold).base == base  # it lacks nothing
    assert stage.heard(JOINER, WeightsPiece) == []
    assert stage.lease(HOST)[0][0] == held[0][1]
    stage.beat(JOINER, l0=50)
    [lease] = stage.hub.desk.ledger.leases_of(JOINER)
    assert lease.reached == 50
    stage.bring(JOINER, held, constant(1.0))
    stage.pass_by(16, lambda: stage.beat(HOST, l1=int(stage.clock.now)))
    assert stage.told("round")[-1]["machines"] == [JOINER]


def test_a_lease_whose_answer_was_lost_goes_to_others(stage: Stage) -> None:
    stage.join(HOST, JOINER)
    known = stage.lease(HOST)
    lost = stage.lease(HOST, 100.0)
    stage.say(HOST, hello_of(HOST, stage.base))
    stage.beat(HOST, l0=0)
    assert [(one.start, one.end) for one in stage.hub.desk.ledger.leases_of(HOST)] == known
    assert stage.lease(JOINER)[0][0] == lost[0][0]
    assert stage.hub.desk.ledger.faults() == []


def test_one_that_is_heard_again_without_a_new_hello_goes_on_too(stage: Stage) -> None:
    stage.join(HOST, JOINER)
    held = stage.lease(JOINER)
    stage.pass_by(8, lambda: stage.beat(HOST))
    stage.beat(JOINER, l0=20)
    assert stage.told("peer_joined")[-1]["cause"] == "heard again"
    assert [(lease.start, lease.end) for lease in stage.hub.desk.ledger.leases_of(JOINER)] == held


def test_one_that_comes_back_gets_the_updates_it_missed(stage: Stage) -> None:
    stage.join(HOST, JOINER)
    base, start = stage.base, stage.weights
    stage.end.gone.add(JOINER)
    for number in range(3):
        stage.bring(HOST, stage.lease(HOST), constant(1.0), number + 1)
    assert stage.base.round == 3
    stage.end.gone.clear()
    stage.forget_said()
    stage.say(JOINER, hello_of(JOINER, base=base))
    stage.say(JOINER, WeightsWanted(base, "weights", 0))  # asking does no harm
    updates = parcels_in(stage.end.said[JOINER], UpdatePiece, LAYOUT.elements)
    assert [one.round for one, _ in updates] == [1, 2, 3]
    assert np.allclose(start + sum(content_of(parcel) for _, parcel in updates), stage.weights)
    assert [told.base for told in stage.heard(JOINER, LedgerTold)] == [stage.base]


def test_one_that_lags_too_far_must_take_the_weights_whole(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowmem_seq.cluster.hub_rounds.KEPT_BYTES", 0)
    stage.join(HOST, JOINER)
    base = stage.base
    stage.end.gone.add(JOINER)
    for number in range(3):
        stage.bring(HOST, stage.lease(HOST), constant(1.0), number + 1)
    stage.end.gone.clear()
    stage.say(JOINER, hello_of(JOINER, base=base))
    stage.step()
    assert stage.last(JOINER, GoAway).text == "too many rounds went by"
    stage.forget_said()
    stage.say(JOINER, hello_of(JOINER, base=base))
    stage.say(JOINER, WeightsWanted(None, "weights", 0))
    assert np.array_equal(weights_sent(stage, JOINER)[0], stage.weights)


def test_one_that_begins_anew_has_nothing_in_flight(stage: Stage) -> None:
    """Its trainer died and was started again."""
    stage.join(HOST, JOINER)
    held = stage.lease(JOINER)
    stage.beat(JOINER, l0=30)
    stage.say(JOINER, hello_of(JOINER, base=stage.base))
    stage.say(JOINER, WeightsWanted(None, "weights", 0))
    assert stage.hub.desk.ledger.leases_of(JOINER) == []
    assert stage.hub.desk.ledger.standing().by_machine[JOINER].discarded == 30
    assert stage.lease(HOST)[0][0] == held[0][0]


def test_a_program_that_hangs_does_not_keep_its_leases(stage: Stage) -> None:
    stage.join(HOST, JOINER)
    stage.lease(JOINER)

    def beat() -> None:
        stage.beat(HOST)
        stage.beat(JOINER, l0=30)

    stage.pass_by(59, beat)
    assert stage.told("peer_lost") == []
    stage.pass_by(3, beat)
    assert stage.told("peer_lost")[0]["cause"] == "it gets no further"
    assert stage.lease(HOST)[0][0] == 0


def test_a_machine_whose_steps_take_minutes_does_not_hang(stage: Stage) -> None:
    stage.join(HOST)
    stage.say(JOINER, hello_of(JOINER, effective_batch=100, samples_per_second=1.0))
    stage.say(JOINER, WeightsWanted(None, "weights", 0))
    stage.lease(JOINER, 200.0)

    def beat() -> None:
        stage.beat(HOST)
        stage.say(JOINER, Beat(0, "training", 1.0, (Progress(0, 0),)))

    stage.pass_by(499, beat)
    assert stage.told("peer_lost") == []
    stage.pass_by(5, beat)
    assert stage.told("peer_lost")[0]["machine"] == JOINER


def test_a_run_has_room_for_so_many_machines(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowmem_seq.cluster.history.MOST_MACHINES", 2)
    stage.join(HOST, JOINER, THIRD)
    assert stage.last(THIRD, Refused).field == "machines"
    assert stage.lease(HOST)


def test_a_hub_that_stood_still_blames_nobody(stage: Stage) -> None:
    stage.join(HOST, JOINER)
    stage.lease(JOINER)
    stage.step(seconds=3600)
    assert stage.told("peer_lost") == []
    stage.pass_by(6)
    assert {one["machine"] for one in stage.told("peer_lost")} == {HOST, JOINER}


def test_a_delta_may_be_in_any_encoding_and_the_update_is_in_the_settings(tmp_path: Path) -> None:
    prepare(tmp_path)
    settings = msgspec.structs.replace(SETTINGS, encoding="int8", dense_rounds=1)
    stage = Stage(tmp_path, serving(settings=settings))
    stage.join(HOST)
    for number in range(2):
        stage.bring(HOST, stage.lease(HOST), constant(0.5), number + 1, encoding="int8")
    assert [piece.encoding for piece in stage.heard(HOST, UpdatePiece)] == ["fp32", "int8"]


def test_a_delta_that_broke_off_is_sent_again(tmp_path: Path) -> None:
    layout = flat_layout(CHUNK + 5)
    prepare(tmp_path, layout=layout)
    stage = Stage(tmp_path)
    stage.say(HOST, hello_of(HOST, layout=layout))
    stage.say(HOST, WeightsWanted(None, "weights", 0))
    held = stage.lease(HOST)
    stage.bring(HOST, held, constant(1.0, layout), pieces=3)
    stage.say(HOST, hello_of(HOST, base=stage.base, layout=layout))
    stage.bring(HOST, held, constant(1.0, layout))
    assert stage.base.round == 1
    assert stage.told("round")[0]["bytes_received"] == 3 * 2**18 + 4 * (CHUNK + 5)


def test_a_slow_reader_gets_the_weights_of_one_round_while_rounds_go_on(tmp_path: Path) -> None:
    layout = flat_layout(2 * CHUNK + 5)
    prepare(tmp_path, layout=layout)
    stage = Stage(tmp_path)
    stage.say(HOST, hello_of(HOST, layout=layout))
    stage.say(HOST, WeightsWanted(None, "weights", 0))
    stage.end.room[JOINER] = 3
    stage.say(JOINER, hello_of(JOINER, layout=layout))
    stage.say(JOINER, WeightsWanted(None, "weights", 0))
    stage.end.room[THIRD] = 2
    stage.say(THIRD, hello_of(THIRD, layout=layout))
    stage.say(THIRD, WeightsWanted(None, "weights", 0))
    start = stage.weights
    for number in range(3):
        stage.bring(HOST, stage.lease(HOST), constant(number + 1.0, layout), number + 1)
        stage.end.room[JOINER] = stage.end.room[THIRD] = 1
        stage.step()
    assert stage.base.round == 3
    stage.end.room.clear()
    stage.step()
    for machine in (JOINER, THIRD):
        [(base, whole)] = parcels_in(stage.end.said[machine], WeightsPiece, layout.elements)
        assert base.round == 0
        assert np.array_equal(content_of(whole), start)
        updates = parcels_in(stage.end.said[machine], UpdatePiece, layout.elements)
        assert [one.round for one, _ in updates] == [1, 2, 3]
        assert stage.last(machine, LedgerTold).base == stage.base


def test_a_second_slow_reader_begins_again_rather_than_hold_another_copy(tmp_path: Path) -> None:
    layout = flat_layout(2 * CHUNK)
    prepare(tmp_path, layout=layout)
    stage = Stage(tmp_path)
    stage.say(HOST, hello_of(HOST, layout=layout))
    stage.say(HOST, WeightsWanted(None, "weights", 0))
    for number, machine in enumerate((JOINER, THIRD)):
        stage.end.room[machine] = 3
        stage.say(machine, hello_of(machine, layout=layout))
        stage.say(machine, WeightsWanted(None, "weights", 0))
        stage.bring(HOST, stage.lease(HOST), constant(1.0, layout), number + 1)
    stage.end.room.clear()
    stage.step()
    assert [base.round for base, _ in parcels_in(stage.end.said[JOINER], WeightsPiece, layout.elements)] == [0]
    [(base, whole)] = parcels_in(stage.end.said[THIRD], WeightsPiece, layout.elements)
    assert base.round == 2
    assert np.array_equal(content_of(whole), stage.weights)


def test_a_transfer_that_broke_off_goes_on_where_its_reader_says(tmp_path: Path) -> None:
    layout = flat_layout(2 * CHUNK)
    prepare(tmp_path, layout=layout)
    stage = Stage(tmp_path)
    stage.say(HOST, hello_of(HOST, layout=layout))
    stage.say(HOST, WeightsWanted(None, "weights", 5))
    assert [piece.index for piece in stage.heard(HOST, WeightsPiece)] == [5, 6, 7]


def test_the_run_ends_when_every_sample_is_accepted(tmp_path: Path) -> None:
    prepare(tmp_path)
    stage = Stage(tmp_path, serving(total=100))
    stage.join(HOST, JOINER)
    taken = [(HOST, stage.lease(HOST)), (JOINER, stage.lease(JOINER))]
    for machine, ranges in taken:
        if ranges:
            stage.bring(machine, ranges, constant(1.0))
    number = 1
    while not stage.hub.desk.is_finished:
        number += 1
        assert number < 50
        ranges = stage.lease(HOST)
        if ranges:
            stage.bring(HOST, ranges, constant(1.0), number)
    assert stage.told("finished") == [{"event": "finished", "round": stage.base.round, "accepted": 100}]
    for machine in (HOST, JOINER):
        assert stage.heard(machine, Finished) == [Finished(stage.base)]
    assert stage.lease(HOST) == []
    stage.bring(HOST, [(0, 10)], constant(1.0), number + 1)
    assert stage.heard(HOST, GoAway) == []


def test_a_machine_that_leaves_frees_its_leases_and_what_it_brought_counts(stage: Stage) -> None:
    stage.join(HOST, JOINER)
    stage.lease(HOST)
    held = stage.lease(JOINER)
    stage.bring(JOINER, held, constant(1.0))
    stage.say(JOINER, Bye("stopped", ""))
    assert stage.told("peer_lost")[0]["cause"] == "stopped"
    stage.pass_by(15, lambda: stage.beat(HOST, l0=int(stage.clock.now)))
    assert stage.told("round")[0]["machines"] == [JOINER]


def test_peers_are_told_to_the_supervisor_when_somebody_comes_and_every_few_seconds(stage: Stage) -> None:
    stage.join(HOST)
    told = len(stage.told("peers"))
    stage.pass_by(10, lambda: stage.beat(HOST))
    assert len(stage.told("peers")) == told + 2
    assert stage.told("peers")[-1] == {
        "event": "peers",
        "peers": [
            {
                "machine": HOST,
                "name": "host",
                "device": "mps",
                "precision": "fp32",
                "effective_batch": 10,
                "samples_per_second": 100.0,
                "accepted": 0,
                "state": "training",
            }
        ],
        "round": 0,
        "accepted": 0,
        "total": 1000,
    }
    assert len(stage.heard(HOST, Peers)) >= 10
