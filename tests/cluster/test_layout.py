from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.cluster.layout import LARGEST_ELEMENTS, LARGEST_NAME, LARGEST_TENSORS, Floats, Layout
from tests.cluster.vectors import INFINITY, NAN, floats, shapes, vector_of

SHAPES: dict[str, list[int]] = {"head.weight": [2, 3], "head.bias": [2], "scale": [], "none": [0, 7], "ä": [1]}


def tensors_of(layout: Layout) -> dict[str, Floats]:
    """Copies of the parts of 0, 1, 2, ..."""
    views = layout.views(np.arange(layout.elements, dtype=np.float32))
    return {name: view.copy() for name, view in views.items()}


def test_tensors_lie_in_the_vector_by_name_without_gaps() -> None:
    layout = Layout.of_shapes(SHAPES)
    assert layout.names == ("head.bias", "head.weight", "none", "scale", "ä")
    assert layout.shapes == ((2,), (2, 3), (0, 7), (), (1,))
    assert layout.starts == (0, 2, 8, 8, 9, 10)
    assert layout.elements == 10
    views = layout.views(np.arange(10, dtype=np.float32))
    assert views["head.bias"].tolist() == [0, 1]
    assert views["head.weight"].tolist() == [[2, 3, 4], [5, 6, 7]]
    assert views["none"].shape == (0, 7)
    assert views["scale"].shape == ()
    assert float(views["scale"]) == 8
    assert views["ä"].tolist() == [9]


def test_names_are_sorted_by_code_points_on_every_system() -> None:
    layout = Layout.of_shapes({name: [1] for name in ("b", "B", "a.10", "a.2", "é", "z")})
    assert layout.names == ("B", "a.10", "a.2", "b", "z", "é")


@given(shapes)
def test_a_vector_holds_every_tensor(given_shapes: dict[str, list[int]]) -> None:
    layout = Layout.of_shapes(given_shapes)
    tensors = tensors_of(layout)
    assert Layout.of(tensors) == layout
    assert sum(tensor.size for tensor in tensors.values()) == layout.elements
    flat = np.full(layout.elements, -1, np.float32)
    layout.flatten(tensors, flat)
    assert flat.tolist() == list(range(layout.elements))


def test_views_are_the_vector_itself() -> None:
    layout = Layout.of_shapes(SHAPES)
    flat = np.zeros(10, np.float32)
    views = layout.views(flat)
    assert all(np.shares_memory(view, flat) for view in views.values() if view.size)
    views["scale"][...] = 7
    views["head.weight"][1, 0] = 5
    assert flat.tolist() == [0, 0, 0, 0, 0, 5, 0, 0, 7, 0]


@given(shapes, st.data())
def test_pieces_are_the_tensors_at_any_part_of_the_vector(
    given_shapes: dict[str, list[int]], data: st.DataObject
) -> None:
    layout = Layout.of_shapes(given_shapes)
    start = data.draw(st.integers(0, layout.elements))
    stop = data.draw(st.integers(start, layout.elements))
    tensors = tensors_of(layout)
    found = np.full(stop - start, -1, np.float32)
    for place, part in layout.pieces(tensors, start, stop):
        found[place] = part
        part += 100
    assert found.tolist() == list(range(start, stop))
    changed = np.concatenate([*(tensors[name].reshape(-1) for name in layout.names), floats()])
    assert changed.tolist() == [at + 100 * (start <= at < stop) for at in range(layout.elements)]


def test_what_is_written_to_pieces_of_a_torch_model_reaches_it() -> None:
    model = torch.nn.Linear(3, 2)
    tensors = {name: value.detach().numpy() for name, value in model.named_parameters()}
    layout = Layout.of(tensors)
    for place, part in layout.pieces(tensors, 0, layout.elements):
        part[...] = np.arange(place.start, place.stop)
    assert model.bias.tolist() == [0, 1]
    assert model.weight.tolist() == [[2, 3, 4], [5, 6, 7]]


def test_each_position_has_a_tensor() -> None:
    layout = Layout.of_shapes(SHAPES)
    assert [layout.where(position) for position in (0, 1, 2, 7, 8, 9)] == [
        ("head.bias", 0),
        ("head.bias", 1),
        ("head.weight", 0),
        ("head.weight", 5),
        ("scale", 0),
        ("ä", 0),
    ]


# Pinned: two versions that take it over other bytes refuse each other. sha256sum gave these of the text.

PINNED = "12aeff378d3dcbb7aa98ba7c50382b2712bff93d34c36fa0488ce8b5dfd0b4f0"
PINNED_EMPTY = "2daaa7f0df221f083c0808b441e11e868b339e27b456121392506bac08c5d3db"


def test_the_fingerprint_is_pinned() -> None:
    assert Layout.of_shapes(SHAPES).fingerprint() == PINNED
    assert Layout.of_shapes({}).fingerprint() == PINNED_EMPTY


def test_the_fingerprint_does_not_depend_on_the_order_of_the_tensors() -> None:
    assert Layout.of_shapes(dict(reversed(SHAPES.items()))).fingerprint() == PINNED


