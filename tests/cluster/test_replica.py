from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.cluster.compression import CHUNK, CODECS, Chunks, Codec, Fp32, Int8
from lowmem_seq.cluster.deltas import Parcel
from lowmem_seq.cluster.layout import Floats, Layout
from lowmem_seq.cluster.outer import Contribution, OuterStep, SharedWeights
from lowmem_seq.cluster.replica import Replica
from lowmem_seq.errors import UsageError
from tests.cluster.vectors import NAN, content_of, flat_layout, floats, parcel_of, vector_of

ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
LAYOUT = Layout.of_shapes({"bias": [], "none": [0], "weight": [20, 30]})


class Machine:
    """A replica with the weights that a trainer would have."""

    def __init__(self, codec: Codec, base: Floats, layout: Layout = LAYOUT) -> None:
        self.replica = Replica(layout, codec, base.copy())
        self.tensors = {name: view.copy() for name, view in layout.views(base).items()}
        self.codec, self.layout = codec, layout
        self.work = np.zeros(layout.elements)

    @property
    def weights(self) -> Floats:
        flat = np.empty(self.layout.elements, np.float32)
        self.layout.flatten(self.tensors, flat)
        return flat

    def train(self, seed: int) -> None:
        change = vector_of(self.layout.elements, seed)
        self.work += change
        for place, part in self.layout.pieces(self.tensors, 0, self.layout.elements):
            part += change[place]

    def delta(self) -> Parcel:
        parcel = Parcel(Chunks(self.layout.elements, self.codec))
        for index in range(parcel.chunks.count):
            parcel.put(index, self.replica.chunk(index))
        return parcel

    @property
    def residual(self) -> Floats:
        return self.replica.state()["residual"]


def machine_of(codec: Codec, *weights: float) -> Machine:
    return Machine(codec, floats(*weights), flat_layout(len(weights)))


# A round


def test_a_round_takes_the_others_work_and_keeps_what_was_done_meanwhile() -> None:
    machine = machine_of(Fp32(), 10, 20)
    machine.tensors["weight"] += floats(1, 2)
    machine.replica.snapshot(machine.tensors)
    assert content_of(machine.delta()).tolist() == [1, 2]
    machine.tensors["weight"] += floats(0.5, 0.25)  # while the delta travels
    machine.replica.receive(parcel_of(floats(4, 8), Fp32()), merged=True)
    assert machine.replica.base.tolist() == [14, 28]
    assert machine.tensors["weight"].tolist() == [11.5, 22.25]
    machine.replica.correct(machine.tensors)
    assert machine.tensors["weight"].tolist() == [14.5, 28.25]
    machine.replica.snapshot(machine.tensors)
    assert content_of(machine.delta()).tolist() == [0.5, 0.25]


def test_work_that_was_not_merged_stays_and_goes_out_later_as_it_is() -> None:
    machine = machine_of(Int8(), 10, 20)
    machine.tensors["weight"] += floats(1, 0.003)
    machine.replica.snapshot(machine.tensors)
    sent = machine.replica.chunk(0)
    machine.replica.receive(parcel_of(floats(4, 8), Fp32()), merged=False)
    assert machine.replica.in_flight
    assert machine.replica.chunk(0) == sent
    machine.replica.correct(machine.tensors)
    assert machine.tensors["weight"].tolist() == [15, np.float32(28.003)]
    assert machine.replica.chunk(0) == sent
    machine.replica.receive(parcel_of(floats(1, 0), Fp32()), merged=True)
    machine.replica.correct(machine.tensors)
    assert machine.tensors["weight"].tolist() == machine.replica.base.tolist() == [15, 28]
    assert machine.residual.tolist() == [0, pytest.approx(0.003, rel=1e-3)]


def test_a_new_snapshot_holds_the_work_that_was_not_merged() -> None:
    machine = machine_of(Fp32(), 10, 20)
    machine.tensors["weight"] += floats(1, 2)
    machine.replica.snapshot(machine.tensors)
    machine.replica.receive(parcel_of(floats(4, 8), Fp32()), merged=False)
    machine.replica.correct(machine.tensors)
    machine.tensors["weight"] += floats(1, 1)
    machine.replica.snapshot(machine.tensors)
    assert content_of(machine.delta()).tolist() == [2, 3]


