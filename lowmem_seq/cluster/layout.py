"""Named float32 tensors as one flat vector, in an order that every machine arrives at by itself.

The tensors lie in the vector one after the other, sorted by name (by code points), each in C order and without
gaps. Two machines whose fingerprints are equal mean the same weight by the same position.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]

LAYOUT_FORMAT = 1
LARGEST_TENSORS = 10**5
LARGEST_NAME = 1000
LARGEST_DIMENSIONS = 32
"""numpy 1 takes no more."""
LARGEST_ELEMENTS = 2**31
"""8 GiB of float32: more than the laptops that this is for have."""


@dataclass(frozen=True)
class Layout:
    """Which tensor lies where in the flat vector. Made by `Layout.of` or `Layout.of_shapes`."""

    names: tuple[str, ...]
    """Sorted."""
    shapes: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    """Where each tensor begins, in elements; one more at the end: the vector's length."""

    @classmethod
    def of(cls, tensors: Mapping[str, npt.NDArray[np.generic]]) -> Layout:
        """Return the layout of float32 arrays.

        Raises:
            ValueError: one is not float32, or they are none that `of_shapes` takes.
        """
        for name, tensor in tensors.items():
            if tensor.dtype != np.float32:
                raise ValueError(f"{name} is {tensor.dtype}, and only float32 is exchanged")
        return cls.of_shapes({name: tensor.shape for name, tensor in tensors.items()})

    @classmethod
    def of_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> Layout:
        """Return the layout of tensors with these names and shapes; nothing of their size is allocated.

        The shapes may have come from another machine, as JSON: `{"head.bias": [10]}`.

        Raises:
            ValueError: a name or a shape is none, or there is more of it than any model here has.
        """
        if len(shapes) > LARGEST_TENSORS:
            raise ValueError(f"{len(shapes):,} tensors are more than the {LARGEST_TENSORS:,} that are allowed")
        for name, shape in shapes.items():
            _check(name, shape)
        names = tuple(sorted(shapes))
        sizes = [math.prod(shapes[name]) for name in names]
        starts = tuple(accumulate(sizes, initial=0))
        if starts[-1] > LARGEST_ELEMENTS:
            raise ValueError(f"{starts[-1]:,} elements are more than the {LARGEST_ELEMENTS:,} that are allowed")
        return cls(names, tuple(tuple(shapes[name]) for name in names), starts)

    @property
    def elements(self) -> int:
        """The flat vector's length."""
        return self.starts[-1]

    def fingerprint(self) -> str:
        """Return the SHA-256, in hexadecimal digits, over names, shapes and type: equal on every system.

        It is taken over lines of ASCII, each ended by a newline: `lowmem-seq layout 1 float32`, then one a tensor,
        its name as JSON, a space, and its shape as JSON without spaces.
        """
        digest = hashlib.sha256(f"lowmem-seq layout {LAYOUT_FORMAT} float32\n".encode())
        for name, shape in zip(self.names, self.shapes, strict=True):
            digest.update(f"{json.dumps(name)} {json.dumps(shape, separators=(',', ':'))}\n".encode())
        return digest.hexdigest()

    def views(self, flat: Floats) -> dict[str, Floats]:
        """Return the tensors that a flat vector holds, by name, as views into it.

        Shapes:
            flat: (elements,)

        Raises:
            ValueError: the vector has another length or type, or gaps.
        """
        self.check_flat(flat)
        spans = zip(self.names, self.shapes, self.starts[:-1], self.starts[1:], strict=True)
        return {name: flat[start:stop].reshape(shape) for name, shape, start, stop in spans}

    def flatten(self, tensors: Mapping[str, Floats], out: Floats) -> None:
        """Copy the tensors into a flat vector.

        Shapes:
            out: (elements,)

        Raises:
            ValueError: the tensors or the vector don't fit the layout; nothing was copied.
        """
        self.check(tensors)
        for name, view in self.views(out).items():
            np.copyto(view, tensors[name])

    def pieces(self, tensors: Mapping[str, Floats], start: int, stop: int) -> Iterator[tuple[slice, Floats]]:
        """Yield the parts of the tensors that lie at [start, stop) of the flat vector, as views.

        Each comes with its place, counted from `start`. The tensors must have passed `check`.

        Shapes:
            each part: (n,); the n add up to stop - start
        """
        index = bisect_right(self.starts, start) - 1
        at = start
        while at < stop:
            first, last = self.starts[index], self.starts[index + 1]
            end = min(stop, last)
            if end > at:
                flat = tensors[self.names[index]].reshape(-1)
                yield slice(at - start, end - start), flat[at - first : end - first]
            at, index = end, index + 1

    def check(self, tensors: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Make sure that tensors are those of the layout, and contiguous: what is written to a view reaches them.

        Raises:
            ValueError: names, shapes or types differ, or one is not contiguous.
        """
        if tensors.keys() != set(self.names):
            raise ValueError(f"other tensors: {', '.join(sorted(tensors.keys() ^ set(self.names))[:4])}")
        for name, shape in zip(self.names, self.shapes, strict=True):
            found = tensors[name]
            if found.shape != shape or found.dtype != np.float32:
                raise ValueError(f"{name} is {found.dtype} {found.shape}, and the layout has float32 {shape}")
            if not found.flags.c_contiguous:
                raise ValueError(f"{name} is not contiguous")

    def check_flat(self, flat: npt.NDArray[np.generic]) -> None:
        """Make sure that an array is a flat vector of the layout.

        Raises:
            ValueError: its length or type differs, or it has gaps.
        """
        if flat.shape != (self.elements,) or flat.dtype != np.float32 or not flat.flags.c_contiguous:
            raise ValueError(
                f"a contiguous float32 vector of ({self.elements},) is needed, not {flat.dtype} {flat.shape}"
            )

    def where(self, position: int) -> tuple[str, int]:
        """Return the tensor that holds the flat vector's element at `position`, and the place in it (C order)."""
        index = bisect_right(self.starts, position) - 1
        return self.names[index], position - self.starts[index]

    def load(self, into: Mapping[str, Floats], vectors: Mapping[str, Floats]) -> None:
        """Copy flat vectors by name over those that are there.

        Shapes:
            each: (elements,)

        Raises:
            ValueError: some are missing, too many, of another length or type, or not finite; nothing has changed.
        """
        if vectors.keys() != into.keys():
            raise ValueError(f"other vectors: {', '.join(sorted(vectors.keys() ^ into.keys()))}")
        for name, vector in vectors.items():
            self.check_flat(vector)
            if vector.size and not np.isfinite([vector.min(), vector.max()]).all():  # both are NaN where one is
                raise ValueError(f"{name} is not finite")
        for name, vector in vectors.items():
            np.copyto(into[name], vector)


def _check(name: object, shape: object) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= LARGEST_NAME:
        raise ValueError(f"a tensor's name must be text of 1 to {LARGEST_NAME} characters")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name!r} can't be a tensor's name: it is no Unicode text") from error
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) > LARGEST_DIMENSIONS:
        raise ValueError(f"the shape of {name} must be a list of at most {LARGEST_DIMENSIONS} sizes")
    if not all(type(size) is int and 0 <= size <= LARGEST_ELEMENTS for size in shape):
        raise ValueError(f"each size of {name} must be a whole number from 0 to {LARGEST_ELEMENTS:,}")
