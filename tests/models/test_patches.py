from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_seq.errors import UsageError
from lowmem_seq.models.patches import PatchLinear, check_images, cut_patches

sizes = st.integers(1, 4)


@settings(deadline=None, max_examples=30)
@given(batch=sizes, rows=sizes, columns=sizes, patch=sizes, channels=sizes)
def test_is_a_convolution_with_kernel_equal_to_stride(
    batch: int, rows: int, columns: int, patch: int, channels: int
) -> None:
    layer = PatchLinear(channels, 5, patch).double()
    x = torch.randn(batch, rows * patch, columns * patch, channels, dtype=torch.float64)
    kernel = layer.linear.weight.reshape(5, patch, patch, channels).permute(0, 3, 1, 2)
    expected = F.conv2d(x.permute(0, 3, 1, 2), kernel, layer.linear.bias, stride=patch).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=1e-12)


def test_a_patch_of_one_copies_nothing() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert cut_patches(x, 1).data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("shape", "message", "hint"),
    [
        ((1, 224, 225, 3), "224 x 225 pixels", "--image-size 224 or 238"),
        ((1, 30, 28, 3), "multiples of 14", "--image-size 28 or 42"),
        ((1, 14, 8, 3), "7 x 2 x 1", "--image-size 14,"),
        ((1, 0, 14, 3), "0 x 14 pixels", "--image-size 14,"),
        ((2, 3, 28, 28), "(2, 3, 28, 28)", "images.permute(0, 2, 3, 1)"),
        ((28, 28, 3), "(28, 28, 3)", "permute"),
    ],
)
def test_images_that_cannot_be_cut_are_refused(shape: tuple[int, ...], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_images(torch.zeros(shape), (7, 2, 1))
    assert message in caught.value.message
    assert hint in caught.value.hint
