"""What the hub keeps on disk, and how it goes on from there."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from lowmem_seq.checkpoint.store import checkpoints_in
from lowmem_seq.cluster.hub_store import Found, HubStore, Saved, Saver, read_into
from lowmem_seq.cluster.layout import Floats
from lowmem_seq.cluster.messages import Finished, GoAway, LedgerTold, WeightsPiece, WeightsWanted, Welcome
from lowmem_seq.cluster.serving import read_serving, read_start
from lowmem_seq.errors import ClusterError, DiskError, LowmemSeqError, NoCheckpointError, UsageError
from tests.cluster.clocks import Clock
from tests.cluster.hubs import (
    HOST,
    JOINER,
    LAYOUT,
    SETTINGS,
    Stage,
    constant,
    hello_of,
    parcels_in,
    prepare,
    serving,
)
from tests.cluster.vectors import content_of, vector_of

IDENTITY = {"experiment_sha256": "e0", "data_fingerprint": "d0"}


def saved(round_: int = 3) -> Saved:
    vectors = {"base": vector_of(LAYOUT.elements), "residual": vector_of(LAYOUT.elements, 1)}
    return Saved(round_, LAYOUT, vectors, {"format_version": 1})


def vector_in(found: Found, name: str) -> Floats:
    values = np.empty(LAYOUT.elements, np.float32)
    found.read_into({name: values})
    return values


def hush(event: object, message: str) -> None:
    pass


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    prepare(tmp_path)
    store = HubStore(tmp_path, IDENTITY)
    assert store.load(hush) is None
    for round_ in (3, 4, 5):
        store.save(saved(round_))
    found = store.load(hush)
    assert found is not None
    assert (found.round, found.layout, found.ledger) == (5, LAYOUT, {"format_version": 1})
    for name, vector in saved().vectors.items():
        assert np.array_equal(vector_in(found, name), vector)
    velocity = np.ones(LAYOUT.elements, np.float32)
    found.read_into({"velocity": velocity})
    assert (velocity == 1).all()
    assert len(checkpoints_in(tmp_path / "cluster" / "rounds")) == 2


def test_a_state_that_is_damaged_is_passed_over(tmp_path: Path) -> None:
    prepare(tmp_path)
    store = HubStore(tmp_path, IDENTITY)
    store.save(saved(3))
    store.save(saved(4))
    path = tmp_path / "cluster" / "rounds" / "step-00000004" / "vectors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = store.load(hush)
    assert found is not None
    assert found.round == 3
    with pytest.raises(UsageError):
        HubStore(tmp_path, {**IDENTITY, "experiment_sha256": "e1"}).load(hush)


def test_saves_are_two_minutes_apart_and_take_one_percent_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ticks = Clock(), Clock(0.0)

    class Slow:
        def save(self, state: Saved) -> None:
            ticks.go_on(3.0)

    monkeypatch.setattr("lowmem_seq.cluster.hub_store.time.monotonic", ticks)
    saver = Saver(Slow(), clock, lambda: None)  # type: ignore[arg-type]
    assert saver.is_due(1)
    saver.begin(saved(1))
    saver.wait()
    assert not saver.is_due(1)
    clock.go_on(299)
    assert not saver.is_due(2)
    assert saver.is_due(2, soon=True)
    clock.go_on(1)
    assert saver.is_due(2)
    assert not saver.is_due(1, soon=True)  # that one is on the disk


def test_a_disk_that_refuses_is_asked_again_later_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    stage = Stage(tmp_path)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(HubStore, "save", refuse)
        stage.join(HOST)
        stage.bring(HOST, stage.lease(HOST), constant(1.0))
        stage.step()
        assert [one["message"] for one in stage.told("hub_not_saved")] == ["[Errno 28] no space left"]
        stage.bring(HOST, stage.lease(HOST), constant(1.0), 2)
        assert stage.base.round == 2
        assert len(stage.told("hub_not_saved")) == 1
        with pytest.raises(DiskError):
            stage.stop()
    assert checkpoints_in(tmp_path / "cluster" / "rounds") == []


def test_a_merge_waits_for_a_save_and_everything_else_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    stage = Stage(tmp_path)
    stage.join(HOST)
    may_end = threading.Event()
    save = HubStore.save

    def slow(store: HubStore, state: Saved) -> None:
        assert may_end.wait(20)
        save(store, state)

    monkeypatch.setattr(HubStore, "save", slow)
    monkeypatch.setattr(stage.hub, "close", lambda: None)
    stage.clock.go_on(2.0)
    stage.hub._saver.wait()
    stage.hub._saver._not_before = 0.0
    stage.bring(HOST, stage.lease(HOST), constant(1.0))
    before = stage.weights
    stage.bring(HOST, stage.lease(HOST), constant(1.0), 2)
    stage.join(JOINER)
    assert [base.round for base, _ in parcels_in(stage.end.said[JOINER], WeightsPiece, LAYOUT.elements)] == [1]
    assert stage.base.round == 1
    may_end.set()
    stage.hub._saver.wait()
    stage.step()
    assert stage.base.round == 2
    found = HubStore(tmp_path, {}).load(hush)
    assert found is not None
    assert np.array_equal(vector_in(found, "base"), before)


def stop_after_two_rounds(folder: Path) -> Stage:
    prepare(folder)
    stage = Stage(folder)
    stage.join(HOST, JOINER)
    for number in range(2):
        stage.bring(HOST, stage.lease(HOST), constant(1.0), number + 1)
    stage.lease(JOINER)
    stage.stop()
    return stage


def test_a_hub_that_is_stopped_tells_all_and_goes_on_from_there(tmp_path: Path) -> None:
    before = stop_after_two_rounds(tmp_path)
    assert before.last(HOST, GoAway).reason == before.last(JOINER, GoAway).reason == "stopping"
    after = Stage(tmp_path)
    assert after.told("cluster_ready") == [{"event": "cluster_ready", "round": 2, "accepted": 200}]
    assert (after.base.round, after.base.accepted, after.base.cluster) == (2, 200, before.base.cluster)
    assert after.base.branch != before.base.branch
    assert np.array_equal(after.weights, before.weights)
    assert after.hub.desk.ledger.leases == []
    after.say(JOINER, hello_of(JOINER))  # before the host is there
    after.say(JOINER, WeightsWanted(None, "weights", 0))
    [(_, whole)] = parcels_in(after.end.said[JOINER], WeightsPiece, LAYOUT.elements)
    assert np.array_equal(content_of(whole), before.weights)
    assert after.lease(JOINER)[0][0] == 200


def test_a_stop_waits_for_a_delta_on_its_way(tmp_path: Path) -> None:
    prepare(tmp_path)
    stage = Stage(tmp_path)
    stage.join(HOST, JOINER)
    ranges = stage.lease(HOST)
    stage.lease(JOINER)
    stage.bring(HOST, ranges, constant(1.0))  # the other one is still waited for
    assert stage.base.round == 0
    stage.stop()
    assert stage.base.round == 1
    assert Stage(tmp_path).base.accepted == 100


def test_what_compression_lost_and_the_momentum_are_kept(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, encoding="int8", outer="momentum", outer_momentum=0.5)
    results = []
    for stops in (False, True):
        folder = tmp_path / str(stops)
        folder.mkdir()
        prepare(folder, serving(settings=settings))
        stage = Stage(folder, serving(settings=settings))
        for number in range(3):
            stage.join(HOST)
            stage.bring(HOST, stage.lease(HOST), vector_of(LAYOUT.elements, number), number + 1)
            if stops:
                stage.stop()
                stage = Stage(folder, serving(settings=settings))
        results.append(stage.weights)
    assert np.array_equal(results[0], results[1])


def test_a_longer_run_goes_on_and_a_shorter_one_is_refused(tmp_path: Path) -> None:
    stop_after_two_rounds(tmp_path)
    assert Stage(tmp_path, serving(total=2000)).hub.desk.ledger.total == 2000
    with pytest.raises(ClusterError, match="the run has 500 samples"):
        Stage(tmp_path, serving(total=500))


def test_a_machine_that_hosted_nothing_before_can_host_the_rest_of_a_run(tmp_path: Path) -> None:
    """Its own checkpoint has weights and a ledger; the hub's state is on the other machine."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = stop_after_two_rounds(tmp_path / "first")
    told = first.heard(JOINER, LedgerTold)[-1]
    start = prepare(tmp_path / "second")
    path = tmp_path / "second" / "cluster" / "start.json"
    path.write_text(json.dumps({"format_version": 1, "round": told.base.round, "ledger": json.loads(told.ledger)}))
    second = Stage(tmp_path / "second")
    second.say(JOINER, hello_of(JOINER, base=told.base))
    welcome = second.last(JOINER, Welcome).base
    assert (welcome.cluster, welcome.round, welcome.accepted) == (told.base.cluster, 2, 200)
    assert welcome.branch != told.base.branch
    second.join(HOST)
    assert np.array_equal(second.weights, start)
    assert second.lease(HOST)[0][0] == 200
    path.write_text("{}")
    second.stop()
    assert Stage(tmp_path / "second").base.accepted == 200  # its own state counts from now on
    with pytest.raises(NoCheckpointError, match=r"start\.json can't be read"):
        read_start(tmp_path / "second")


