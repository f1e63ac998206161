from __future__ import annotations

import tracemalloc
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.cluster.compression import CHUNK, CODECS, ChunkError, Chunks, Codec, Fp32, Int8
from lowmem_seq.cluster.deltas import Parcel
from lowmem_seq.cluster.layout import Floats, Layout
from lowmem_seq.cluster.outer import LARGEST_CHANGE, MOST_SAMPLES, Contribution, OuterStep, SharedWeights
from tests.cluster.vectors import NAN, content_of, flat_layout, floats, parcel_of, vector_of

ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
DILOCO = OuterStep(rate=0.7, momentum=0.9, nesterov=True)
EXTREME = OuterStep(rate=10, momentum=0.99, nesterov=True)


def shared(base: Floats, codec: Codec | None = None, step: OuterStep | None = None) -> SharedWeights:
    return SharedWeights(flat_layout(base.size), codec or Fp32(), step or OuterStep(), base.copy())


def brought(samples: int, *values: float) -> Contribution:
    return Contribution(samples, parcel_of(floats(*values), Fp32()))


# The average


def test_deltas_are_averaged_by_their_samples() -> None:
    hub = shared(floats(10, 20, 30))
    update = hub.merge({"a": brought(3, 1, 0, 4), "b": brought(1, 5, 8, -4)})
    assert content_of(update).tolist() == [2, 2, 2]
    assert hub.base.tolist() == [12, 22, 32]


@pytest.mark.parametrize("samples", [1, 3, 12_345_679])
def test_a_delta_alone_is_its_own_average_bit_for_bit(samples: int) -> None:
    delta = vector_of(1000)
    update = shared(vector_of(1000, 1)).merge({"a": Contribution(samples, parcel_of(delta, Fp32()))})
    assert content_of(update).tobytes() == delta.tobytes()


@ALL
def test_the_update_does_not_depend_on_who_came_first(codec: Codec) -> None:
    deltas = {name: Contribution(ord(name), parcel_of(vector_of(999, ord(name)), codec)) for name in "abcd"}
    updates = {
        shared(vector_of(999), codec).merge({name: deltas[name] for name in order}).payload(0)
        for order in permutations("abcd")
    }
    assert len(updates) == 1


def test_machines_may_compress_in_different_ways() -> None:
    update = shared(floats(0, 0)).merge(
        {name: Contribution(1, parcel_of(floats(127, 1), codec)) for name, codec in CODECS.items()}
    )
    np.testing.assert_allclose(content_of(update), [127, 1], rtol=1e-6)


@ALL
@given(
    rounds=st.lists(
        st.lists(
            st.tuples(st.integers(1, 1000), st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3)),
            min_size=1,
            max_size=3,
        ),
        min_size=1,
        max_size=12,
    )
)
def test_what_the_update_lost_comes_with_later_ones(codec: Codec, rounds: list[list[Any]]) -> None:
    hub = shared(floats(0, 0, 0), codec)
    wanted, given_out = np.zeros(3), np.zeros(3)
    for deltas in rounds:
        total = sum(samples for samples, _ in deltas)
        wanted += sum(samples / total * np.array(values) for samples, values in deltas)
        update = hub.merge({str(at): brought(samples, *values) for at, (samples, values) in enumerate(deltas)})
        given_out += content_of(update)
    np.testing.assert_allclose(given_out + hub.state()["residual"], wanted, atol=1e-5)
    np.testing.assert_allclose(hub.base, given_out, atol=1e-5)
    assert np.abs(hub.state()["residual"]).max() <= {"int8": 1 / 252, "bf16": 1 / 500, "fp32": 0}[codec.name]


# The outer step


@pytest.mark.parametrize("step", [DILOCO, OuterStep(0.5, 0.8), OuterStep(rate=0.3), OuterStep(1, 0.6, True)])
def test_the_outer_step_is_that_of_torch_s_sgd(step: OuterStep) -> None:
    base = vector_of(50, 1, spread=1)
    hub = shared(base, step=step)
    weights = torch.tensor(base, requires_grad=True)
    # torch refuses Nesterov without momentum
    sgd = torch.optim.SGD([weights], lr=step.rate, momentum=step.momentum, nesterov=step.nesterov)
    for seed in range(10):
        delta = vector_of(50, seed, spread=0.1)
        hub.merge({"a": Contribution(1, parcel_of(delta, Fp32()))})
        weights.grad = torch.from_numpy(-delta)
        sgd.step()
    np.testing.assert_allclose(hub.base, weights.detach().numpy(), atol=1e-5)
    assert np.abs(hub.base - base).max() > 0.05


def test_every_chunk_has_its_own_velocity() -> None:
    hub = shared(np.zeros(CHUNK + 1, np.float32), step=OuterStep(momentum=0.5))
    for _ in range(2):
        delta = np.full(CHUNK + 1, 4, np.float32)
        delta[CHUNK] = 8
        hub.merge({"a": Contribution(1, parcel_of(delta, Fp32()))})
    assert set(hub.state()["velocity"][:CHUNK]) == {6}
    assert hub.state()["velocity"][CHUNK] == 12
    assert set(hub.base[:CHUNK]) == {10}
    assert hub.base[CHUNK] == 20


def test_without_momentum_there_is_no_velocity() -> None:
    assert sorted(shared(floats(1)).state()) == ["base", "residual"]
    assert sorted(shared(floats(1), step=DILOCO).state()) == ["base", "residual", "velocity"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rate": 0}, "the rate must be above 0"),
        ({"rate": -1}, "the rate"),
        ({"rate": 10.1}, "at most 10, not 10.1"),
        ({"rate": NAN}, "the rate"),
        ({"momentum": -0.1}, "the momentum must be from 0 to 0.99"),
        ({"momentum": 1}, "the momentum"),
        ({"momentum": NAN}, "the momentum"),
    ],
)
def test_an_outer_step_that_would_diverge_is_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OuterStep(**settings)  # type: ignore[arg-type]


