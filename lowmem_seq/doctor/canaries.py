"""Starts processes that may die of what they try, and hears what became of each canary.

One process tries all canaries in turn, so that libraries are loaded once. Where it dies, or is silent for too long,
that is what the canary of the moment found, and a new process goes on with those that are left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowmem_seq.memory.environment import PASSIVE_WAITING
from lowmem_seq.supervisor.child import Child

SECONDS_EACH = 30.0
"""For one canary, the import of a library from a cold disk included; they take about one."""


@dataclass(frozen=True)
class Outcome:
    """What became of a canary."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    trouble: str = ""
    """How it failed, in words; empty where it has facts."""


def try_out(module: str, names: Sequence[str], seconds_each: float = SECONDS_EACH) -> Iterator[Outcome]:
    """Try canaries, and yield what becomes of each, in their order.

    Args:
        module: the program that has them: it says `began`, then `facts` or `failed`, of each name it is given.
        names: which to try.
        seconds_each: how long one may take.
    """
    left = list(names)
    while left:
        child = Child(module, *left, environment=PASSIVE_WAITING)
        silent = False
        try:
            for message in child.messages(seconds_each):
                if message is None:
                    silent = True
                    break
                if message["event"] in ("facts", "failed"):
                    left.remove(message["canary"])
                    yield Outcome(message["canary"], message.get("facts", {}), message.get("error", ""))
        finally:
            child.kill()
            code = child.wait()
        if left:
            end = f"did not end within {seconds_each:.0f} s" if silent else child.describe_end(code)
            yield Outcome(left.pop(0), trouble=f"its process {end}")
