"""The compiled cells of BiLSTM2D's LSTMs: what native/cells.c exports, called by ctypes without Python's lock."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

from lowmem_seq.compiled import library

MOST_DIRECTIONS = 4
KINDS = {torch.bfloat16: "bf16", torch.float32: "fp32"}
"""The dtypes of products that they are compiled for."""
SETS = ("AVX512", "AVX2")
"""Instruction sets that they are compiled for beside what every processor of the kind has, as torch names them."""

Fields: TypeAlias = list[tuple[str, type[Any]]]


class Place(ctypes.Structure):
    """Where a direction finds its tokens: that of step t at first + t step + ..., in bytes."""

    _fields_ = (
        ("first", ctypes.c_void_p),
        ("step", ctypes.c_int64),
        ("image", ctypes.c_int64),
        ("sequence", ctypes.c_int64),
    )


def _fields(sizes: Sequence[str], places: Sequence[str], pointers: Sequence[str]) -> Fields:
    return [
        *((name, ctypes.c_int64) for name in sizes),
        *((name, Place * MOST_DIRECTIONS) for name in places),
        *((name, ctypes.c_void_p) for name in pointers),
    ]


_SIZES = ("directions", "steps", "images", "sequences", "width")


class ForwardArguments(ctypes.Structure):
    """`Forward` of cells.c."""

    _fields_ = _fields(
        (*_SIZES, "token_bytes", "row_bytes"),
        ("x", "out"),
        ("inputs", "sums", "state", "gates", "row"),
    )


class BackwardArguments(ctypes.Structure):
    """`Backward` of cells.c."""

    _fields_ = _fields(
        _SIZES,
        ("out", "dout", "da_by_token"),
        ("gates", "states", "no_state", "before", "da", "da_of_step", "dh", "dstate", "db", "row"),
    )


class WeightArguments(ctypes.Structure):
    """`Weights` of cells.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("directions", "width", "channels")),
        *((name, ctypes.c_void_p * MOST_DIRECTIONS) for name in ("w", "u", "b", "b_too")),
    )


class Cells(NamedTuple):
    """What is compiled, for one dtype of products. `forward` and `backward` are told the step."""

    pack_for_forward: Callable[..., None]
    pack_for_backward: Callable[..., None]
    add_gradients: Callable[..., None]
    start: Callable[..., None]
    forward: Callable[..., None]
    remember: Callable[..., None]
    backward: Callable[..., None]


def has_cells(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether they are there, made for such products, and x is a tensor whose numbers lie in this memory."""
    return x.device.type == "cpu" and dtype in KINDS and type(x) in (Tensor, Parameter) and library() is not None


@cache
def cells_for(dtype: torch.dtype) -> Cells:
    """Return them, by the instructions that torch uses too; ATEN_CPU_CAPABILITY restricts both."""
    ends = f"{KINDS[dtype]}_{instruction_set()}"
    pointer = ctypes.c_void_p
    return Cells(
        _function(f"pack_for_forward_{ends}", WeightArguments, pointer),
        _function(f"pack_for_backward_{ends}", WeightArguments, pointer, pointer),
        _function(f"add_gradients_{ends}", WeightArguments, ctypes.c_int64, pointer, pointer, pointer),
        _function(f"start_{ends}", ForwardArguments),
        _function(f"forward_{ends}", ForwardArguments, ctypes.c_int64),
        _function(f"remember_{ends}", BackwardArguments),
        _function(f"backward_{ends}", BackwardArguments, ctypes.c_int64),
    )


def instruction_set() -> str:
    """The one that is used here."""
    capability = torch.backends.cpu.get_cpu_capability()
    return next((one.lower() for one in SETS if capability.startswith(one)), "baseline")


def place(tokens: Tensor, column: int, axis: int, is_backward: bool) -> Place:
    """Where a direction finds its part of the tokens, from a column on. Shapes: tokens: (b, H, W, anything)."""
    size = tokens.element_size()
    image, row, across, _ = tokens.stride()
    step, sequence = (row, across) if axis == 0 else (across, row)
    first = tokens.data_ptr() + column * size
    if is_backward:
        first += (tokens.shape[1 + axis] - 1) * step * size
        step = -step
    return Place(first, step * size, image * size, sequence * size)


def _function(name: str, arguments: type[ctypes.Structure], *more: Any) -> Callable[..., None]:
    found = getattr(library(), name)
    found.argtypes = [ctypes.POINTER(arguments), *more]
    found.restype = None
    return found  # type: ignore[no-any-return]
