"""Small computations whose results are known, in a process that may die of them: `doctor` starts it.

`python -m lowmem_seq.training.canaries NAME...` says of each one that it begins, and then what it found: facts
only, which doctor/computing.py judges. Libraries are imported by the canaries, because their imports may fail or
crash as well.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lowmem_seq.channel import Channel
from lowmem_seq.memory.readings import system_reader

if TYPE_CHECKING:
    from torch import Tensor

LEAK_STEPS = 30
"""Steps on an Apple GPU between two looks at what its driver holds; what leaks does so at each of them."""
WARM_UP_STEPS = 10


def import_torch() -> dict[str, Any]:
    """Import torch, and say what it is and what it can use."""
    began = time.monotonic()
    import torch

    return {
        "version": torch.__version__,
        "import_seconds": time.monotonic() - began,
        "held_bytes": system_reader().held_bytes(os.getpid()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def compute_lstms() -> dict[str, Any]:
    """Compute a layer by each path, and say how far results and gradients are from nn.LSTM's in 64 bits."""
    import torch

    from lowmem_seq.compiled import library
    from lowmem_seq.models import BiLSTM2D

    torch.manual_seed(0)
    layer = BiLSTM2D(24, 8)
    exact = BiLSTM2D(24, 8).double()
    exact.load_state_dict(layer.state_dict())
    tokens = torch.linspace(-2, 2, 3 * 4 * 4 * 24).sin().view(3, 4, 4, 24)  # (B, H, W, C)
    expected = _step(exact, tokens.double())
    paths = ("torch", "function") if library() is None else ("torch", "function", "native")
    errors = {}
    for path in paths:
        layer.lstm_path = path  # type: ignore[assignment]
        errors[path] = _distance(_step(layer, tokens), expected)
    return {"relative_errors": errors}


def try_bf16() -> dict[str, Any]:
    """Say whether products in bf16 are so much faster here that a plan takes them."""
    from lowmem_seq.training.device import bf16_pays

    return {"pays": bf16_pays("cpu")}


def try_onednn() -> dict[str, Any]:
    """Multiply by oneDNN, and say how far the product is from one in 64 bits."""
    import torch

    from lowmem_seq.models.products import onednn_linear
    from lowmem_seq.runs.environment import processor_name

    linear = onednn_linear()
    facts: dict[str, Any] = {
        "is_there": linear is not None,
        "is_amd": "AMD" in processor_name(),
        "relative_error": None,
    }
    if linear is not None:
        rows, weights = torch.linspace(-1, 1, 256 * 96).view(256, 96), torch.linspace(1, -1, 64 * 96).view(64, 96)
        found = linear(rows, weights, None, "none", [], "")
        facts["relative_error"] = _distance([found], [rows.double() @ weights.double().t()])
    return facts


def try_cuda() -> dict[str, Any]:
    """Multiply and run an LSTM on an NVIDIA card, if torch can use one."""
    import torch

    if not torch.cuda.is_available():
        return {"is_there": False}
    from lowmem_seq.training.device import bf16_pays, lstm_is_right_on

    free_bytes, total_bytes = torch.cuda.mem_get_info()
    a = torch.linspace(-1, 1, 256 * 256).view(256, 256)
    return {
        "is_there": True,
        "name": torch.cuda.get_device_name(),
        "free_bytes": free_bytes,
        "total_bytes": total_bytes,
        "relative_error": _distance([(a.cuda() @ a.cuda().t()).cpu()], [a.double() @ a.double().t()]),
        "lstm_is_right": lstm_is_right_on("cuda"),
        "bf16_pays": bf16_pays("cuda"),
    }


def try_mps() -> dict[str, Any]:
    """Run LSTMs on an Apple GPU: are they right, and does each step leave some memory behind?"""
    import torch

    if not torch.backends.mps.is_available():
        return {"is_there": False}
    from lowmem_seq.training.device import lstm_is_right_on

    is_right = lstm_is_right_on("mps")
    lstm = torch.nn.LSTM(192, 48, batch_first=True, bidirectional=True).to("mps")
    tokens = torch.zeros(256, 8, 192, device="mps")  # (B, T, C)

    def held_after(steps: int) -> int:
        for _ in range(steps):
            lstm(tokens)[0].sum().backward()
            lstm.zero_grad()
        torch.mps.synchronize()
        return torch.mps.driver_allocated_memory()

    before = held_after(WARM_UP_STEPS)
    growth = held_after(LEAK_STEPS) - before
    return {
        "is_there": True,
        "lstm_is_right": is_right,
        "growth_bytes": growth,
        "steps": LEAK_STEPS,
        "recommended_bytes": torch.mps.recommended_max_memory(),
    }


CANARIES: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": import_torch,
    "lstm": compute_lstms,
    "bf16": try_bf16,
    "onednn": try_onednn,
    "cuda": try_cuda,
    "mps": try_mps,
}


def _step(layer: Any, tokens: Tensor) -> list[Tensor]:
    """Return a layer's result, and the gradients of its weights and its tokens."""
    import torch

    x = tokens.clone().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


def _distance(found: list[Tensor], expected: list[Tensor]) -> float | None:
    """Return the largest relative distance of any of them; None where one is no number."""
    pairs = zip(found, expected, strict=True)
    told = [float((one.double() - other).norm() / other.norm()) for one, other in pairs]
    return max(told) if all(map(math.isfinite, told)) else None


def main() -> int:
    """Try the canaries that are named on the command line, one after the other."""
    channel = Channel(saves=False)
    for name in sys.argv[1:]:
        channel.say({"event": "began", "canary": name})
        try:
            facts = CANARIES[name]()
        except Exception as error:  # whatever a library raises is what was looked for
            channel.say({"event": "failed", "canary": name, "error": f"{type(error).__name__}: {error}"[:500]})
        else:
            channel.say({"event": "facts", "canary": name, "facts": facts})
    return 0


if __name__ == "__main__":
    sys.exit(main())
