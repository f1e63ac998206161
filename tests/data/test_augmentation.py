from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from torch import Tensor

from lowmem_seq.config import AugmentationConfig
from lowmem_seq.data.augmentation import (
    AUGMENTATION_DRAWS,
    BRIGHTNESS,
    CONTRAST,
    ERASE,
    ERASE_SIZE,
    ERASE_X,
    ERASE_Y,
    FLIP,
    MIX_KIND,
    MIX_SHARE,
    MIX_X,
    MIX_Y,
    MIXING_DRAWS,
    ROTATE,
    SATURATION,
    SHIFT_X,
    SHIFT_Y,
    ZOOM,
    augment,
    mix,
    normalise,
)

OFF = AugmentationConfig(flip=False, crop_padding=0)
EVERYTHING = AugmentationConfig(flip=True, crop_padding=3, rotate_degrees=20, zoom=0.3, colour=0.4, erase=0.5)
CLASSES = 4


def changed(**settings: float) -> AugmentationConfig:
    """Only these changes, all others off."""
    return structs.replace(OFF, **settings)


def pictures(count: int = 5, height: int = 12, width: int = 12) -> Tensor:
    return torch.randn(count, height, width, 3, generator=torch.Generator().manual_seed(0))


def draws(columns: Mapping[int, float], count: int = 5, width: int = AUGMENTATION_DRAWS) -> Tensor:
    """Draws of one half, which change nothing, but for these columns: (count, width)."""
    values = torch.full((count, width), 0.5)
    for column, value in columns.items():
        values[:, column] = value
    return values


def random_draws(count: int, columns: int = AUGMENTATION_DRAWS) -> Tensor:
    return torch.rand(count, columns, generator=torch.Generator().manual_seed(1))


def test_bytes_are_brought_to_mean_zero_and_deviation_one() -> None:
    mean, deviation = torch.tensor([0.2, 0.5, 0.6]), torch.tensor([0.1, 0.25, 0.5])
    images = torch.tensor([[[[51, 255, 0]]]], dtype=torch.uint8)  # (1, 1, 1, 3)
    brought = normalise(images, mean, deviation)
    torch.testing.assert_close(brought, torch.tensor([[[[0.0, 2.0, -1.2]]]]), atol=1e-6, rtol=0)
    assert brought.dtype == torch.float32


@given(st.integers(1, 4), st.integers(8, 20), st.integers(8, 20))
def test_with_everything_off_nothing_changes(count: int, height: int, width: int) -> None:
    images = pictures(count, height, width)
    assert torch.equal(augment(images, random_draws(count), OFF), images)


@pytest.mark.parametrize("settings", [changed(flip=True), changed(crop_padding=3), EVERYTHING])
def test_images_keep_their_shape_and_type_and_the_input_its_values(settings: AugmentationConfig) -> None:
    images = pictures(3, 12, 16)
    before = images.clone()
    result = augment(images, random_draws(3), settings)
    assert (result.shape, result.dtype) == (images.shape, torch.float32)
    assert result.isfinite().all()
    assert torch.equal(images, before)


