"""Which weights of a run are to be used by others: the final ones, or those of the newest checkpoint that verifies.

Nothing is changed in the run folder, so that a run can be asked while it trains. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lowmem_seq.checkpoint.store import checkpoints_in
from lowmem_seq.checkpoint.verification import AVERAGE, MODEL, find_weights_fault, verify_checkpoint
from lowmem_seq.errors import NoCheckpointError
from lowmem_seq.runs.folder import RunFolder


@dataclass(frozen=True)
class UsableWeights:
    """A file of weights that verifies."""

    path: Path
    step: int | None
    """Of the checkpoint that they are from; None: they are the final ones."""
    passed_over: tuple[str, ...] = ()
    """Newer checkpoints that don't verify, and why, in words."""

    @property
    def told(self) -> str:
        """What they are, for people."""
        return "the final weights" if self.step is None else f"the checkpoint of step {self.step:,}"


def find_weights(run: RunFolder, sha256: str | None) -> UsableWeights:
    """Return the weights of a run that are to be used; the running average where the run keeps one.

    Args:
        run: what was trained, or is.
        sha256: what the end of the run told of its final weights; None: it has not ended, or goes on again, and
            then they may be those of an earlier end.

    Raises:
        NoCheckpointError: none verifies, or nothing was saved yet.
    """
    if sha256 is not None and run.weights_file.is_file():
        return _final(run, sha256)
    passed_over: list[str] = []
    for checkpoint in reversed(checkpoints_in(run.checkpoints)):
        verdict = verify_checkpoint(checkpoint, {"experiment_sha256": run.config.experiment_hash()})
        if verdict is None:  # pruned meanwhile, so there is a newer one
            return find_weights(run, sha256)
        if verdict.fault is None:
            name = AVERAGE if AVERAGE in verdict.contents else MODEL
            return UsableWeights(checkpoint.path / name, checkpoint.step, tuple(passed_over))
        passed_over.append(f"{checkpoint.path.name} does not verify: {verdict.fault}")
    if passed_over:
        raise NoCheckpointError(
            f"no checkpoint of {run.path} verifies ({'; '.join(passed_over)}).",
            "restore the folder from a copy, or train again with lowmem-seq train",
        )
    if run.weights_file.is_file():  # all else of the run was deleted to save room
        return _final(run, sha256)
    raise NoCheckpointError(f"{run.path} has no weights yet: nothing was saved.", run.resume_command)


def _final(run: RunFolder, sha256: str | None) -> UsableWeights:
    fault = find_weights_fault(run.weights_file, None, sha256)
    if fault is not None:
        raise NoCheckpointError(
            f"{run.weights_file} does not verify: {fault}.",
            "restore it from a copy, or delete it: then the newest checkpoint is taken",
        )
    return UsableWeights(run.weights_file, None)