def test_a_machine_that_has_nothing_to_send_follows_the_others() -> None:
    machine = machine_of(Fp32(), 10, 20)
    for _ in range(3):
        machine.replica.receive(parcel_of(floats(1, 2), Fp32()), merged=False)
    needed = machine.replica.needs_correction
    machine.replica.correct(machine.tensors)
    assert (needed, machine.replica.needs_correction) == (True, False)
    assert machine.tensors["weight"].tolist() == machine.replica.base.tolist() == [13, 26]
    machine.replica.correct(machine.tensors)
    assert machine.tensors["weight"].tolist() == [13, 26]


def test_updates_may_pile_up_before_the_weights_are_corrected() -> None:
    machine = machine_of(Fp32(), 10, 20)
    machine.tensors["weight"] += floats(1, 2)
    machine.replica.snapshot(machine.tensors)
    machine.replica.receive(parcel_of(floats(4, 8), Fp32()), merged=True)
    machine.replica.receive(parcel_of(floats(16, 32), Fp32()), merged=False)
    machine.replica.correct(machine.tensors)
    assert machine.tensors["weight"].tolist() == machine.replica.base.tolist() == [30, 60]


def test_the_weights_of_a_torch_model_are_corrected_in_place() -> None:
    model = torch.nn.Linear(3, 2)
    tensors = {name: value.detach().numpy() for name, value in model.named_parameters()}
    layout = Layout.of(tensors)
    base = np.empty(layout.elements, np.float32)
    layout.flatten(tensors, base)
    before = model.weight.detach().clone()
    replica = Replica(layout, Int8(), base)
    replica.receive(parcel_of(np.ones(8, np.float32), Fp32()), merged=False)
    replica.correct(tensors)
    assert torch.equal(model.weight.detach(), before + 1)


# Many rounds, with the hub


@ALL
@given(
    story=st.lists(st.lists(st.sampled_from(["merged", "late", "absent"]), min_size=3, max_size=3), max_size=8),
    step=st.sampled_from([OuterStep(), OuterStep(rate=0.7, momentum=0.9, nesterov=True)]),
)
def test_all_have_the_same_base_bit_for_bit_whoever_takes_part(
    codec: Codec, story: list[list[str]], step: OuterStep
) -> None:
    base = vector_of(LAYOUT.elements, 99, spread=1)
    hub = SharedWeights(LAYOUT, codec, step, base.copy())
    machines = {name: Machine(codec, base) for name in "abc"}
    for number, fates in enumerate(story):
        contributions = {}
        for (name, machine), fate in zip(machines.items(), fates, strict=True):
            machine.train(10 * number + ord(name))
            if fate != "absent":
                machine.replica.snapshot(machine.tensors)
                delta = machine.delta()
            if fate == "merged":
                contributions[name] = Contribution(ord(name) + number, delta)
        if contributions:
            update = hub.merge(contributions)
            for name, machine in machines.items():
                machine.replica.receive(update, merged=name in contributions)
                machine.train(1000 + number)
                machine.replica.correct(machine.tensors)
        for machine in machines.values():
            assert machine.replica.base.tobytes() == hub.base.tobytes()


