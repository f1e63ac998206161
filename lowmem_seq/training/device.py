"""Which device computes, and Accelerate set up for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import nn

from lowmem_seq.errors import UsageError
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.runs.trackers import NO_TRACKER, is_installed

Device = Literal["cpu", "mps", "cuda"]
Precision = Literal["fp32", "bf16"]
CANARY_TOLERANCE = 1e-3
LEAST_GAIN = 1.3
"""How much faster than in fp32 products in bf16 must be: 4.6 times with avx512_bf16, 0.14 times with AVX2 alone."""
PRODUCTS = 8
"""Of each kind that are timed, in turn; others only ever slow one down."""


def lstm_is_right_on(device: str) -> bool:
    """Whether a small bidirectional LSTM gives the CPU's outputs and gradients on `device`, to 1e-3.

    LSTMs on MPS have been wrong in some releases (pytorch issues #96416, #145374), so it is tried, not believed.
    """
    weights = torch.nn.LSTM(8, 4, batch_first=True, bidirectional=True)
    inputs = torch.linspace(-1, 1, 2 * 5 * 8).view(2, 5, 8)  # (B, T, C)
    results = []
    for place in ("cpu", device):
        lstm = nn.LSTM(8, 4, batch_first=True, bidirectional=True).to(place)
        lstm.load_state_dict(weights.state_dict())
        x = inputs.to(place).requires_grad_()
        output = lstm(x)[0]  # (B, T, 2 * 4)
        gradients = torch.autograd.grad(output.square().sum(), [x, *lstm.parameters()])
        results.append([output.detach().cpu(), *(gradient.cpu() for gradient in gradients)])
    return all(torch.allclose(wanted, got, atol=CANARY_TOLERANCE) for wanted, got in zip(*results, strict=True))


def choose_device(wanted: Literal["auto", "cpu", "mps", "cuda"]) -> Device:
    """Return the device to train on: CUDA, or MPS where LSTMs are right, or the CPU.

    Raises:
        UsageError: the device asked for is not there, or computes LSTMs wrong.
    """
    has_cuda = torch.cuda.is_available()
    has_mps = torch.backends.mps.is_available()
    if wanted == "auto":
        if has_cuda:
            return "cuda"
        return "mps" if has_mps and lstm_is_right_on("mps") else "cpu"
    if wanted == "cuda" and not has_cuda:
        raise UsageError("there is no CUDA device that this torch can use.", "--device auto")
    if wanted == "mps" and not has_mps:
        raise UsageError("there is no Apple GPU that this torch can use.", "--device auto")
    if wanted == "mps" and not lstm_is_right_on("mps"):
        raise UsageError(f"this torch ({torch.__version__}) computes LSTMs wrong on the Apple GPU.", "--device cpu")
    return wanted


def bf16_pays(device: Device) -> bool:
    """Whether matrices of bf16 are multiplied so much faster that it is worth their rounding.

    On a CPU that is tried: what a processor has, what its user allows, and what this torch makes of it.
    """
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "mps":
        return False
    taken: dict[torch.dtype, list[float]] = {torch.bfloat16: [], torch.float32: []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other where the machine is busy
    for _ in range(PRODUCTS):
        for dtype, seconds in taken.items():
            seconds.append(_product_seconds(dtype))
    torch.set_num_threads(threads)
    return min(taken[torch.float32]) >= LEAST_GAIN * min(taken[torch.bfloat16])


def _product_seconds(dtype: torch.dtype) -> float:
    """Return how long one product of the size of Small's takes."""
    tokens, weights = torch.ones(1024, 192, dtype=dtype), torch.ones(768, 192, dtype=dtype)
    began = time.perf_counter()
    nn.functional.linear(tokens, weights)
    return time.perf_counter() - began


def choose_precision(wanted: Literal["auto", "fp32", "bf16"], device: Device) -> Precision:
    """Return the precision of matrix products; for `auto` bf16 where it pays. Weights stay fp32."""
    if wanted == "auto":
        return "bf16" if bf16_pays(device) else "fp32"
    return wanted


def give_back(device: Device) -> None:
    """Have the caches of this process's allocators given back: on a GPU torch keeps a large one of its own."""
    if device == "mps":
        torch.mps.empty_cache()
    elif device == "cuda":
        torch.cuda.empty_cache()
    system_reader().release()


def make_accelerator(
    device: Device, precision: Precision, log_with: str = NO_TRACKER, logs: Path | None = None
) -> Accelerator:
    """Return an Accelerator on the device and in the precision of the plan.

    It is one of one process, or of the world that was formed before (world.py).

    Args:
        device: of the plan.
        precision: of the plan.
        log_with: a tracker that it can be told to start, if it is installed.
        logs: where that one writes.
    """
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=log_with if log_with != NO_TRACKER and is_installed(log_with) else None,
        project_dir=logs,
    )
    if accelerator.device.type != device:
        raise UsageError(
            f"Accelerate chose {accelerator.device.type}, and the plan says {device}.",
            "delete plan.json in the run folder, then lowmem-seq resume it",
        )
    return accelerator
