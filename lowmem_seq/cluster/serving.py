"""What a hub is told to serve: RUN_DIR/cluster/hub.json, which the supervisor writes before it starts the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lowmem_seq.cluster.messages import Count, Digest, MachineId, Settings, Short
from lowmem_seq.errors import LowmemSeqError, NoCheckpointError
from lowmem_seq.files import read_json, write_json

RESTORE_HINT = "restore the run folder from a copy, or start a new run with lowmem-seq train"

CLUSTER_FOLDER, ROUNDS_FOLDER = "cluster", "rounds"
HUB_FILE = "hub.json"
START_FILE = "start.safetensors"
"""The first weights, which the host's trainer writes: float32, by the names of the layout."""
START_LEDGER_FILE = "start.json"
"""Where these weights are not the run's first ones, but those of a machine that hosts the rest of a run which
another machine's hub served before: `Start`. It is there before the hub is started."""
Samples = Annotated[int, Meta(ge=1, le=10**15)]


class Serving(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run, as its hub must know it before there is data or a model."""

    format_version: Literal[1]
    port: Annotated[int, Meta(ge=0, le=65535)]
    """0 takes any that is free."""
    host_machine: MachineId
    """Of the machine whose trainer writes the first weights."""
    program: Short
    """Version of lowmem-seq."""
    experiment: Digest
    """Of all settings that decide what is trained."""
    data: Digest
    """The dataset's fingerprint."""
    total: Samples
    """Positions of the whole run."""
    epoch_size: Samples
    settings: Settings
    pack: str = ""
    """The folder of the packed images, on this machine, for those that have none."""


class Start(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the first weights hold."""

    format_version: Literal[1]
    round: Count
    ledger: dict[str, Any]
    """As `Ledger.to_json` tells it."""


def read_start(run_folder: Path) -> Start | None:
    """Return what the first weights hold; None: nobody's work.

    Raises:
        NoCheckpointError: the file is damaged.
    """
    path = run_folder / CLUSTER_FOLDER / START_LEDGER_FILE
    try:
        return msgspec.convert(read_json(path), Start) if path.exists() else None
    except ValueError as error:
        raise NoCheckpointError(f"{path} can't be read: {error}", RESTORE_HINT) from error


def write_serving(run_folder: Path, serving: Serving) -> None:
    """Write what the hub of this run is to serve; its folder is made where it is missing."""
    folder = run_folder / CLUSTER_FOLDER
    folder.mkdir(exist_ok=True)
    write_json(folder / HUB_FILE, msgspec.to_builtins(serving))


def read_serving(run_folder: Path) -> Serving:
    """Return what the hub of this run is to serve.

    Raises:
        LowmemSeqError: the file is missing, or not what a supervisor of this version writes: a defect.
    """
    path = run_folder / CLUSTER_FOLDER / HUB_FILE
    try:
        return msgspec.convert(read_json(path), Serving)
    except (OSError, ValueError) as error:
        raise LowmemSeqError(
            f"{path} does not tell a hub what to serve: {error}",
            "this is a defect of lowmem-seq, or somebody changed the file; start the session again",
        ) from error