@ALL
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_nothing_of_a_machine_s_work_is_lost_or_counted_twice(codec: Codec, fates: list[bool]) -> None:
    start = vector_of(LAYOUT.elements, 99, spread=1)
    hub = SharedWeights(LAYOUT, codec, OuterStep(), start.copy())
    machine = Machine(codec, start)
    for number, merged in enumerate(fates):
        machine.train(2 * number)
        machine.replica.snapshot(machine.tensors)
        delta = machine.delta()
        machine.train(2 * number + 1)
        if merged:
            machine.replica.receive(hub.merge({"a": Contribution(7, delta)}), merged=True)
            machine.replica.correct(machine.tensors)
    shared = hub.base.astype(np.float64) - start
    not_shared = machine.weights.astype(np.float64) - machine.replica.base
    lost = machine.residual.astype(np.float64) + hub.state()["residual"]
    np.testing.assert_allclose(shared + not_shared + lost, machine.work, atol=1e-5)
    # and so the weights are what training alone would have made of them, but for what compression owes
    owed = {"int8": 2 * 0.01 / 127, "bf16": 1e-4, "fp32": 0}[codec.name]
    np.testing.assert_allclose(machine.weights, start + machine.work, atol=1e-5 + owed)


def test_vectors_of_several_chunks_go_the_whole_way() -> None:
    layout = Layout.of_shapes({"a": [CHUNK - 5], "b": [7, 3], "c": [CHUNK + 9]})
    base = vector_of(layout.elements, 1, spread=1)
    hub = SharedWeights(layout, Int8(), OuterStep(), base.copy())
    machine = Machine(Int8(), base, layout)
    machine.train(2)
    machine.replica.snapshot(machine.tensors)
    machine.replica.receive(hub.merge({"a": Contribution(1, machine.delta())}), merged=True)
    machine.replica.correct(machine.tensors)
    assert np.array_equal(machine.replica.base, hub.base)
    np.testing.assert_allclose(machine.weights, hub.base, atol=1e-6)
    np.testing.assert_allclose(hub.base - base, machine.work, atol=2 * 0.006 / 127)


# Beginning and going on


def test_a_machine_that_goes_on_from_a_checkpoint_sends_the_same() -> None:
    base = vector_of(LAYOUT.elements, 1, spread=1)
    machine = Machine(Int8(), base)
    machine.train(1)
    machine.replica.snapshot(machine.tensors)
    machine.replica.receive(parcel_of(vector_of(LAYOUT.elements, 2), Int8()), merged=True)
    machine.replica.correct(machine.tensors)
    saved = {name: vector.copy() for name, vector in machine.replica.state().items()}
    assert sorted(saved) == ["base", "residual"]
    assert saved["residual"].any()
    other = Machine(Int8(), base)
    other.replica.snapshot(other.tensors)
    other.replica.load(saved)
    assert not other.replica.in_flight
    other.tensors = {name: tensor.copy() for name, tensor in machine.tensors.items()}
    for one in (machine, other):
        one.train(3)
        one.replica.snapshot(one.tensors)
    assert other.replica.chunk(0) == machine.replica.chunk(0)


def test_a_machine_that_comes_back_begins_at_the_base_of_the_others() -> None:
    machine = machine_of(Int8(), 10, 20)
    machine.tensors["weight"] += floats(1, 0.003)
    machine.replica.snapshot(machine.tensors)
    machine.replica.receive(parcel_of(floats(4, 8), Fp32()), merged=True)
    machine.replica.correct(machine.tensors)
    machine.replica.snapshot(machine.tensors)
    machine.replica.receive(parcel_of(floats(4, 8), Fp32()), merged=False)
    weights = machine.tensors["weight"]
    machine.replica.adopt(parcel_of(floats(0.1, 7), Fp32()), machine.tensors)
    assert weights.tolist() == machine.replica.base.tolist() == floats(0.1, 7).tolist()
    assert machine.residual.tolist() == [0, 0]
    assert not machine.replica.in_flight
    assert not machine.replica.needs_correction


def test_each_delta_may_be_sent_in_another_way() -> None:
    machine = machine_of(Fp32(), 10, 20)
    machine.tensors["weight"] += floats(1, 0.003)
    machine.replica.snapshot(machine.tensors, Int8())
    machine.replica.receive(parcel_of(floats(1, 0), Fp32()), merged=True)
    machine.replica.correct(machine.tensors)
    lost = machine.residual.copy()
    assert lost[1] == pytest.approx(0.003, rel=1e-3)
    machine.tensors["weight"] += floats(0.5, 0)
    machine.replica.snapshot(machine.tensors, Fp32())
    assert machine.replica.chunks.codec == Fp32()
    assert np.frombuffer(machine.replica.chunk(0), np.float32).tolist() == [0.5 + lost[0], lost[1]]


