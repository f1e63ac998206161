"""What is to be said of a shared run beside its figures: what is missing, what disagrees, who has not met again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from lowmem_seq.report.shared import SharedRun
from lowmem_seq.units import format_seconds

CLOCKS_AGREE_SECONDS = 5.0
"""A host's supervisor writes down within about a second what its hub says."""


def notes_of(shared: SharedRun) -> list[str]:
    """Return them, a sentence or two each; names may come from elsewhere."""
    return [
        *_missing(shared),
        *_copies(shared),
        *_sides(shared),
        *_clocks(shared),
        *_other_weights(shared),
    ]


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _missing(shared: SharedRun) -> list[str]:
    missing = [machine.label for machine in shared.missing]
    if not missing:
        return []
    there = [machine.label for machine in shared.machines if machine.reading is not None]
    paths = " ".join(shlex.quote(str(one.run.path)) for one in shared.readings)
    folders, others = ("folder", "OTHER_FOLDER") if len(missing) == 1 else ("folders", "OTHER_FOLDER...")
    return [
        f"This is what {listed(there)} told; the {folders} of {listed(missing)} would make it whole: "
        f"lowmem-seq report {paths} {others}"
    ]


def _copies(shared: SharedRun) -> list[str]:
    labels = {machine.figures["machine"]: machine.label for machine in shared.machines}
    return [
        f"{one.run.path} is another copy of the folder of {labels[one.part.machine]}, and older: it was left out."
        for one in shared.copies
    ]


def _sides(shared: SharedRun) -> list[str]:
    if not shared.sides or shared.told is None:
        return []
    told = [
        f"{side.label}'s side has {side.accepted:,} samples"
        + ("" if side.since_split is None else f", {side.since_split:,} of them since then")
        for side in shared.sides
    ]
    return [
        f"The machines have parted and not met again. {'; '.join(told)}; the table counts the side that has come "
        f"furthest, with {shared.told.accepted:,}. When they meet, that one stays."
    ]


def _clocks(shared: SharedRun) -> list[str]:
    return [
        f"The clock of {machine.label} is about {format_seconds(abs(ahead))} "
        f"{'ahead of' if ahead > 0 else 'behind'} its host's; the times of each machine are its own clock's."
        for machine in shared.machines
        if (ahead := machine.figures["clock_ahead_seconds"]) is not None and abs(ahead) > CLOCKS_AGREE_SECONDS
    ]


def _other_weights(shared: SharedRun) -> list[str]:
    """Two machines that came to the end of one run must have tested one model."""
    tested = {
        machine.label: (machine.reading.summary["step"], machine.reading.summary["weights_sha256"])
        for machine in shared.machines
        if machine.reading is not None and machine.reading.summary["weights_sha256"] is not None
    }
    same_step = len({step for step, _ in tested.values()}) == 1
    if not same_step or len({digest for _, digest in tested.values()}) < 2:
        return []
    return [f"{listed(list(tested))} ended with different weights: each has a model of its own."]
