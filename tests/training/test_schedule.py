from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.config import RecipeConfig
from lowmem_seq.training.schedule import learning_rate

recipes = st.builds(
    RecipeConfig,
    peak_learning_rate=st.floats(1e-4, 1.0),
    final_learning_rate=st.floats(0, 1e-4),
    warmup_fraction=st.floats(0, 1),
)


def rates(recipe: RecipeConfig, total: int) -> list[float]:
    return [learning_rate(recipe, step, total) for step in range(total)]


def test_ten_steps_by_hand() -> None:
    recipe = RecipeConfig(peak_learning_rate=0.4, final_learning_rate=0.1, warmup_fraction=0.4)
    cosine = [0.1 + 0.3 * 0.5 * (1 + math.cos(math.pi * done / 6)) for done in range(1, 7)]
    assert rates(recipe, 10) == pytest.approx([0.1, 0.2, 0.3, 0.4, *cosine])
    assert cosine[2] == pytest.approx(0.25)


@given(recipes, st.integers(1, 400))
def test_the_rate_rises_to_its_peak_and_falls_to_its_end(recipe: RecipeConfig, total: int) -> None:
    values = rates(recipe, total)
    top = values.index(max(values))
    assert all(a <= b for a, b in pairwise(values[: top + 1]))
    assert all(a >= b for a, b in pairwise(values[top:]))
    assert min(values) >= 0
    assert max(values) <= recipe.peak_learning_rate * (1 + 1e-12)
    assert abs(top + 1 - recipe.warmup_fraction * total) <= 1


@given(recipes.filter(lambda recipe: recipe.warmup_fraction <= 0.9), st.integers(10, 400))
def test_the_last_step_has_the_final_rate(recipe: RecipeConfig, total: int) -> None:
    assert learning_rate(recipe, total - 1, total) == pytest.approx(recipe.final_learning_rate, abs=1e-12)


@given(st.floats(1e-4, 1.0), st.integers(1, 400))
def test_without_warm_up_the_first_step_is_already_on_the_cosine(peak: float, total: int) -> None:
    recipe = RecipeConfig(peak_learning_rate=peak, warmup_fraction=0)
    expected = 0.5 * peak * (1 + math.cos(math.pi / total))
    assert learning_rate(recipe, 0, total) == pytest.approx(expected, abs=1e-12)


def test_warm_up_over_the_whole_run_ends_at_the_peak() -> None:
    recipe = RecipeConfig(peak_learning_rate=1.0, warmup_fraction=1.0)
    assert rates(recipe, 4) == [0.25, 0.5, 0.75, 1.0]
