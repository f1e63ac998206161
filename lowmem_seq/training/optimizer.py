"""AdamW (arXiv 1711.05101) on torch's fused kernel, with all of its state allocated at the start.

torch.optim imports torch._dynamo, which costs memory and start-up (docs/log.md, 2026-11-22). The kernel itself
needs neither. State under plain names also makes a checkpoint that anyone can read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class AdamW:
    """Decoupled weight decay on matrices only; biases, norms and other vectors have none."""

    def __init__(self, parameters: Mapping[str, Tensor], weight_decay: float, beta1: float, beta2: float) -> None:
        self._parameters = dict(parameters)
        self._betas = (beta1, beta2)
        self._groups = [
            (weight_decay, [name for name, value in self._parameters.items() if value.ndim > 1]),
            (0.0, [name for name, value in self._parameters.items() if value.ndim <= 1]),
        ]
        self._mean = {name: torch.zeros_like(value) for name, value in self._parameters.items()}
        self._square = {name: torch.zeros_like(value) for name, value in self._parameters.items()}
        self._steps = {
            name: torch.zeros((), dtype=torch.float32, device=value.device)
            for name, value in self._parameters.items()
        }

    def state(self) -> dict[str, Tensor]:
        """The live state by name: `mean.NAME`, `square.NAME` as the weight NAME; `steps.NAME` ()."""
        return {
            f"{kind}.{name}": value
            for kind, values in (("mean", self._mean), ("square", self._square), ("steps", self._steps))
            for name, value in values.items()
        }

    def gradients(self) -> list[Tensor]:
        """The gradients, in the order of the parameters."""
        return [value.grad for value in self._parameters.values() if value.grad is not None]

    def clear_gradients(self) -> None:
        """Drop every gradient; the next backward hands over its own buffers instead of adding to these."""
        for value in self._parameters.values():
            value.grad = None

    def clip_gradients(
        self, largest_norm: float | None, agreed: Callable[[float], float] = lambda norm: norm
    ) -> float:
        """Scale all gradients so that their common norm is at most `largest_norm` (arXiv 1211.5063).

        Args:
            largest_norm: see above.
            agreed: returns the norm that counts, where others compute it of the same gradients as well.

        Returns:
            The norm before; None for `largest_norm` leaves the gradients as they are.
        """
        gradients = self.gradients()
        norm = agreed(float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))))
        if largest_norm is not None and norm > largest_norm:
            torch._foreach_mul_(gradients, largest_norm / (norm + 1e-6))
        return norm

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update the parameters from their gradients at a learning rate."""
        for decay, names in self._groups:
            steps = [self._steps[name] for name in names]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                [self._parameters[name] for name in names],
                [gradient for name in names if (gradient := self._parameters[name].grad) is not None],
                [self._mean[name] for name in names],
                [self._square[name] for name in names],
                [],
                steps,
                lr=rate,
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=decay,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )


class RunningAverage:
    """An exponential running average of weights, in their names."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self._decay = decay
        self._parameters = list(parameters.values())
        self.values = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the parameters after optimizer step `step`, faster at first."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), self._parameters, 1 - decay)
