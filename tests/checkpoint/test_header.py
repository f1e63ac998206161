from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lowmem_seq.checkpoint import header as module
from lowmem_seq.checkpoint.codec import write_tensors
from lowmem_seq.checkpoint.header import LARGEST_HEADER_BYTES, read_shapes
from lowmem_seq.errors import NoCheckpointError
from tests.builders import end, start_python

TENSORS = {
    "head.weight": torch.zeros(3, 4),
    "name with ä and .": torch.zeros(2, 2, dtype=torch.bfloat16),
    "steps": torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 3).bool(),
}
SHAPES = {
    "head.weight": ("F32", (3, 4)),
    "name with ä and .": ("BF16", (2, 2)),
    "steps": ("I64", ()),
    "empty": ("BOOL", (0, 3)),
}

READING = """
import sys
from pathlib import Path
from lowmem_seq.checkpoint.header import read_shapes

shapes = read_shapes(Path(sys.argv[1]))
print(len(shapes), "torch" in sys.modules)
"""


def write_file(path: Path, header: dict[str, Any], data: bytes = b"", header_bytes: int | None = None) -> Path:
    """A safetensors file as someone else may make it; its header may lie about its own length too."""
    text = json.dumps(header).encode()
    path.write_bytes((len(text) if header_bytes is None else header_bytes).to_bytes(8, "little") + text + data)
    return path


def tensor_of(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def test_a_file_tells_the_types_and_shapes_of_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS, {"classes": "[]"})
    assert read_shapes(path) == SHAPES


def test_shapes_are_read_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    assert end(start_python(READING, str(path)))[:2] == (0, "4 False\n")


@pytest.mark.parametrize("length", [None, 0, 7, 8, 20, -1])
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, length: int | None) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    content = path.read_bytes()
    path.unlink()
    if length is not None:
        path.write_bytes(content[:length])
    with pytest.raises(NoCheckpointError) as caught:
        read_shapes(path)
    assert caught.value.message.startswith(f"{path} can't be read: ")
    assert caught.value.hint == "is it a copy that broke off?"


def test_a_file_with_something_behind_its_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(NoCheckpointError, match="can't be read"):
        read_shapes(path)


LIES: dict[str, dict[str, Any]] = {
    "more than the file holds": {"x": tensor_of([25 * 10**8], 0, 10**10)},
    "a shape that is not the bytes'": {"x": tensor_of([10**9], 0, 8)},
    "a shape past all numbers": {"x": tensor_of([2**62, 2**62], 0, 8)},
    "a shape below zero": {"x": tensor_of([-2], 0, 8)},
    "an end before the beginning": {"x": tensor_of([2], 8, 0)},
    "two tensors in one place": {"x": tensor_of([2], 0, 8), "y": tensor_of([2], 0, 8)},
    "a hole": {"x": tensor_of([1], 4, 8)},
    "no tensor": {"x": 3},
    "an unknown type": {"x": {"dtype": "PICKLE", "shape": [2], "data_offsets": [0, 8]}},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    path = write_file(tmp_path / "model.safetensors", LIES[lie], bytes(8))
    with pytest.raises(NoCheckpointError, match="can't be read"):
        read_shapes(path)


@pytest.mark.parametrize("header_bytes", [LARGEST_HEADER_BYTES + 1, 9 * 10**7, 2**63, 2**64 - 1])
def test_a_header_that_is_longer_than_any_of_ours_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header_bytes: int
) -> None:
    path = write_file(tmp_path / "model.safetensors", {"x": tensor_of([2], 0, 8)}, bytes(8), header_bytes)
    with path.open("ab") as file:
        file.truncate(min(header_bytes, 10**8) + 16)

    def refuse(*arguments: object) -> None:
        raise AssertionError("nothing of it was to be read")

    monkeypatch.setattr(module, "safe_open", refuse)
    with pytest.raises(NoCheckpointError) as caught:
        read_shapes(path)
    assert caught.value.message == f"{path} can't be read: its header is said to have {header_bytes:,} bytes"


def test_a_header_of_the_largest_size_is_read(tmp_path: Path) -> None:
    entry = tensor_of([2], 0, 8)
    padding = LARGEST_HEADER_BYTES - len(json.dumps({"x": entry, "__metadata__": {"a": ""}}))
    header = {"x": entry, "__metadata__": {"a": "a" * padding}}
    path = write_file(tmp_path / "model.safetensors", header, bytes(8))
    assert int.from_bytes(path.read_bytes()[:8], "little") == LARGEST_HEADER_BYTES
    assert read_shapes(path) == {"x": ("F32", (2,))}
