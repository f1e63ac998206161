"""What tests of the benchmarks share."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from benchmarks.sides import our_command
from benchmarks.workloads import WORKLOADS
from lowmem_seq.config import RunConfig, load_preset, override, validate


def our_config(name: str, processor: str) -> RunConfig:
    """What the command line of ours asks for."""
    command = our_command(WORKLOADS[name], processor, "shapes", Path("run"))
    settings = load_preset(name)
    for flag, value in pairwise(command):
        if flag == "--set":
            override(settings, value)
    return validate(settings)