@pytest.mark.parametrize("settings", [changed(flip=True, crop_padding=2), EVERYTHING])
def test_draws_in_the_middle_change_nothing(settings: AugmentationConfig) -> None:
    images = pictures()
    torch.testing.assert_close(augment(images, draws({ERASE: 0.9}), settings), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("also", [{}, {"rotate_degrees": 10.0}])
def test_the_lower_half_of_the_draws_is_mirrored(also: dict[str, float]) -> None:
    images = pictures()
    column = torch.tensor([0.0, 0.49, 0.5, 0.51, 0.99])
    values = draws({})
    values[:, FLIP] = column
    expected = torch.where((column < 0.5)[:, None, None, None], images.flip(2), images)
    torch.testing.assert_close(augment(images, values, changed(flip=True, **also)), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(augment(images, values, changed(**also)), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("x", "y"), [(0, 0), (0.5, 0.5), (1 - 2**-24, 0), (0, 1 - 2**-24), (1 - 2**-24, 1 - 2**-24)]
)
def test_a_crop_shifts_by_whole_pixels_and_fills_with_the_mean(x: float, y: float) -> None:
    pad, side = 3, 12
    images = pictures()
    right, down = pad - int(x * (2 * pad + 1)), pad - int(y * (2 * pad + 1))
    canvas = torch.zeros(5, side + 2 * pad, side + 2 * pad, 3)
    canvas[:, pad + down : pad + down + side, pad + right : pad + right + side] = images
    expected = canvas[:, pad : pad + side, pad : pad + side]
    assert torch.equal(augment(images, draws({SHIFT_X: x, SHIFT_Y: y}), changed(crop_padding=pad)), expected)


def test_every_offset_of_a_crop_is_as_likely() -> None:
    pad, count = 2, 1000
    values = draws({}, count)
    values[:, SHIFT_X] = torch.arange(count) / count
    ramp = torch.arange(1.0, 9.0)[None, None, :, None].expand(count, 8, 8, 3)
    shifts = augment(ramp, values, changed(crop_padding=pad))[:, 4, 4, 0] - 5.0
    assert torch.bincount((shifts + pad).long()).tolist() == [200] * 5


def test_a_half_turn_turns_by_half() -> None:
    images = pictures()
    turned = augment(images, draws({ROTATE: 0.0}), changed(rotate_degrees=180))
    torch.testing.assert_close(turned, images.flip(1, 2), atol=1e-4, rtol=0)


def test_a_quarter_turn_goes_one_way_for_low_draws_and_the_other_for_high_ones() -> None:
    images = pictures()
    low, high = (augment(images, draws({ROTATE: draw}), changed(rotate_degrees=180)) for draw in (0.25, 0.75))
    turned = {turns: torch.rot90(images, turns, (1, 2)) for turns in (1, 3)}
    first = 1 if torch.allclose(low, turned[1], atol=1e-4) else 3
    torch.testing.assert_close(low, turned[first], atol=1e-4, rtol=0)
    torch.testing.assert_close(high, turned[4 - first], atol=1e-4, rtol=0)


def test_a_warp_shifts_by_up_to_the_padding() -> None:
    images = pictures()
    settings = changed(crop_padding=3, zoom=0.1)
    shifted = augment(images, draws({SHIFT_X: 1.0, SHIFT_Y: 0.0}), settings)
    torch.testing.assert_close(shifted[:, 3:, :-3], images[:, :-3, 3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(shifted[:, :3], torch.zeros(5, 3, 12, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(shifted[:, :, -3:], torch.zeros(5, 12, 3, 3), atol=1e-5, rtol=0)


def test_zoom_shows_less_for_low_draws_and_more_for_high_ones() -> None:
    images = torch.ones(2, 32, 32, 3)
    settings = changed(zoom=math.log(2))
    magnified = augment(images, draws({ZOOM: 0.0}, 2), settings)
    torch.testing.assert_close(magnified, images, atol=1e-5, rtol=0)
    shrunk = augment(images, draws({ZOOM: 1.0}, 2), settings)
    torch.testing.assert_close(shrunk.mean(), torch.tensor(0.25), atol=0.02, rtol=0)


def test_contrast_keeps_the_mean_and_scales_what_departs_from_it() -> None:
    images = pictures()
    mean = images.mean((1, 2, 3), keepdim=True)
    result = augment(images, draws({CONTRAST: 1.0}), changed(colour=0.4))
    torch.testing.assert_close(result - mean, (images - mean) * math.exp(0.4), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("draw", "shift"), [(0.0, -0.4), (1.0, 0.4)])
def test_brightness_shifts_all_pixels_alike(draw: float, shift: float) -> None:
    images = pictures()
    result = augment(images, draws({BRIGHTNESS: draw}), changed(colour=0.4))
    torch.testing.assert_close(result, images + shift, atol=1e-5, rtol=0)


def test_saturation_keeps_the_grey_and_scales_the_colour() -> None:
    images = pictures()
    grey = images.mean(3, keepdim=True)
    result = augment(images, draws({SATURATION: 0.0}), changed(colour=0.4))
    torch.testing.assert_close(result - grey, (images - grey) * math.exp(-0.4), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "side"), [(0.0, 4), (1.0, 10)])
def test_a_square_is_erased_where_the_draw_is_under_the_share(size: float, side: int) -> None:
    images = pictures(4, 20, 20)
    values = draws({ERASE_SIZE: size}, 4)
    values[:, ERASE] = torch.tensor([0.0, 0.29, 0.3, 0.99])
    result = augment(images, values, changed(erase=0.3))
    assert (result == 0).all(3).sum((1, 2)).tolist() == [side**2, side**2, 0, 0]
    first = (20 - side) // 2
    assert (result[0, first : first + side, first : first + side] == 0).all()
    assert torch.equal(result[2:], images[2:])


def test_an_erased_square_at_the_edge_is_cut_off_there() -> None:
    images = pictures(1, 20, 20)
    result = augment(
        images, draws({ERASE: 0.0, ERASE_SIZE: 0.0, ERASE_X: 0.0, ERASE_Y: 0.0}, 1), changed(erase=1.0)
    )
    assert (result == 0).all(3).sum() == 2 * 2
    assert (result[0, :2, :2] == 0).all()


settings_of_any_kind = st.builds(
    AugmentationConfig,
    flip=st.booleans(),
    crop_padding=st.integers(0, 4),
    rotate_degrees=st.sampled_from([0.0, 15.0, 180.0]),
    zoom=st.sampled_from([0.0, 0.3]),
    colour=st.sampled_from([0.0, 0.4]),
    erase=st.sampled_from([0.0, 0.5, 1.0]),
)


@given(settings_of_any_kind, st.integers(1, 6), st.integers(8, 16))
def test_an_image_is_changed_alike_in_whichever_batch_it_is(
    settings: AugmentationConfig, count: int, width: int
) -> None:
    images, values = pictures(count, 10, width), random_draws(count)
    whole = augment(images, values, settings)
    for place in range(count):
        alone = augment(images[place : place + 1], values[place : place + 1], settings)
        torch.testing.assert_close(alone[0], whole[place], atol=1e-6, rtol=0)


# Mixing.


def one_hot(count: int) -> Tensor:
    return torch.eye(CLASSES)[torch.arange(count) % CLASSES]  # (count, CLASSES)


def test_mixup_blends_with_the_partner_and_keeps_the_larger_share() -> None:
    images, targets, partners = pictures(4), one_hot(4), torch.tensor([1, 0, 3, 2])
    mixed, mixed_targets = mix(
        images, targets, partners, draws({MIX_SHARE: 0.6}, 4, MIXING_DRAWS), changed(mixup=1.0)
    )
    torch.testing.assert_close(mixed, 0.7 * images + 0.3 * images[partners])
    torch.testing.assert_close(mixed_targets, 0.7 * targets + 0.3 * targets[partners])


def test_cutmix_pastes_a_rectangle_of_the_partner_and_counts_its_area() -> None:
    images, targets, partners = pictures(4, 20, 20), one_hot(4), torch.tensor([2, 3, 0, 1])
    mixed, mixed_targets = mix(
        images, targets, partners, draws({MIX_SHARE: 0.25}, 4, MIXING_DRAWS), changed(cutmix=1.0)
    )
    inside = torch.zeros(20, 20, 1, dtype=torch.bool)
    inside[5:15, 5:15] = True
    assert torch.equal(mixed, torch.where(inside, images[partners], images))
    torch.testing.assert_close(mixed_targets, 0.75 * targets + 0.25 * targets[partners])


def test_cutmix_at_a_corner_counts_only_what_lies_in_the_image() -> None:
    images, targets, partners = pictures(2, 20, 20), one_hot(2), torch.tensor([1, 0])
    values = draws({MIX_SHARE: 0.25, MIX_X: 0.0, MIX_Y: 1.0}, 2, MIXING_DRAWS)
    mixed, mixed_targets = mix(images, targets, partners, values, changed(cutmix=1.0))
    assert torch.equal(mixed[:, 15:, :5], images[partners][:, 15:, :5])
    assert torch.equal(mixed[:, :15], images[:, :15])
    torch.testing.assert_close(mixed_targets, 0.9375 * targets + 0.0625 * targets[partners])


def test_the_kind_is_drawn_by_the_shares() -> None:
    images, partners = pictures(5), torch.tensor([1, 2, 3, 4, 0])
    values = draws({MIX_SHARE: 0.5}, 5, MIXING_DRAWS)
    values[:, MIX_KIND] = torch.tensor([0.0, 0.29, 0.3, 0.79, 0.8])
    mixed, _ = mix(images, one_hot(5), partners, values, changed(mixup=0.3, cutmix=0.5))
    blended = torch.lerp(images, images[partners], 0.25)
    torch.testing.assert_close(mixed[:2], blended[:2])
    for place in (2, 3):
        taken = (mixed[place] == images[partners[place]]).all(2)
        kept = (mixed[place] == images[place]).all(2)
        assert (taken ^ kept).all()
        assert 0 < taken.float().mean() < 1
    assert torch.equal(mixed[4], images[4])


@given(st.integers(1, 8), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31))
def test_targets_stay_probabilities_and_samples_keep_their_own(
    pairs: int, mixup: float, cutmix: float, seed: int
) -> None:
    settings = changed(mixup=mixup, cutmix=min(cutmix, 1 - mixup))
    count = 2 * pairs
    values = torch.rand(count, MIXING_DRAWS, generator=torch.Generator().manual_seed(seed))
    images, targets = pictures(count, 8, 8), one_hot(count)
    mixed, mixed_targets = mix(images, targets, torch.arange(count) ^ 1, values, settings)
    assert mixed.shape == images.shape
    torch.testing.assert_close(mixed_targets.sum(1), torch.ones(count))
    assert (mixed_targets >= 0).all()
    untouched = values[:, MIX_KIND] >= settings.mixup + settings.cutmix
    assert torch.equal(mixed[untouched], images[untouched])
    assert torch.equal(mixed_targets[untouched], targets[untouched])
