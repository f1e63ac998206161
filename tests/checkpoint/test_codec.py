from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lowmem_seq.checkpoint import codec as module
from lowmem_seq.checkpoint.codec import as_system_error, read_tensors_into, write_tensors
from lowmem_seq.errors import NoCheckpointError

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no such modes and limits of files")
TENSORS = {
    "matrix": torch.randn(3, 4),
    "transposed": torch.randn(3, 4).T,
    "scalar": torch.tensor(3.5),
    "steps": torch.tensor(7, dtype=torch.int64),
    "int32": torch.tensor([-1, 2], dtype=torch.int32),
    "bytes": torch.tensor([0, 255], dtype=torch.uint8),
    "bf16": torch.randn(5).bfloat16(),
    "half": torch.randn(2, 2).half(),
    "double": torch.randn(2).double(),
    "empty": torch.zeros(0, 3),
    "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    "name with ä and .": torch.tensor([True, False]),
    "parameter": torch.nn.Parameter(torch.randn(2)),
}


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks at more of a file than its header fails."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("nothing but the header was to be read")

    monkeypatch.setattr(module, "safe_open", refuse)


def test_every_kind_of_tensor_comes_back_bit_for_bit(path: Path) -> None:
    write_tensors(path, TENSORS)
    target = {name: torch.full_like(value.detach(), 1) for name, value in TENSORS.items()}
    read_tensors_into(target, path, "model")
    assert {name: bytes_of(value) for name, value in target.items()} == {
        name: bytes_of(value) for name, value in TENSORS.items()
    }


@given(st.lists(st.integers(0, 4), max_size=4))
def test_any_shape_comes_back(tmp_path_factory: pytest.TempPathFactory, shape: list[int]) -> None:
    path = tmp_path_factory.mktemp("codec") / "one.safetensors"
    tensor, again = torch.randn(shape), torch.zeros(shape)
    write_tensors(path, {"x": tensor})
    read_tensors_into({"x": again}, path, "model")
    assert torch.equal(again, tensor)


def test_the_header_carries_text(path: Path) -> None:
    write_tensors(path, {"x": torch.zeros(1)}, {"classes": '["ä"]'})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"classes": '["ä"]'}


def test_values_are_copied_into_the_tensors_that_are_there(path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    transposed = torch.zeros(2, 2).T
    places = (weight.data_ptr(), transposed.data_ptr())
    write_tensors(path, {"w": torch.ones(2, 2), "t": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
    read_tensors_into({"w": weight, "t": transposed}, path, "model")
    assert (weight.data_ptr(), transposed.data_ptr()) == places
    assert weight.requires_grad
    assert weight.grad_fn is None
    assert torch.equal(weight.detach(), torch.ones(2, 2))
    assert transposed.tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "noise"])
def test_a_file_that_is_not_whole_is_refused(path: Path, damage: str) -> None:
    write_tensors(path, {"x": torch.ones(2)})
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"cut": content[:-1], "empty": b"", "noise": b"\x00\xff" * 40}[damage])
    target = torch.zeros(2)
    with pytest.raises(NoCheckpointError) as caught:
        read_tensors_into({"x": target}, path, "model")
    assert f"{path} can't be read" in caught.value.message
    assert caught.value.hint == "is it a copy that broke off?"
    assert caught.value.exit_code == 6
    assert not target.any()


@pytest.mark.usefixtures("nothing_is_read")
@pytest.mark.parametrize(("saved", "told"), [("a", "b"), ("abc", "c"), ("ac", "b, c"), ("acdefg", "b, c, d, e")])
def test_other_names_are_refused_before_anything_is_read(path: Path, saved: str, told: str) -> None:
    write_tensors(path, {name: torch.ones(2) for name in saved})
    target = {"a": torch.zeros(2), "b": torch.zeros(2)}
    with pytest.raises(NoCheckpointError) as caught:
        read_tensors_into(target, path, "optimizer")
    assert caught.value.message == f"the checkpoint's optimizer has other tensors than this model: {told}"
    assert caught.value.hint == "was config.yaml changed since?"
    assert not target["a"].any()


