"""What the machines of a shared run are called: as they call themselves, each otherwise than the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lowmem_seq.text import harmless

LONGEST_LABEL = 20
"""With what tells two of a name apart there is room for it in a plot (plots/figure.py)."""


def labels(machines: Sequence[tuple[str | None, str | None]]) -> list[str]:
    """Return a label for each machine, no two alike.

    Args:
        machines: id and name of each; either may be unknown.
    """
    wanted = [_wanted(machine, name) for machine, name in machines]
    counts = Counter(wanted)
    found: list[str] = []
    for (machine, _), label in zip(machines, wanted, strict=True):
        one = label if counts[label] == 1 or not machine else f"{label} ({harmless(machine, one_line=True)[:4]})"
        number = 2
        while one in found:
            one, number = f"{label} ({number})", number + 1
        found.append(one)
    return found


def _wanted(machine: str | None, name: str | None) -> str:
    told = " ".join(harmless(name or "", one_line=True).split())
    if told:
        return told if len(told) <= LONGEST_LABEL else f"{told[: LONGEST_LABEL - 1]}…"
    return f"machine {harmless(machine, one_line=True)[:6]}" if machine else "a machine"
