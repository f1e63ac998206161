"""Whether there is memory to train in, and whether the system keeps a run under its cap."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from lowmem_seq.doctor.canaries import Outcome, try_out
from lowmem_seq.doctor.finding import Finding, fault, note, well
from lowmem_seq.memory.cgroups import ControlGroups, GroupMemory
from lowmem_seq.memory.readings import MachineMemory, system_reader
from lowmem_seq.units import format_bytes

MODULE = "lowmem_seq.memory.canary"
LEAST_BYTES = 600 * 10**6
"""What Small and its supervisor take at the least, with layers computed twice (docs/results.md)."""
COMFORTABLE_BYTES = 1_500_000_000
"""From here on Small computes as fast as it can."""
SMALL_MACHINE_BYTES = 9 * 10**9
"""Up to this size, a machine without swap space soon ends programs."""
MUCH_SWAPPED = 0.25
"""Share of the memory: with so much of it swapped out, programs wait for the disk."""
SWAPFILE = (
    "sudo fallocate -l 4G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile"
)


def check_free(memory: MachineMemory) -> Iterator[Finding]:
    """Say whether enough memory is free to train now."""
    free, total = format_bytes(memory.available_bytes), format_bytes(memory.total_bytes)
    figures = {"available_bytes": memory.available_bytes, "total_bytes": memory.total_bytes}
    close = "close the browser and other large programs"
    if memory.available_bytes < LEAST_BYTES:
        yield fault(
            "free RAM", f"{free} of {total}; Small needs {format_bytes(LEAST_BYTES)} at the least", close, **figures
        )
    elif memory.available_bytes < COMFORTABLE_BYTES:
        told = f"{free} of {total}: enough for Small, which is faster with {format_bytes(COMFORTABLE_BYTES)}"
        yield note("free RAM", told, close, **figures)
    else:
        yield well("free RAM", f"{free} of {total}", **figures)


def check_swap(
    memory: MachineMemory, swap: tuple[int, int] | None, platform: str = sys.platform
) -> Iterator[Finding]:
    """Say whether the machine swaps, or could not.

    Args:
        memory: the machine's.
        swap: the size of its swap space, and what of it is used, in bytes; None where it isn't told.
        platform: as `sys.platform` has it.
    """
    if swap is None:
        told = "not known: Windows' performance counters, which tell it, are switched off"
        yield note("swap", told, "lodctr /R   in a terminal that was opened as administrator makes them anew")
        return
    total, used = swap
    figures = {"total_bytes": total, "used_bytes": used}
    if platform == "linux" and not total and memory.total_bytes <= SMALL_MACHINE_BYTES:
        yield note(
            "swap",
            "there is none: when memory runs out, Linux ends a program, which may be the training",
            SWAPFILE,
            **figures,
        )
    elif used > MUCH_SWAPPED * memory.total_bytes:
        yield note(
            "swap",
            f"{format_bytes(used)} of memory lie on the disk: programs that come back from there are slow",
            "close what you don't need, or restart the machine",
            **figures,
        )
    else:
        told = f"{format_bytes(used)} of {format_bytes(total)} used" if total else "none"
        yield well("swap", told, **figures)


def check_group(groups: Sequence[GroupMemory]) -> Iterator[Finding]:
    """Say what a container or a batch system allows, if any bounds this process."""
    if not groups:
        return
    tightest = min(groups, key=lambda group: group.limit_bytes)
    figures = {"limit_bytes": tightest.limit_bytes, "available_bytes": tightest.available_bytes}
    told = f"this process's group may hold {format_bytes(tightest.limit_bytes)}"
    if tightest.limit_bytes < LEAST_BYTES:
        fix = "give the container more: docker run --memory 2g; systemd: MemoryMax=2G"
        yield fault("control group", f"{told}; Small needs {format_bytes(LEAST_BYTES)}", fix, **figures)
    else:
        yield well("control group", f"{told}, {format_bytes(tightest.available_bytes)} of it free", **figures)


def check_cap(try_all: Callable[..., Iterator[Outcome]] = try_out) -> Iterator[Finding]:
    """Say whether the system keeps a process under its bound, by trying it in a child."""
    (outcome,) = try_all(MODULE, ["cap"])
    by, told = outcome.facts.get("enforced_by"), "runs are kept under --max-ram by looks many times a second alone"
    if outcome.trouble:
        yield note(
            "cap", f"trying it failed: {outcome.trouble}; {told}", "leave 500 MB between --max-ram and free RAM"
        )
    elif outcome.facts["refused"]:
        yield well("cap", f"enforced by the system ({by}), tried", **outcome.facts)
    elif outcome.facts["refused"] is None:
        yield well("cap", f"best effort: this system bounds nothing; {told}", **outcome.facts)
    else:
        yield note(
            "cap",
            f"this system takes the bound ({by}) and does not keep it, as some sandboxes do; {told}",
            "leave 500 MB between --max-ram and the free RAM",
            **outcome.facts,
        )


def read_memory() -> MachineMemory:
    """Return the machine's memory."""
    return system_reader().machine()


def read_swap(system: Any = psutil) -> tuple[int, int] | None:
    """Return the size of the machine's swap space, and what of it is used, in bytes; None where it isn't told."""
    try:
        swap = system.swap_memory()
    except RuntimeError:  # Windows without performance counters
        return None
    return int(swap.total), int(swap.used)


def read_groups(platform: str = sys.platform) -> list[GroupMemory]:
    """Return the control groups that bound this process; none but on Linux."""
    return ControlGroups(Path("/proc")).read() if platform == "linux" else []