OTHERS = {
    "a shape that would broadcast": (torch.ones(1, 2), "F32 (1, 2)"),
    "a shape of as many numbers": (torch.ones(2, 3), "F32 (2, 3)"),
    "a number": (torch.tensor(1.0), "F32 ()"),
    "whole numbers of as many bytes": (torch.ones(3, 2, dtype=torch.int32), "I32 (3, 2)"),
    "a type that would be converted": (torch.ones(3, 2, dtype=torch.float64), "F64 (3, 2)"),
    "half as many bits": (torch.ones(3, 2, dtype=torch.bfloat16), "BF16 (3, 2)"),
}


@pytest.mark.usefixtures("nothing_is_read")
@pytest.mark.parametrize("other", OTHERS)
def test_other_shapes_and_types_are_refused_before_anything_is_read(path: Path, other: str) -> None:
    saved, told = OTHERS[other]
    write_tensors(path, {"a": torch.ones(2), "head.weight": saved})
    target = {"a": torch.zeros(2), "head.weight": torch.zeros(3, 2)}
    with pytest.raises(NoCheckpointError) as caught:
        read_tensors_into(target, path, "model")
    assert caught.value.message == f"the checkpoint's head.weight is {told}, this model's F32 (3, 2)"
    assert caught.value.hint == "was config.yaml changed since?"
    assert not target["a"].any()


@pytest.mark.usefixtures("nothing_is_read")
def test_a_tensor_that_fills_the_disk_costs_no_memory(path: Path) -> None:
    write_tensors(path, {"x": torch.ones(2)})
    big = 2**29  # numbers, 2 GiB
    header = f'{{"x":{{"dtype":"F32","shape":[{big}],"data_offsets":[0,{4 * big}]}}}}'.encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 4 * big)
    before_bytes = psutil.Process().memory_info().rss
    with pytest.raises(NoCheckpointError, match=rf"the checkpoint's x is F32 \({big},\), this model's F32 \(2,\)"):
        read_tensors_into({"x": torch.zeros(2)}, path, "model")
    assert psutil.Process().memory_info().rss - before_bytes < 10**8


NO_SPACE = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize(
    ("words", "platform", "code"),
    [
        (NO_SPACE, "linux", errno.ENOSPC),
        ("Error while serializing: I/O error: Input/output error (os error 5)", "linux", errno.EIO),
        ('IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })', "darwin", errno.ENOSPC),
        ("I/O error: Directory not empty (os error 39)", "linux", 39),
        ("I/O error: Host is down (os error 112)", "linux", 112),
        ("I/O error: There is not enough space on the disk. (os error 112)", "win32", errno.ENOSPC),
        ("I/O error: The disk is full. (os error 39)", "win32", errno.ENOSPC),
        ("I/O error: Access is denied. (os error 5)", "win32", errno.EACCES),
        ('IoError(Os { code: 1117, kind: Other, message: "I/O device error" })', "win32", errno.EIO),
        ("I/O error: The printer is out of paper. (os error 28)", "win32", errno.EINVAL),
    ],
)
def test_what_the_system_said_is_told_as_the_system_s_error(
    path: Path, words: str, platform: str, code: int
) -> None:
    error = as_system_error(SafetensorError(words), path, platform)
    assert isinstance(error, OSError)
    assert (error.errno, error.strerror, error.filename) == (code, words, str(path))


@POSIX
def test_a_write_that_the_system_refuses_raises_the_system_s_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise SafetensorError(NO_SPACE)

    monkeypatch.setattr(module, "save_file", refuse)
    with pytest.raises(OSError, match=r"model\.safetensors") as caught:
        write_tensors(path, {"x": torch.zeros(1)})
    assert caught.value.errno == errno.ENOSPC


def test_an_error_of_the_library_itself_stays_what_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise SafetensorError("Error while serializing: code red in 28 tensors")

    monkeypatch.setattr(module, "save_file", refuse)
    with pytest.raises(SafetensorError, match="code red"):
        write_tensors(path, {"x": torch.zeros(1)})


@POSIX
def test_the_words_of_the_library_that_is_installed_are_understood(path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="error") as caught:
            write_tensors(path, {"x": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG


@POSIX
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_may_be_read_by_whom_the_umask_lets(path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors(path, {"x": torch.zeros(1)})
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
