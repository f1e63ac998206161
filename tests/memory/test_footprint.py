from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.config import load_preset, preset_names, validate
from lowmem_seq.memory.footprint import (
    CATEGORIES,
    Facts,
    Footprint,
    held_without_images,
    layer_shares,
    make_footprint,
)
from lowmem_seq.models import create_model

FACTS = Facts(
    device="cpu",
    precision="bf16",
    layers=7,
    libraries_bytes=240,
    weights_bytes=30,
    average_bytes=30,
    image_size=2,
    train_images=100,
    validation_images=10,
    test_images=20,
)


def test_each_category_is_what_the_shapes_say_and_the_rest_is_activations() -> None:
    assert make_footprint(FACTS, micro_batch=3, workers=2, peak_bytes=1000, supervisor_bytes=40) == Footprint(
        libraries_bytes=240,
        weights_bytes=30,
        gradients_bytes=60,
        optimizer_bytes=60,
        average_bytes=30,
        data_bytes=3 * 2 * 4 * 15,
        activations_bytes=220,
        supervisor_bytes=40,
    )


@given(st.integers(0, 2000), st.integers(1, 64), st.integers(1, 4))
def test_the_categories_sum_up_to_what_was_measured(peak: int, micro_batch: int, workers: int) -> None:
    footprint = make_footprint(FACTS, micro_batch, workers, peak, supervisor_bytes=40)
    assert footprint.total_bytes == peak + 40
    assert min(vars(footprint).values()) >= 0


def test_categories_have_names_for_people() -> None:
    assert next(iter(CATEGORIES.items())) == ("libraries_bytes", "libraries")
    assert set(CATEGORIES) == set(vars(Footprint()))


def test_a_step_on_no_images_holds_weights_gradients_and_the_optimizer() -> None:
    assert held_without_images(FACTS, workers=2) == 240 + 30 * (1 + 2 + 2) + 30


@pytest.mark.parametrize("name", preset_names())
def test_there_is_a_share_for_every_layer_and_the_first_stage_has_the_most(name: str) -> None:
    config = validate(load_preset(name))
    shares = layer_shares(config.model, config.data.image_size)
    assert len(shares) == create_model(name, num_classes=4).layer_count
    assert sum(shares) == pytest.approx(1)
    assert list(shares) == sorted(shares, reverse=True)