def test_a_machine_that_goes_on_alone_begins_at_its_own_weights() -> None:
    machine = machine_of(Int8(), 10, 20)
    machine.tensors["weight"] += floats(1, 0.003)
    machine.replica.snapshot(machine.tensors)
    machine.replica.begin_here(machine.tensors)
    assert machine.replica.base.tolist() == machine.weights.tolist() == [11, np.float32(20.003)]
    assert (machine.replica.in_flight, machine.replica.needs_correction) == (False, False)


def test_at_the_end_the_weights_are_the_base_bit_for_bit() -> None:
    machine = machine_of(Fp32(), 0.1, 20)
    machine.tensors["weight"] += floats(1, 2)
    machine.replica.receive(parcel_of(floats(0.3, 8), Fp32()), merged=False)
    machine.replica.settle(machine.tensors)
    assert machine.weights.tolist() == machine.replica.base.tolist() == floats(0.4, 28).tolist()
    assert (machine.replica.in_flight, machine.replica.needs_correction) == (False, False)


# What is refused


@ALL
def test_a_weight_that_is_not_finite_is_named(codec: Codec) -> None:
    machine = Machine(codec, vector_of(LAYOUT.elements))
    machine.tensors["weight"][1, 2] = NAN
    machine.replica.snapshot(machine.tensors)
    with pytest.raises(UsageError, match="the training diverged: element 32 of weight has changed by nan"):
        machine.replica.chunk(0)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda machine, update: machine.replica.chunk(0), "there is no delta"),
        (lambda machine, update: machine.replica.receive(update, merged=True), "there is no delta"),
        (lambda machine, update: machine.replica.receive(Parcel(update.chunks), merged=False), "1 of 1 chunks"),
        (lambda machine, update: machine.replica.adopt(Parcel(update.chunks), machine.tensors), "1 of 1 chunks"),
        (lambda machine, update: machine.replica.receive(parcel_of(floats(1), Fp32()), False), "1 elements came"),
        (lambda machine, update: machine.replica.adopt(parcel_of(floats(1), Fp32()), {}), "1 elements came"),
        (lambda machine, update: machine.replica.adopt(update, {}), "other tensors: weight"),
        (lambda machine, update: machine.replica.snapshot({}), "other tensors: weight"),
        (lambda machine, update: machine.replica.correct({}), "other tensors: weight"),
        (lambda machine, update: machine.replica.load({"base": floats(1, 2)}), "other vectors: residual"),
    ],
)
def test_what_does_not_fit_changes_nothing(act: Callable[[Machine, Parcel], None], words: str) -> None:
    machine = machine_of(Fp32(), 10, 20)
    with pytest.raises(ValueError, match=words):
        act(machine, parcel_of(floats(4, 8), Fp32()))
    assert machine.replica.base.tolist() == machine.tensors["weight"].tolist() == [10, 20]
    assert machine.residual.tolist() == [0, 0]
    assert not machine.replica.in_flight


def test_the_weights_are_corrected_before_anything_is_made_of_them() -> None:
    machine = machine_of(Fp32(), 10, 20)
    machine.replica.receive(parcel_of(floats(4, 8), Fp32()), merged=False)
    for act in (lambda: machine.replica.snapshot(machine.tensors), machine.replica.state):
        with pytest.raises(ValueError, match="the weights must be corrected for the last update"):
            act()


def test_a_delta_is_merged_once() -> None:
    machine = machine_of(Fp32(), 10, 20)
    machine.replica.snapshot(machine.tensors)
    update = parcel_of(floats(4, 8), Fp32())
    machine.replica.receive(update, merged=True)
    with pytest.raises(ValueError, match="there is no delta"):
        machine.replica.receive(update, merged=True)
    assert machine.replica.base.tolist() == [14, 28]
