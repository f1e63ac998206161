"""The checkpoints of one session: when one is due, how it is written, and which one is gone on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lowmem_seq.checkpoint.manifest import Checkpoint
from lowmem_seq.checkpoint.store import CheckpointStore, Retention
from lowmem_seq.config import CheckpointConfig
from lowmem_seq.disk import free_bytes
from lowmem_seq.errors import DiskError, NoCheckpointError
from lowmem_seq.runs.clocks import awake_seconds
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.journal import Journal
from lowmem_seq.training.patience import DiskPatience
from lowmem_seq.training.saving import SavingClock
from lowmem_seq.training.source import Source
from lowmem_seq.training.state import TrainingState
from lowmem_seq.units import format_bytes

HEADER_BYTES = 10**6
"""What headers, counters and the manifest of a checkpoint take at the most."""


class Saver:
    """Writes what a session is to be resumed from.

    Args:
        run: where it is kept.
        settings: how often, and how many.
        state: what is saved.
        source: returns where the samples come from; what it has to save is saved along.
        identity: what the checkpoints of this run belong to.
        journal: hears of every save, and of every checkpoint that is passed over.
        stop_requested: whether somebody asks the run to stop; then a full disk is not waited for.
        keeps: whether this process saves at all; of several that train the same one does.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: CheckpointConfig,
        state: TrainingState,
        source: Callable[[], Source],
        identity: Mapping[str, str],
        journal: Journal,
        stop_requested: Callable[[], bool],
        keeps: bool = True,
    ) -> None:
        retention = Retention(settings.keep, settings.keep_best, settings.keep_every_steps)
        self.store = CheckpointStore(run.checkpoints, retention)
        self.patience = DiskPatience(
            run.path, journal, settings.disk_patience_seconds, run.resume_command, stop_requested
        )
        self._run, self._settings, self._state, self._source = run, settings, state, source
        self.identity, self._journal = identity, journal
        self.keeps = keeps
        self._clock = SavingClock(settings.interval)
        self._saved = (0, 0)

    def is_due(self, is_best: bool) -> bool:
        """Whether to save the last complete step: by the interval, for good, or as an affordable best."""
        step, kept_for_good = self._state.counters.step, self._settings.keep_every_steps
        return self.keeps and (
            self._clock.is_due(step)
            or (kept_for_good is not None and step // kept_for_good > self._saved[0] // kept_for_good)
            or (is_best and self._clock.is_affordable())
        )

    def save(self) -> None:
        """Save the last complete step, unless it is saved already.

        Raises:
            DiskError: the disk refused for longer than the patience.
        """
        step, stands = self._state.counters.step, (self._state.counters.step, self._state.counters.images)
        if not self.keeps or stands == self._saved:
            return
        began = awake_seconds()
        what = f"the checkpoint of step {step}"
        self._source().does("saving")
        checkpoint, seconds = self.patience.run(what, self._save_once, self.checkpoint_bytes)
        self._source().does("training")
        self._saved = stands
        self._journal.pause_ended(awake_seconds() - began)
        self._clock.saved(seconds)
        self._journal.record("checkpoint", step=step, path=checkpoint.path.name, seconds=seconds)

    def _save_once(self) -> tuple[Checkpoint, float]:
        began = awake_seconds()
        counters = self._state.counters
        counters.wall_seconds = self._journal.wall_seconds()
        writers = {**self._state.writers(), **self._source().writers()}
        checkpoint = self.store.save(counters.step, writers, self.identity, counters.metrics, self.checkpoint_bytes)
        return checkpoint, awake_seconds() - began

    @property
    def has_saved(self) -> bool:
        """Whether there is a checkpoint, of this session or taken up by it."""
        return self._saved != (0, 0)

    @property
    def checkpoint_bytes(self) -> int:
        """What one checkpoint needs on the disk."""
        return self._state.saved_bytes + self._source().saved_bytes + HEADER_BYTES

    def require_disk_space(self) -> None:
        """See before the first step whether the disk has room for what will lie there side by side.

        That is the newest checkpoints, the best one, one in the making, and the final weights. Later, a save that
        finds no room waits for it.

        Raises:
            DiskError: it hasn't.
        """
        if not self.keeps or self._state.counters.step:
            return
        count = self._settings.keep + self._settings.keep_best + 1
        weights_bytes = sum(value.nbytes for value in self._state.parameters.values())
        needed, free = count * self.checkpoint_bytes + weights_bytes, free_bytes(self._run.path)
        if free < needed:
            raise DiskError(
                f"{self._run.path} needs {format_bytes(needed)} on the disk: {count} checkpoints of "
                f"{format_bytes(self.checkpoint_bytes)}, and the final weights; {format_bytes(free)} are free.",
                "make room, or put the run elsewhere: --run-dir DIR",
            )

    def load_newest(self) -> Checkpoint | None:
        """Take up the newest checkpoint that verifies, and return it; where none was ever saved, step 0 it is.

        Raises:
            NoCheckpointError: checkpoints were saved, and none verifies, or none is there.
            UsageError: they belong to another experiment.
        """
        checkpoint = self.store.newest_valid(
            self.identity, lambda event, message: self._journal.record(event, message=message)
        )
        if checkpoint is not None:
            self._state.load(checkpoint)
            counters = self._state.counters
            self._saved = (counters.step, counters.images)
            self._clock.take_up(counters.step)
            self._journal.take_up(counters)
            return checkpoint
        saved = [event.get("step") for event in self._run.events if event["event"] == "checkpoint"]
        if saved:
            raise NoCheckpointError(
                f"step {saved[-1]} of this run was saved, and {self.store.folder} holds no checkpoint now.",
                "restore the folder from a copy, or start a new run with lowmem-seq train",
            )
        return None
