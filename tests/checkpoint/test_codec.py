from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from lowmem_seq.checkpoint.codec import copy_into, read_tensors, write_tensors
from lowmem_seq.errors import NoCheckpointError

TENSORS = {
    "matrix": torch.randn(3, 4),
    "transposed": torch.randn(3, 4).T,
    "scalar": torch.tensor(3.5),
    "steps": torch.tensor(7, dtype=torch.int64),
    "bf16": torch.randn(5).bfloat16(),
    "half": torch.randn(2, 2).half(),
    "double": torch.randn(2).double(),
    "empty": torch.zeros(0, 3),
    "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    "name with ä and .": torch.tensor([True, False]),
    "parameter": torch.nn.Parameter(torch.randn(2)),
}


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    again = read_tensors(path)
    assert again.keys() == TENSORS.keys()
    for name, wanted in TENSORS.items():
        got = again[name]
        assert (got.dtype, got.shape, got.device.type) == (wanted.dtype, wanted.shape, "cpu")
        assert bytes_of(got) == bytes_of(wanted)


@given(st.lists(st.integers(0, 4), max_size=4))
def test_any_shape_comes_back(tmp_path_factory: pytest.TempPathFactory, shape: list[int]) -> None:
    path = tmp_path_factory.mktemp("codec") / "one.safetensors"
    tensor = torch.randn(shape)
    write_tensors(path, {"x": tensor})
    assert torch.equal(read_tensors(path)["x"], tensor)


def test_the_header_carries_text(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"x": torch.zeros(1)}, {"classes": '["ä"]'})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"classes": '["ä"]'}


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "noise"])
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    content = path.read_bytes()
    damaged = {"cut": content[:-1], "empty": b"", "noise": b"\x00\xff" * 40}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    with pytest.raises(NoCheckpointError) as caught:
        read_tensors(path)
    assert f"{path} can't be read" in caught.value.message
    assert caught.value.hint == "is it a copy that broke off?"
    assert caught.value.exit_code == 6


def test_values_are_copied_into_the_tensors_that_are_there() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    place = weight.data_ptr()
    copy_into({"w": weight, "n": torch.zeros(())}, {"w": torch.ones(2, 2), "n": torch.tensor(3.0)}, "model")
    assert weight.data_ptr() == place
    assert weight.requires_grad
    assert torch.equal(weight.detach(), torch.ones(2, 2))


def test_other_names_are_refused_and_change_nothing() -> None:
    target = {"a": torch.zeros(2), "b": torch.zeros(2)}
    with pytest.raises(NoCheckpointError) as caught:
        copy_into(target, {"a": torch.ones(2), "c": torch.ones(2)}, "optimizer")
    assert caught.value.message == "the checkpoint's optimizer has other tensors than this model: b, c"
    assert caught.value.hint == "was config.yaml changed since?"
    assert not target["a"].any()


def test_other_shapes_are_refused_even_where_they_would_broadcast() -> None:
    target = {"head.weight": torch.zeros(3, 2)}
    with pytest.raises(NoCheckpointError) as caught:
        copy_into(target, {"head.weight": torch.ones(1, 2)}, "model")
    assert caught.value.message == "the checkpoint's head.weight is (1, 2), this model's (3, 2)"
    assert caught.value.hint == "was config.yaml changed since?"
    assert not target["head.weight"].any()
