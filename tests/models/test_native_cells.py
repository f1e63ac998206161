from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lowmem_seq import compiled
from lowmem_seq.models import BiLSTM2D, native_cells

from .lstms import NO_CELLS, layer, step, tokens

SETS = ("baseline", "avx2", "avx512") if platform.machine().lower() in ("x86_64", "amd64") else ("baseline",)


@pytest.fixture(name="library")
def _library() -> ctypes.CDLL:
    found = compiled.library()
    if found is None:
        pytest.skip(NO_CELLS)
    return found


def runs(instruction_set: str) -> bool:
    """Whether this processor has these instructions; torch says which it uses, which may be fewer."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"baseline": True, "avx2": "AVX" in capability, "avx512": "AVX512" in capability}[instruction_set]


@pytest.mark.parametrize("name", SETS)
def test_numbers_of_16_bits_are_rounded_as_torch_rounds_them(library: ctypes.CDLL, name: str) -> None:
    if not runs(name):
        pytest.skip(f"this processor has no {name}")
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    found = torch.empty(2**16)
    getattr(library, f"recall_float16_{name}")(
        ctypes.c_int64(2**16), ctypes.c_void_p(every.data_ptr()), ctypes.c_void_p(found.data_ptr())
    )
    assert torch.equal(found.nan_to_num(nan=-1), every.float().nan_to_num(nan=-1))
    halves = every.float()[torch.isfinite(every)].sort().values
    between = torch.cat([halves, (halves[1:] + halves[:-1]) / 2, torch.tensor([65519.9, 65520, -1e38, 1e-45])])
    near = torch.cat([between, torch.nextafter(between, torch.tensor(9e9)), torch.nextafter(between, -between)])
    near = torch.cat([near, torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0])])
    kept = torch.empty(len(near), dtype=torch.float16)
    getattr(library, f"keep_float16_{name}")(
        ctypes.c_int64(len(near)), ctypes.c_void_p(near.data_ptr()), ctypes.c_void_p(kept.data_ptr())
    )
    expected = near.half()
    finite = ~near.isnan()
    assert torch.equal(kept[finite].view(torch.int16), expected[finite].view(torch.int16))
    assert kept[~finite].isnan().all()


CHECKED = """
import sys
import torch
from lowmem_seq.models import native_cells
from tests.models.lstms import distance, layer, step, tokens
torch.set_num_threads(1)
assert native_cells.instruction_set() == sys.argv[1], native_cells.instruction_set()
module, x = layer(width=48, lstm_width=13), tokens(9, 4, 3, 48)
both = (step(module, x, path) for path in ("native", "torch"))
print(max(distance(found, expected) for found, expected in zip(*both, strict=True)))
"""


@pytest.mark.parametrize("name", SETS)
@pytest.mark.usefixtures("library")
def test_every_instruction_set_finds_what_lstms_find(name: str) -> None:
    if not runs(name):
        pytest.skip(f"this processor has no {name}")
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default" if name == "baseline" else name}
    root = Path(__file__).parents[2]
    told = subprocess.check_output(
        [sys.executable, "-c", CHECKED, name], env=environment, cwd=root, encoding="utf-8"
    )
    assert float(told) < 1e-6


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e3, 1e6, 1e30])
def test_large_and_small_preactivations_do_no_harm(size: float) -> None:
    module, x = layer(), size * tokens(3, 4, 4, 5)
    ours, theirs = (step(module, x, path) for path in ("native", "torch"))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6 * min(size, 1))
    for found, expected in zip(ours[1:], theirs[1:], strict=True):
        assert found.isfinite().all()
        if size <= 1e3:  # above, gates are 0 or 1, and what is left of their gradients is rounding
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_no_number_is_handed_on(precision: str) -> None:
    module, x = layer(), tokens(2, 4, 4, 5)
    x[1, 2, 2, 0] = torch.nan
    (found, gradient, *_), (expected, theirs, *_) = (
        step(module, x, path, precision) for path in ("native", "torch")
    )
    assert found[0].isfinite().all()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(gradient.isnan(), theirs.isnan())


def test_dtypes_and_devices_that_cells_are_not_compiled_for_are_left_to_others(library: ctypes.CDLL) -> None:
    assert library is not None
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    served = [dtype for dtype in dtypes if native_cells.has_cells(torch.empty(1), dtype)]
    assert served == [torch.float32, torch.bfloat16]
    assert not native_cells.has_cells(torch.empty(1, device="meta"), torch.float32)


@pytest.mark.parametrize("damage", ["missing", "no library", "other sources"])
def test_without_a_library_that_fits_all_is_computed_otherwise(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = tokens(2, 3, 3, 5)
    expected = step(layer(), x, "function")
    file = tmp_path / "cells.so"
    if damage == "no library":
        file.write_bytes(b"\x7fELF and nothing else")
    elif damage == "other sources":
        file = compiled.LIBRARY
        monkeypatch.setattr(compiled, "FOLDER", tmp_path)
        for name in compiled.SOURCES:
            (tmp_path / name).write_bytes(b"// newer\n")
    monkeypatch.setattr(compiled, "LIBRARY", file)
    compiled.library.cache_clear()
    try:
        assert compiled.library() is None
        assert compiled.description() is None
        assert not native_cells.has_cells(x, torch.float32)
        found = step(layer(), x, "native")
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    finally:
        compiled.library.cache_clear()


def test_the_library_says_what_it_was_made_from_and_with(
    library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert library is not None
    told = compiled.description()
    assert told is not None
    sources, _, compiler = told.partition(", ")
    assert int(sources, 16) == compiled.fingerprint()
    assert re.match(r"(GCC|MSVC|.*[Cc]lang) ?.*\d", compiler)
    for name in compiled.SOURCES:
        text = (compiled.FOLDER / name).read_bytes()
        (tmp_path / name).write_bytes(text.replace(b"\n", b"\r\n"))
    expected = compiled.fingerprint()
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    assert compiled.fingerprint() == expected


def test_tensors_that_hold_no_numbers_are_left_alone(library: ctypes.CDLL) -> None:
    assert library is not None
    with FakeTensorMode():
        module, x = BiLSTM2D(5, 3), torch.empty(2, 3, 4, 5)
        module.lstm_path = "native"
        assert module(x).shape == x.shape


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_infinite_bias_shuts_or_opens_a_gate(precision: str) -> None:
    module, x = layer(), tokens(2, 3, 3, 5)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "bias" in name:
                weight[:3] = -torch.inf if "ih" in name else 0  # the input gates'
    found, expected = (step(module, x, path, precision)[0] for path in ("native", "torch"))
    torch.testing.assert_close(found, expected, rtol=1e-6 if precision == "fp32" else 0.02, atol=1e-30)


def test_a_layer_reads_natively_only_when_told(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library is not None
    asked: list[torch.dtype] = []

    def counted(dtype: torch.dtype) -> native_cells.Cells:
        asked.append(dtype)
        return native_cells.cells_for(dtype)

    monkeypatch.setattr("lowmem_seq.models.lstm_native.cells_for", counted)
    module: BiLSTM2D = layer()
    for path in ("torch", "function"):
        step(module, tokens(2, 3, 3, 5), path)
    assert asked == []
    step(module, tokens(2, 3, 3, 5), "native")
    assert set(asked) == {torch.float32}
