"""Vectors and parcels for the tests of this room."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from lowmem_seq.cluster.compression import BLOCK, CHUNK, Chunks, Codec
from lowmem_seq.cluster.deltas import Parcel
from lowmem_seq.cluster.layout import Floats, Layout

EDGES = [1, BLOCK - 1, BLOCK, BLOCK + 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + BLOCK + 1]
"""Sizes around the ends of blocks and chunks."""

NAN = float("nan")
INFINITY = float("inf")

shapes = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name.isprintable()),
    st.lists(st.integers(0, 4), max_size=3),
    max_size=6,
)


def vector_of(size: int, seed: int = 0, spread: float = 1e-3) -> Floats:
    """Normally distributed values, (size,)."""
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def floats(*values: float) -> Floats:
    """The values as a vector."""
    return np.array(values, np.float32)


def flat_layout(elements: int) -> Layout:
    """One tensor of so many elements."""
    return Layout.of_shapes({"weight": [elements]})


def parcel_of(values: Floats, codec: Codec) -> Parcel:
    """A whole vector, compressed."""
    parcel = Parcel(Chunks(values.size, codec))
    for index in range(parcel.chunks.count):
        parcel.put(index, codec.encode(values[parcel.chunks.span(index)]))
    return parcel


def content_of(parcel: Parcel) -> Floats:
    """What a whole parcel holds, (elements,)."""
    values = np.empty(parcel.chunks.elements, np.float32)
    parcel.copy_into(values)
    return values
