"""Machines that come back to a hub from a branch of their own, and hubs that are behind their machines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lowmem_seq.cluster import split
from lowmem_seq.cluster.hub_rounds import base_of
from lowmem_seq.cluster.hub_store import ledger_text
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.messages import (
    Base,
    Beat,
    GoAway,
    Leased,
    LedgerTold,
    Progress,
    UploadWanted,
    WeightsPiece,
    WeightsWanted,
    Welcome,
)
from tests.cluster.hubs import HOST, JOINER, LAYOUT, Stage, constant, hello_of, parcels_in, prepare
from tests.cluster.vectors import content_of, vector_of

LONE = vector_of(LAYOUT.elements, 77)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    prepare(tmp_path)
    one = Stage(tmp_path)
    one.join(HOST, JOINER)
    one.bring(HOST, one.lease(HOST), constant(1.0))
    return one


def copy_of(stage: Stage, machine: str) -> Ledger:
    """The ledger that a machine was told last."""
    return Ledger.from_json(json.loads(stage.last(machine, LedgerTold).ledger))


def goes_alone(stage: Stage, rounds: int) -> tuple[Base, Ledger]:
    """The joiner loses the hub, and trains this many leases of 100 samples by itself."""
    round_ = stage.last(JOINER, LedgerTold).base.round
    ledger = split.go_alone(copy_of(stage, JOINER), JOINER, [HOST, JOINER])
    for _ in range(rounds):
        [lease, *_] = ledger.lease(JOINER, 10, 100.0, 1.0) or ledger.leases
        assert ledger.accept(JOINER, [(lease.start, lease.end)])
    return base_of(ledger, round_), ledger


def goes_on(stage: Stage, rounds: int) -> None:
    """The hub goes on without the joiner."""
    stage.pass_by(8, lambda: stage.beat(HOST))
    for number in range(rounds):
        stage.bring(HOST, stage.lease(HOST), constant(1.0), number + 10)


def comes_back(stage: Stage, base: Base, ledger: Ledger) -> None:
    stage.forget_said()
    stage.say(JOINER, hello_of(JOINER, base=base))
    assert stage.last(JOINER, Welcome).base.branch != base.branch
    assert stage.lease(JOINER) == []
    stage.say(JOINER, LedgerTold(base, ledger_text(ledger.to_json())))


def test_where_the_hub_has_more_the_machine_adopts(stage: Stage) -> None:
    base, ledger = goes_alone(stage, 2)
    lone = ledger.accepted - 100
    goes_on(stage, 3)
    before = stage.weights
    comes_back(stage, base, ledger)
    assert stage.heard(JOINER, UploadWanted) == []
    assert stage.told("reunion") == [{"event": "reunion", "machine": JOINER, "winner": "hub", "discarded": lone}]
    told = stage.last(JOINER, LedgerTold)
    assert told.base == stage.base
    assert ledger.branch[0] not in {one.name for one in copy_of(stage, JOINER).history.branches}
    assert stage.hub.desk.ledger.standing().by_machine[JOINER].discarded == lone
    stage.bring(JOINER, [(0, 10)], constant(9.0))  # it may not bring anything before it has adopted
    assert np.array_equal(stage.weights, before)
    stage.say(JOINER, WeightsWanted(None, "weights", 0))
    [(_, whole)] = parcels_in(stage.end.said[JOINER], WeightsPiece, LAYOUT.elements)
    assert np.array_equal(content_of(whole), before)
    assert stage.lease(JOINER)


def test_where_the_machine_has_more_its_weights_become_the_base(stage: Stage) -> None:
    base, ledger = goes_alone(stage, 5)
    goes_on(stage, 1)
    before, discarded = stage.base, stage.base.accepted - 100
    comes_back(stage, base, ledger)
    assert stage.heard(JOINER, UploadWanted) == [UploadWanted(base)]
    [lease, *_] = ledger.lease(JOINER, 10, 100.0, 1.0) or ledger.leases
    assert ledger.accept(JOINER, [(lease.start, lease.end)])  # it trained on while the hub compared
    later = base_of(ledger, base.round)
    stage.say(JOINER, LedgerTold(later, ledger_text(ledger.to_json())))
    stage.forget_said()
    stage.upload(JOINER, later, LONE)
    assert np.array_equal(stage.weights, LONE)
    assert stage.told("reunion") == [
        {"event": "reunion", "machine": JOINER, "winner": JOINER, "discarded": discarded}
    ]
    assert stage.base.accepted == ledger.accepted
    assert stage.base.branch not in (before.branch, base.branch)
    assert stage.base.round > max(before.round, base.round)
    told = stage.last(JOINER, LedgerTold)
    assert told.base == stage.base
    assert ledger.branch[0] in {one.name for one in copy_of(stage, JOINER).history.branches}
    assert stage.heard(JOINER, WeightsPiece) == []
    assert stage.hub.desk.ledger.standing().by_machine[HOST].discarded == discarded
    assert stage.last(HOST, GoAway).reason == "dropped"
    stage.forget_said()
    stage.say(HOST, hello_of(HOST, base=before))
    stage.say(HOST, WeightsWanted(None, "weights", 0))
    [(at, whole)] = parcels_in(stage.end.said[HOST], WeightsPiece, LAYOUT.elements)
    assert at == stage.base
    assert np.array_equal(content_of(whole), LONE)
    assert stage.lease(HOST)
    held = [(one.range.start, one.range.end) for one in stage.last(HOST, Leased).leases]
    stage.bring(HOST, held, constant(1.0), 99)

    def beat() -> None:
        stage.beat(HOST)
        stage.beat(JOINER, "evaluating")

    stage.pass_by(16, beat)
    assert np.allclose(stage.weights, LONE + 1.0)


def test_the_winner_goes_on_with_its_leases(stage: Stage) -> None:
    base, ledger = goes_alone(stage, 3)
    given = ledger.lease(JOINER, 10, 100.0, 1.0) or ledger.leases_of(JOINER)
    comes_back(stage, base, ledger)
    stage.upload(JOINER, base, LONE)
    now = stage.hub.desk.ledger.leases_of(JOINER)
    assert [(one.id, one.start, one.end) for one in now] == [(one.id, one.start, one.end) for one in given]
    stage.say(JOINER, Beat(stage.base.round, "training", 100.0, (Progress(given[0].id, 20),)))
    assert stage.hub.desk.ledger.leases_of(JOINER)[0].reached == given[0].start + 20
    stage.bring(JOINER, [(one.start, one.end) for one in given], constant(2.0))
    assert np.allclose(stage.weights, LONE + 2.0)


def test_where_nobody_has_anything_that_the_other_lacks_nothing_is_discarded(stage: Stage) -> None:
    base, ledger = goes_alone(stage, 0)
    before = stage.base
    comes_back(stage, base, ledger)
    assert stage.told("reunion")[0]["discarded"] == 0
    assert stage.base == before
    assert stage.last(JOINER, LedgerTold).base == before


def test_a_hub_that_went_on_during_an_upload_may_win_after_all(stage: Stage) -> None:
    base, ledger = goes_alone(stage, 1)
    comes_back(stage, base, ledger)
    assert stage.heard(JOINER, UploadWanted)
    goes = stage.lease(HOST, 3.0)
    stage.bring(HOST, goes, constant(1.0), 50)
    assert stage.base.accepted > base.accepted
    stage.say(JOINER, hello_of(JOINER, base=base))
    stage.say(JOINER, LedgerTold(base, ledger_text(ledger.to_json())))
    assert stage.told("reunion")[-1]["winner"] == "hub"


def test_a_hub_behind_its_machines_takes_their_round_over(tmp_path: Path) -> None:
    """It was killed, and its last save is older than the round that the others hold."""
    prepare(tmp_path)
    first = Stage(tmp_path)
    first.join(HOST, JOINER)
    for number in range(4):
        first.bring(HOST, first.lease(HOST), constant(1.0), number + 1)
    first.hub.close()  # killed; only the first weights were saved
    held, weights = first.last(JOINER, LedgerTold), first.weights
    second = Stage(tmp_path)
    assert second.base.accepted == 0
    second.say(JOINER, hello_of(JOINER, base=held.base))
    second.say(JOINER, held)
    assert second.heard(JOINER, UploadWanted) == [UploadWanted(held.base)]
    second.upload(JOINER, held.base, weights)
    assert (second.base.accepted, second.told("reunion")[0]["discarded"]) == (400, 0)
    assert np.array_equal(second.weights, weights)
    second.say(HOST, hello_of(HOST, base=held.base))
    second.say(HOST, held)
    assert second.told("reunion")[1]["winner"] == "hub"
    assert second.told("reunion")[1]["discarded"] == 0


@pytest.mark.parametrize("text", ["", "null", "[" * 50_000, '{"format_version":9}'])
def test_a_ledger_that_is_none_drops_its_machine(stage: Stage, text: str) -> None:
    base, _ = goes_alone(stage, 1)
    stage.say(JOINER, hello_of(JOINER, base=base))
    stage.say(JOINER, LedgerTold(base, text))
    assert stage.last(JOINER, GoAway).reason == "dropped"


def test_an_upload_that_nobody_asked_for_changes_nothing(stage: Stage) -> None:
    base, _ = goes_alone(stage, 5)
    before = stage.weights
    stage.upload(JOINER, stage.base, LONE)  # it is not on another branch
    stage.say(JOINER, hello_of(JOINER, base=base))
    stage.upload(JOINER, base, LONE)
    assert stage.last(JOINER, GoAway).text == (
        "its weights can't be used: they are not those of the ledger that it told"
    )
    assert np.array_equal(stage.weights, before)