def test_a_hub_that_was_killed_before_the_first_round_is_the_same_cluster(tmp_path: Path) -> None:
    prepare(tmp_path)
    first = Stage(tmp_path)
    first.join(HOST)
    first.hub.close()
    assert Stage(tmp_path).base.cluster == first.base.cluster


def test_a_hub_without_a_state_that_verifies_does_not_begin(tmp_path: Path) -> None:
    stop_after_two_rounds(tmp_path)
    for path in (tmp_path / "cluster" / "rounds").glob("step-*/ledger.json"):
        path.write_text("{}")
    with pytest.raises(NoCheckpointError):
        Stage(tmp_path)


def test_who_asks_gets_what_the_run_gave(tmp_path: Path) -> None:
    prepare(tmp_path)
    stage = Stage(tmp_path, serving(total=100))
    stage.join(HOST, JOINER)
    (tmp_path / "model.safetensors").write_bytes(b"of an earlier end")
    stage.hub._average_before = stage.hub._average_stamp()
    number = 0
    while not stage.hub.desk.is_finished:
        number += 1
        assert number < 50
        ranges = stage.lease(HOST)
        if ranges:
            stage.bring(HOST, ranges, constant(1.0), number)
    assert stage.heard(JOINER, Finished)
    stage.step()
    stage.step()
    state = HubStore(tmp_path, {}).load(hush)
    assert state is not None
    assert state.round == stage.base.round  # the end is saved at once
    stage.forget_said()
    stage.say(JOINER, WeightsWanted(None, "average", 0))
    stage.step()
    assert stage.heard(JOINER, WeightsPiece) == []
    average = vector_of(LAYOUT.elements, 5)
    save_file(
        {**LAYOUT.views(average), "more": np.zeros(3, np.float32)},
        tmp_path / "model.safetensors",
    )
    stage.step()
    [(base, whole)] = parcels_in(stage.end.said[JOINER], WeightsPiece, LAYOUT.elements)
    assert base == stage.base
    assert {piece.part for piece in stage.heard(JOINER, WeightsPiece)} == {"average"}
    assert np.array_equal(content_of(whole), average)
    assert stage.heard(JOINER, GoAway) == []


def test_a_file_without_a_tensor_is_not_read(tmp_path: Path) -> None:
    save_file({"a": np.ones(3, np.float32), "b": np.ones(3, np.float64)}, tmp_path / "some.safetensors")
    values = np.zeros(3, np.float32)
    for name, wanted in (("b", values), ("c", values), ("a", np.zeros(4, np.float32))):
        with pytest.raises(NoCheckpointError, match=f"has no float32 tensor {name}"):
            read_into({"a": values, name: wanted}, tmp_path / "some.safetensors")
    assert not values.any()


def test_an_order_that_is_none_is_named(tmp_path: Path) -> None:
    prepare(tmp_path)
    assert read_serving(tmp_path) == serving()
    path = tmp_path / "cluster" / "hub.json"
    path.write_text(path.read_text().replace('"total": 1000', '"total": 0'))
    with pytest.raises(LowmemSeqError, match="does not tell a hub what to serve"):
        read_serving(tmp_path)
    path.unlink()
    with pytest.raises(LowmemSeqError, match="does not tell a hub what to serve"):
        read_serving(tmp_path)
