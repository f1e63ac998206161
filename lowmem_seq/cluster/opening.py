"""Writes what a hub is to serve: `python -m lowmem_seq.cluster.opening RUN_DIR`, before the hub is started.

That is the run's length and identity, and, where the host goes on from a checkpoint, what that has done: of a run
that was begun alone all positions up to there, of one that was in a cluster what its ledger says. A hub that saved
later rounds of its own goes on from those.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from lowmem_seq import __version__
from lowmem_seq.channel import Channel
from lowmem_seq.checkpoint.counters import read_counters
from lowmem_seq.checkpoint.manifest import Checkpoint
from lowmem_seq.checkpoint.store import CheckpointStore, Retention
from lowmem_seq.cluster.holdings import Holdings
from lowmem_seq.cluster.hub_store import LEDGER
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.member_alone import Lone
from lowmem_seq.cluster.member_checkpoint import Saved, from_json
from lowmem_seq.cluster.membership import read_membership
from lowmem_seq.cluster.messages import Settings
from lowmem_seq.cluster.ranges import Range
from lowmem_seq.cluster.serving import (
    CLUSTER_FOLDER,
    RESTORE_HINT,
    ROUNDS_FOLDER,
    START_LEDGER_FILE,
    Serving,
    Start,
    write_serving,
)
from lowmem_seq.config import ClusterConfig
from lowmem_seq.data.pack import Pack
from lowmem_seq.data.parts import open_parts
from lowmem_seq.errors import LowmemSeqError, NoCheckpointError
from lowmem_seq.files import read_json, remove_leftover, write_json
from lowmem_seq.runs.folder import RunFolder, open_run

STANDING = "cluster.json"
"""Of a checkpoint: where its machine stood in a cluster (member_checkpoint.py)."""
BEAT_SECONDS = 2.0
LARGEST_LEDGER_BYTES = 2**25


def main() -> int:
    """Write it for the run whose folder is named on the command line; return the exit code."""
    channel = Channel(saves=False)
    try:
        write(open_run(Path(sys.argv[1])))
    except LowmemSeqError as error:
        channel.say_error(error)
        return error.exit_code
    return 0


def write(run: RunFolder) -> None:
    """Write what the hub of this run is to serve.

    Raises:
        DataError: the pack is gone.
        NoCheckpointError: checkpoints are there, and none of them can be gone on from.
    """
    config, part, record = run.config, read_membership(run), run.read_json(run.data_file)
    assert part is not None
    assert record is not None
    pack = Pack.open(Path(record["pack"]))
    parts = open_parts(pack, config.data.classes, config.data.validation_fraction, config.seed)
    batch, epoch = config.recipe.effective_batch, parts.train.size
    total = config.total_steps(epoch) * batch
    identity = {"experiment_sha256": config.experiment_hash(), "data_fingerprint": pack.fingerprint}
    _write_start(run, identity, part.machine, total, epoch, batch)
    write_serving(
        run.path,
        Serving(
            format_version=1,
            port=part.port,
            host_machine=part.machine,
            program=__version__,
            experiment=config.experiment_hash(),
            data=pack.fingerprint,
            total=total,
            epoch_size=epoch,
            settings=settings_of(config.cluster),
            pack=str(pack.folder),
        ),
    )


def settings_of(cluster: ClusterConfig) -> Settings:
    """Return how the machines of a run work together."""
    return Settings(
        round_seconds=cluster.round_seconds,
        beat_seconds=min(BEAT_SECONDS, cluster.lost_after_seconds / 4),
        lost_after_seconds=cluster.lost_after_seconds,
        encoding=cluster.encoding,
        dense_rounds=cluster.dense_rounds,
        outer=cluster.outer,
        outer_rate=cluster.outer_rate,
        outer_momentum=cluster.outer_momentum,
    )


def _write_start(
    run: RunFolder, identity: dict[str, str], machine: str, total: int, epoch: int, batch: int
) -> None:
    """Write what the host's weights hold; where a saved round holds as much, that one is gone on from."""
    folder = run.path / CLUSTER_FOLDER
    checkpoint = CheckpointStore(run.checkpoints, Retention(1)).newest_valid(identity, lambda *_: None)
    remove_leftover(folder / START_LEDGER_FILE)
    if checkpoint is None:
        return
    saved = standing_of(checkpoint)
    if saved is None:
        done = min(read_counters(checkpoint).step * batch, total)
        ledger = Ledger(total, epoch)
        _do(ledger, machine, [(0, done)] if done else [])
    else:
        ledger = ledger_of(saved, machine, total, epoch)
    round_ = saved.base.round + 1 if saved is not None and saved.base is not None else 0
    rounds = CheckpointStore(folder / ROUNDS_FOLDER, Retention(2))
    own = rounds.newest_valid(identity, lambda *_: None) if rounds.folder.exists() else None
    if own is not None:
        if accepted_by(read_json(own.path / LEDGER, LARGEST_LEDGER_BYTES)) >= ledger.accepted:
            return
        remove_leftover(rounds.folder)  # the run went on without this hub
    write_json(folder / START_LEDGER_FILE, msgspec.to_builtins(Start(1, round_, ledger.to_json())))


def standing_of(checkpoint: Checkpoint) -> Saved | None:
    """Return where a checkpoint's machine stood in a cluster; None where it was in none.

    Raises:
        NoCheckpointError: its file is no such thing.
    """
    path = checkpoint.path / STANDING
    if not path.exists():
        return None
    try:
        return from_json(read_json(path, LARGEST_LEDGER_BYTES))
    except (ValueError, OSError) as error:
        raise NoCheckpointError(f"{path} holds no state of a cluster: {error}", RESTORE_HINT) from error


def ledger_of(saved: Saved, machine: str, total: int, epoch: int) -> Ledger:
    """Return the ledger of what a checkpoint's weights hold: what all had done, and this machine beyond that.

    Args:
        saved: where the machine stood.
        machine: its id.
        total: positions of the run; of the ledger, if that has more.
        epoch: positions of an epoch.

    Raises:
        NoCheckpointError: the ledger in it is damaged.
    """
    if saved.ledger is None or saved.base is None:  # the first round was not closed yet
        ledger = Ledger(total, epoch)
        _do(ledger, machine, saved.unmerged)
        return ledger
    holdings = Holdings()
    for lease, start, end, reached in saved.leases:
        holdings.give(lease, start, end, reached)
    try:
        lone = Lone.of_split(machine, saved.ledger, saved.base, saved.machines, holdings, saved.unmerged)
        lone.ledger.lose(machine)
        if total > lone.ledger.total:
            lone.ledger.extend(total)
        lone.ledger.alone = None  # nobody else goes on from here: what is left is done in its order
        return lone.ledger
    except ValueError as error:
        raise NoCheckpointError(
            f"the ledger of a cluster in this checkpoint can't be used: {error}", RESTORE_HINT
        ) from error


def _do(ledger: Ledger, machine: str, ranges: Iterable[Range]) -> None:
    for start, end in ranges:
        ledger.grant(machine, start, end, start)
        ledger.accept(machine, [(start, end)])


def accepted_by(told: Any) -> int:
    """Return how many samples a ledger has accepted; 0 where it is none."""
    try:
        return Ledger.from_json(told).accepted
    except ValueError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
