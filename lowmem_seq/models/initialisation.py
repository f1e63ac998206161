"""How fresh weights are drawn, from torch's global generator: seed it first to get the same model again.

Both schemes leave norms at one and zero, and LSTMs as nn.LSTM draws them, uniform within 1 / sqrt(hidden units),
which is what the paper's code does too.
"""

from __future__ import annotations

import math

from torch import nn

from lowmem_seq.models.patches import PatchLinear

NORM_EPS = 1e-6  # the paper's code; nn.LayerNorm's own default is 1e-5
_TRUNCATED_STD = 0.87962566103423978  # standard deviation of a standard normal cut off at -2 and 2


def initialise_he(model: nn.Module) -> None:
    """Draw every linear layer normal with variance 2 / inputs (He et al., arXiv 1502.01852) and its bias zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)


def initialise_paper(model: nn.Module) -> None:
    """Draw as the paper's code and timm do.

    Patch embedding and merging are LeCun normal, the head is zero, every other linear layer Xavier uniform; the
    biases of the channel MLPs (modules named `mlp`) are normal with a deviation of 1e-6, all others zero.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if ".mlp." in name:
                nn.init.normal_(module.bias, std=1e-6)
            if name == "head":
                nn.init.zeros_(module.weight)
    for module in model.modules():
        if isinstance(module, PatchLinear):
            std = math.sqrt(1 / module.linear.in_features) / _TRUNCATED_STD
            nn.init.trunc_normal_(module.linear.weight, std=std, a=-2 * std, b=2 * std)
