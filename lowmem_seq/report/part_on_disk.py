"""A machine's part in a shared run as its saves hold it, where its events don't tell: earlier releases' did not.

A machine's checkpoint has the ledger of samples in `cluster.json`, a hub's saved round in `ledger.json`. Nothing is
verified or changed here: a folder that is only looked at stays as it is.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from lowmem_seq.checkpoint.store import checkpoints_in
from lowmem_seq.cluster.history import MOST_MACHINES
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.member_checkpoint import from_json
from lowmem_seq.cluster.membership import machine_of, read_membership
from lowmem_seq.cluster.serving import CLUSTER_FOLDER, ROUNDS_FOLDER
from lowmem_seq.errors import LowmemSeqError
from lowmem_seq.files import read_json
from lowmem_seq.report.part import Part
from lowmem_seq.report.part_figures import Told, read_told
from lowmem_seq.runs.folder import RunFolder

LARGEST_LEDGER_BYTES = 2**25
FAULTS = (LowmemSeqError, OSError, KeyError, TypeError, ValueError, RecursionError)


def fill_in(part: Part, run: RunFolder) -> None:
    """Add to a part what the run's saves know and its events did not tell; a broken save adds nothing.

    Args:
        part: that has taken in all events.
        run: its folder, of which it is known that it holds no links.
    """
    if not (run.path / CLUSTER_FOLDER).is_dir():
        return
    with contextlib.suppress(*FAULTS):
        part.machine = part.machine or machine_of(run)
    with contextlib.suppress(*FAULTS):
        membership = read_membership(run)
        part.name = part.name or (membership.name if membership is not None else None)
    if part.told is None:
        for read in (_of_a_checkpoint, _of_a_round):
            with contextlib.suppress(*FAULTS):
                _take_up(part, *read(run))


def _take_up(part: Part, cluster: str, told: Told) -> None:
    if part.cluster in (None, cluster) and (part.told is None or part.told.accepted < told.accepted):
        part.cluster, part.told = cluster, told


def _of_a_checkpoint(run: RunFolder) -> tuple[str, Told]:
    """Return the cluster's name and who did what, as the newest checkpoint has it.

    Raises:
        ValueError, OSError: there is none, or it can't be read.
    """
    saved = from_json(_newest(run.checkpoints, "cluster.json"))
    if saved.base is None or saved.ledger is None:
        raise ValueError("no round had been closed")
    return saved.base.cluster, _told(Ledger.from_json(saved.ledger), saved.base.round, saved.alone)


def _of_a_round(run: RunFolder) -> tuple[str, Told]:
    """Return the same as the hub's newest saved round has it.

    Raises:
        ValueError, OSError: there is none, or it can't be read.
    """
    folder = run.path / CLUSTER_FOLDER / ROUNDS_FOLDER
    ledger = Ledger.from_json(_newest(folder, "ledger.json"))
    return ledger.history.branches[0].name, _told(ledger, checkpoints_in(folder)[-1].step, is_alone=False)


def _newest(folder: Path, file: str) -> Any:
    checkpoints = checkpoints_in(folder)
    if not checkpoints:
        raise ValueError(f"there is none in {folder}")
    return read_json(checkpoints[-1].path / file, LARGEST_LEDGER_BYTES)


def _told(ledger: Ledger, round_: int, is_alone: bool) -> Told:
    standing = ledger.standing()
    shares = {
        machine: {"accepted": share.accepted, "repeated": share.repeated, "discarded": share.discarded}
        for machine, share in standing.by_machine.items()
    }
    value = {"branch": ledger.branch[0], "round": round_, "accepted": ledger.accepted, "total": ledger.total}
    return read_told({**value, "alone": is_alone, "machines": shares}, MOST_MACHINES)
