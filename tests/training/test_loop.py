from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.config import AugmentationConfig
from lowmem_seq.data.pack import Pack
from lowmem_seq.training.loop import mirrored_where_it_makes_sense, total_steps
from tests.builders import tiny_config


def pack_of(pack: Pack, source: str) -> Pack:
    return Pack(Path("nowhere"), pack.description.model_copy(update={"source": source}))


@pytest.mark.parametrize(
    ("asked", "source", "decided"),
    [
        (None, "mnist", False),
        (None, "fashion-mnist", True),
        (None, "cifar10", True),
        (None, "/home/me/mnist", True),
        (True, "mnist", True),
        (False, "cifar10", False),
    ],
)
def test_images_are_mirrored_as_asked_or_where_it_makes_sense(
    tiny_pack: Pack, asked: bool | None, source: str, decided: bool
) -> None:
    settings = AugmentationConfig(flip=asked, zoom=0.2)
    result = mirrored_where_it_makes_sense(settings, pack_of(tiny_pack, source))
    assert result == AugmentationConfig(flip=decided, zoom=0.2)


@given(st.integers(1, 50), st.integers(1, 10**6), st.integers(1, 2000))
def test_the_steps_of_a_run_see_every_image_so_many_times(epochs: int, images: int, batch: int) -> None:
    config = tiny_config(f"recipe.epochs={epochs}", f"recipe.effective_batch={batch}")
    steps = total_steps(config, images)
    assert (steps - 1) * batch < epochs * images <= steps * batch


def test_steps_that_were_asked_for_end_the_run() -> None:
    assert total_steps(tiny_config("steps=7"), 10**6) == 7