@ALL
def test_the_largest_deltas_there_can_be_never_stop_the_hub(codec: Codec) -> None:
    hub = shared(np.zeros(3, np.float32), codec, EXTREME)
    largest = float(np.float32(LARGEST_CHANGE * (1 - 2.0**-20)))
    for _ in range(2000):
        hub.merge({"a": brought(1, largest, -largest, 1), "b": brought(MOST_SAMPLES, largest, -largest, 1)})
    assert all(np.isfinite(vector).all() for vector in hub.state().values())


# Checkpoints and joiners


@pytest.mark.parametrize("step", [OuterStep(), DILOCO])
def test_a_hub_that_goes_on_from_a_checkpoint_makes_the_same_updates(step: OuterStep) -> None:
    def merge(hub: SharedWeights, seed: int) -> bytes:
        return hub.merge({"a": Contribution(1, parcel_of(vector_of(500, seed), Int8()))}).payload(0)

    hub = shared(vector_of(500, spread=1), Int8(), step)
    for seed in range(3):
        merge(hub, seed)
    other = shared(np.zeros(500, np.float32), Int8(), step)
    other.load({name: vector.copy() for name, vector in hub.state().items()})
    assert [merge(other, seed) for seed in (3, 4)] == [merge(hub, seed) for seed in (3, 4)]
    assert np.array_equal(other.base, hub.base)


def test_a_state_of_another_outer_step_is_refused() -> None:
    hub = shared(floats(1, 2))
    with pytest.raises(ValueError, match="other vectors: velocity"):
        hub.load(shared(floats(3, 4), step=DILOCO).state())
    assert hub.base.tolist() == [1, 2]


def test_a_joiner_gets_the_base_bit_for_bit_though_a_round_closes_in_between() -> None:
    base = vector_of(2 * CHUNK + 3, 1, spread=1)
    hub = shared(base, Int8())
    parcel = Parcel(Chunks(base.size, Fp32()))
    parcel.put(0, hub.base_chunk(0))
    update = hub.merge({"a": Contribution(1, parcel_of(vector_of(base.size), Int8()))})
    parcel.put(1, hub.base_chunk(1))
    parcel.put(2, hub.base_chunk(2))
    joined = content_of(parcel)
    assert not np.array_equal(joined, hub.base)
    joined[parcel.chunks.span(0)] += update.read(0)
    assert joined.tobytes() == hub.base.tobytes()
    with pytest.raises(ChunkError, match="there is no chunk 3 of 3"):
        hub.base_chunk(3)


# What is refused


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (brought(0, 1, 2), "the delta of b can't be used: it is said to hold the work of 0 samples"),
        (brought(-5, 1, 2), "the work of -5 samples"),
        (brought(MOST_SAMPLES + 1, 1, 2), "the work of 9,007,199,254,740,993 samples"),
        (brought(1, 1), "it has 1 elements, not 2"),
        (brought(1, 1, -1.001 * LARGEST_CHANGE), "a weight has changed by 4.29926e[+]09"),
        (Contribution(1, Parcel(Chunks(2, Int8()))), "1 of 1 chunks are missing"),
    ],
)
def test_one_that_can_t_be_merged_changes_nothing(bad: Contribution, words: str) -> None:
    hub = shared(floats(10, 20), Int8(), DILOCO)
    hub.merge({"a": brought(1, 1, 0.003)})
    before = {name: vector.copy() for name, vector in hub.state().items()}
    with pytest.raises(ValueError, match=words):
        hub.merge({"a": brought(1, 1, 2), "b": bad})
    assert all(np.array_equal(vector, before[name]) for name, vector in hub.state().items())


def test_a_round_without_deltas_is_none() -> None:
    with pytest.raises(ValueError, match="there is no delta to merge"):
        shared(floats(1)).merge({})


def test_a_base_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a contiguous float32 vector"):
        SharedWeights(flat_layout(3), Int8(), OuterStep(), floats(1, 2))


def test_a_model_without_weights_can_be_merged() -> None:
    hub = SharedWeights(Layout.of_shapes({}), Int8(), OuterStep(), floats())
    assert hub.merge({"a": Contribution(1, Parcel(Chunks(0, Int8())))}).is_whole


# Memory


def test_a_merge_takes_a_few_chunks_beside_the_update() -> None:
    size = 8 * CHUNK
    hub = shared(np.zeros(size, np.float32), Int8(), DILOCO)
    deltas = {name: Contribution(1, parcel_of(vector_of(size), Int8())) for name in "abcd"}
    tracemalloc.start()
    try:
        update = hub.merge(deltas)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - update.held_bytes < 6 * 4 * CHUNK


@pytest.mark.parametrize(("step", "each"), [(OuterStep(), 8), (DILOCO, 12)])
def test_the_hub_holds_so_many_bytes_a_parameter(step: OuterStep, each: int) -> None:
    tracemalloc.start()
    try:
        hub = SharedWeights(flat_layout(CHUNK), Int8(), step, np.zeros(CHUNK, np.float32))
        assert tracemalloc.get_traced_memory()[1] - each * CHUNK < 10_000
    finally:
        tracemalloc.stop()
    assert sum(vector.nbytes for vector in hub.state().values()) == each * CHUNK


@pytest.mark.parametrize(("elements", "size"), [(7_593_412, 7_712_060), (54_000_000, 54_843_752)])
def test_a_delta_in_int8_takes_so_many_bytes(elements: int, size: int) -> None:
    assert Chunks(elements, Int8()).total_bytes == size
