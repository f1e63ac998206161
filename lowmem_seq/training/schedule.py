"""The learning rate as a function of the step: linear warm-up, then a half cosine (arXiv 1608.03983)."""

from __future__ import annotations

import math

from lowmem_seq.config import RecipeConfig


def learning_rate(recipe: RecipeConfig, step: int, total_steps: int) -> float:
    """Return the rate of optimizer step `step`, counted from 0, of `total_steps`."""
    warmup_steps = recipe.warmup_fraction * total_steps
    if step + 1 <= warmup_steps:
        return recipe.peak_learning_rate * (step + 1) / warmup_steps
    progress = (step + 1 - warmup_steps) / max(1.0, total_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return recipe.final_learning_rate + (recipe.peak_learning_rate - recipe.final_learning_rate) * cosine
