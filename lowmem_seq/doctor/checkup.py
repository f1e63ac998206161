"""All checks of a machine, in the order in which they are told: what everything else needs comes first."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from lowmem_seq.doctor import computing, desk, memory, power, software, storage
from lowmem_seq.doctor.card import has_nvidia_card
from lowmem_seq.doctor.finding import Finding, Group
from lowmem_seq.supervisor.awake import SystemWakefulness


def machine_groups() -> list[Group]:
    """Return the checks of this machine; each looks when its findings are asked for.

    Only how hot it is counts from now on: what computes in between may slow the processor down.
    """
    system = power.system_power()
    before = system.heat()
    return [
        Group(
            "software",
            [
                ("Python", lambda: software.check_python(software.this_python())),
                ("packages", _check_packages),
                ("torch build", _check_torch_build),
                ("torchvision", _check_torchvision),
                ("compiled cells", lambda: software.check_cells(*software.describe_cells())),
            ],
        ),
        Group("computing, tried in processes of their own", [("torch", _check_computing)]),
        Group(
            "memory",
            [
                ("free RAM", lambda: memory.check_free(memory.read_memory())),
                ("swap", lambda: memory.check_swap(memory.read_memory(), memory.read_swap())),
                ("control group", lambda: memory.check_group(memory.read_groups())),
                ("cap", memory.check_cap),
            ],
        ),
        Group(
            "disks",
            [
                ("runs folder", lambda: storage.check_place(*storage.RUNS_HERE, storage.runs_place())),
                ("cache folder", lambda: storage.check_place(*storage.CACHE, storage.cache_place())),
            ],
        ),
        Group(
            "power",
            [
                ("sleep", lambda: power.check_sleep(system, SystemWakefulness())),
                ("battery", lambda: power.check_battery(power.read_battery())),
                ("heat", lambda: power.check_heat(system, before)),
            ],
        ),
        Group(
            "clock and terminal",
            [
                ("clock", lambda: desk.check_clock(time.time(), desk.installation_time())),
                ("terminal", lambda: desk.check_terminal(sys.stdout)),
            ],
        ),
    ]


def _check_packages() -> Iterator[Finding]:
    index = software.from_cpu_index(has_nvidia_card())
    return software.check_packages(software.requirements_of("lowmem-seq"), index=index)


def _check_torch_build() -> Iterator[Finding]:
    return software.check_torch_build(software.read_build("torch"), has_nvidia_card())


def _check_torchvision() -> Iterator[Finding]:
    torch, torchvision = software.read_build("torch"), software.read_build("torchvision")
    return software.check_torchvision(torch, torchvision, software.torch_wanted_by("torchvision"))


def _check_computing() -> Iterator[Finding]:
    build, has_card = software.read_build("torch"), has_nvidia_card()
    return computing.check_computing(
        has_card and build is not None and build.cuda is not None,
        reinstall=f"{computing.REINSTALL}{software.from_cpu_index(has_card)}",
    )