@pytest.mark.parametrize(
    "other",
    [
        {**SHAPES, "scale": [1]},
        {**SHAPES, "head.weight": [3, 2]},
        {**SHAPES, "none": [7, 0]},
        {**SHAPES, "more": []},
        {("Scale" if name == "scale" else name): shape for name, shape in SHAPES.items()},
        {name: shape for name, shape in SHAPES.items() if name != "none"},
    ],
)
def test_other_tensors_have_another_fingerprint(other: dict[str, list[int]]) -> None:
    assert Layout.of_shapes(other).fingerprint() != PINNED


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"": [1]}, "a tensor's name must be text of 1 to 1000 characters"),
        ({"x" * (LARGEST_NAME + 1): [1]}, "a tensor's name must be text"),
        ({3: [1]}, "a tensor's name must be text"),
        ({"\ud800": [1]}, "can't be a tensor's name"),
        ({"x": "12"}, "must be a list"),
        ({"x": 3}, "must be a list"),
        ({"x": [1] * 33}, "at most 32 sizes"),
        ({"x": [-1]}, "must be a whole number from 0"),
        ({"x": [2.0]}, "must be a whole number"),
        ({"x": [True]}, "must be a whole number"),
        ({"x": [None]}, "must be a whole number"),
        ({"x": [LARGEST_ELEMENTS + 1, 0]}, "must be a whole number"),
        ({"x": [LARGEST_ELEMENTS], "y": []}, "2,147,483,649 elements are more than the 2,147,483,648"),
        ({"x": [LARGEST_ELEMENTS] * 32}, "elements are more than"),
        ({str(number): [1] for number in range(LARGEST_TENSORS + 1)}, "100,001 tensors are more than"),
    ],
)
def test_what_no_model_has_is_refused(wrong: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Layout.of_shapes(wrong)


def test_the_largest_layout_allocates_nothing_of_its_size() -> None:
    tracemalloc.start()
    try:
        assert Layout.of_shapes({"x": [LARGEST_ELEMENTS // 2, 2]}).elements == LARGEST_ELEMENTS
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int32])
def test_only_float32_is_exchanged(kind: type) -> None:
    with pytest.raises(ValueError, match=r"x is .*, and only float32 is exchanged"):
        Layout.of({"x": np.zeros(3, kind)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("b"), "other tensors: b"),
        (lambda tensors: tensors.update(c=floats(1)), "other tensors: c"),
        (lambda tensors: tensors.update(a=floats(1, 2)), r"a is float32 \(2,\), and .* float32 \(2, 3\)"),
        (lambda tensors: tensors.update(a=np.zeros((2, 3))), "a is float64"),
        (lambda tensors: tensors.update(a=np.zeros((3, 2), np.float32).T), "a is not contiguous"),
    ],
)
def test_other_tensors_are_refused_before_any_is_copied(
    change: Callable[[dict[str, Any]], object], words: str
) -> None:
    layout = Layout.of_shapes({"a": [2, 3], "b": []})
    tensors: dict[str, Any] = tensors_of(layout)
    change(tensors)
    flat = np.full(7, -1, np.float32)
    with pytest.raises(ValueError, match=words):
        layout.flatten(tensors, flat)
    assert flat.tolist() == [-1] * 7


@pytest.mark.parametrize("wrong", [np.zeros(6, np.float32), np.zeros(7), np.zeros((7, 1), np.float32)])
def test_other_vectors_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"a contiguous float32 vector of \(7,\) is needed"):
        Layout.of_shapes({"a": [7]}).views(wrong)


def test_a_vector_with_gaps_is_refused() -> None:
    with pytest.raises(ValueError, match="a contiguous"):
        Layout.of_shapes({"a": [7]}).views(np.zeros(14, np.float32)[::2])


def test_vectors_are_loaded_over_those_that_are_there() -> None:
    layout = Layout.of_shapes({"a": [3]})
    into = {"base": vector_of(3), "residual": vector_of(3)}
    kept = into["base"]
    layout.load(into, {"residual": floats(1, 2, 3), "base": floats(4, 5, 6)})
    assert kept.tolist() == [4, 5, 6]
    assert into["residual"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        ({"base": floats(1, 2)}, "other vectors: residual"),
        ({"base": floats(1, 2), "residual": floats(1, 2), "more": floats(1, 2)}, "other vectors: more"),
        ({"base": floats(1, 2), "residual": floats(1)}, "a contiguous"),
        ({"base": floats(1, 2), "residual": np.zeros(2)}, "a contiguous"),
        ({"base": floats(1, 2), "residual": floats(1, NAN)}, "residual is not finite"),
        ({"base": floats(1, 2), "residual": floats(INFINITY, 1)}, "residual is not finite"),
        ({"base": floats(1, 2), "residual": floats(-INFINITY, 1)}, "residual is not finite"),
    ],
)
def test_wrong_vectors_are_refused_before_any_is_loaded(vectors: Mapping[str, Any], words: str) -> None:
    into = {"base": floats(7, 7), "residual": floats(8, 8)}
    with pytest.raises(ValueError, match=words):
        Layout.of_shapes({"a": [2]}).load(into, vectors)
    assert [vector.tolist() for vector in into.values()] == [[7, 7], [8, 8]]


def test_a_layout_without_elements_has_an_empty_vector() -> None:
    nothing: list[dict[str, list[int]]] = [{}, {"none": [3, 0]}]
    for layout in map(Layout.of_shapes, nothing):
        assert layout.elements == 0
        layout.load({"base": floats()}, {"base": floats()})
        assert list(layout.pieces(layout.views(floats()), 0, 0)) == []
