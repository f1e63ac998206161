"""The processor's own limit, and what a model needs of it: matrix products a second, and FLOPs an image.

`python -m benchmarks.gemm CONFIG.yaml CLASSES` prints both as JSON, measured in this process with this
environment. The limit of a precision is the best of square products of a few sizes by every library that torch
offers for it here: for 32-bit floats on x86 that is MKL, and oneDNN under a private name of ATen.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SIZES = (512, 1024, 2048, 4096)
SECONDS_A_SIZE = 0.7
BACKWARD = 2
"""Products in backward for one in forward: the inputs' gradients, and the weights'."""


def ways(precision: str) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
    """Yield the ways to multiply two matrices in a precision."""
    yield torch.mm
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if precision == "fp32" and linear is not None and torch.backends.mkldnn.enabled:
        yield lambda a, b: linear(a, b, None, "none", [], "")


def peak_flops(precision: str, sizes: tuple[int, ...] = SIZES, seconds: float = SECONDS_A_SIZE) -> float:
    """Return the FLOP/s of the fastest product of two square matrices."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for size in sizes:
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        for multiply in ways(precision):
            multiply(a, b)
            until = time.perf_counter() + seconds
            while (began := time.perf_counter()) < until:
                multiply(a, b)
                best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


@torch.no_grad()
def forward_flops(model: nn.Module, images: Tensor) -> int:
    """Return the FLOPs of the matrix products in a forward pass: two for each multiplication with its addition.

    By formula from the shapes that the layers see, nn.LSTM included: torch.utils.flop_counter knows nothing of
    that one. Norms, activations, gates and sums are left out: they are not what the limit is measured by.

    Shapes:
        images: (B, H, W, 3)
    """
    flops = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], _output: Any) -> None:
        nonlocal flops
        tokens = inputs[0].numel() // inputs[0].shape[-1]
        if isinstance(module, nn.Linear):
            flops += 2 * tokens * module.in_features * module.out_features
        elif isinstance(module, nn.LSTM):
            directions = 2 if module.bidirectional else 1
            weights = 4 * module.hidden_size * (module.input_size + module.hidden_size)
            flops += 2 * tokens * directions * weights

    hooks = [one.register_forward_hook(count) for one in model.modules() if isinstance(one, (nn.Linear, nn.LSTM))]
    model(images)
    for hook in hooks:
        hook.remove()
    return flops


def training_flops(config_file: Path, classes: int) -> int:
    """Return the FLOPs of a training image, forward and backward; what is computed twice on purpose counts once."""
    from lowmem_seq.config import load_config
    from lowmem_seq.models import build_model

    config = load_config(config_file)
    images = torch.zeros(1, config.data.image_size, config.data.image_size, 3)
    return (1 + BACKWARD) * forward_flops(build_model(config.model, classes), images)


def main() -> None:
    """Measure, and print."""
    config_file, classes, *precisions = sys.argv[1:]
    peaks = {precision: peak_flops(precision) for precision in precisions}
    print(json.dumps({"peak_flops": peaks, "flops_an_image": training_flops(Path(config_file), int(classes))}))


if __name__ == "__main__":
    main()
