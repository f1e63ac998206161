"""A real run of four steps, whose newest checkpoint is damaged and mended again and again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lowmem_seq.channel import Channel
from lowmem_seq.checkpoint.manifest import MANIFEST, Checkpoint, Fault, find_fault
from lowmem_seq.checkpoint.store import CheckpointStore, Retention
from lowmem_seq.data.pack import Pack
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.loop import Training
from lowmem_seq.training.session import open_training
from tests.builders import make_run, names, tiny_config, tiny_plan

NAMES = ("average.safetensors", MANIFEST, "model.safetensors", "optimizer.safetensors", "state.json")
OLDER, NEWER = "step-00000002", "step-00000004"


def open_tiny(run: RunFolder) -> Training:
    return open_training(run, tiny_plan(), Channel(listen=False))


def train_two_checkpoints(path: Path, pack: Pack, *assignments: str) -> RunFolder:
    """A run with checkpoints of its second and fourth step."""
    run = make_run(path, pack, tiny_config("recipe.ema_decay=0.9", *assignments))
    training = open_tiny(run)
    for _ in range(2):
        assert training.train_step()
        assert training.train_step()
        training.saver.save()
    return run


@dataclass(frozen=True)
class Patient:
    """A copy of a trained run, whose newest checkpoint is damaged and mended again and again."""

    run: RunFolder
    identity: dict[str, str]

    @property
    def newest(self) -> Path:
        return self.run.checkpoints / NEWER

    def fault(self) -> Fault | None:
        return find_fault(Checkpoint(self.newest, 4), self.identity)

    def diagnose(self) -> Fault:
        """Have the damage found and told, the older checkpoint taken; put the damaged one back under its name."""
        fault = self.fault()
        assert fault is not None
        told: list[tuple[str, str]] = []
        store = CheckpointStore(self.run.checkpoints, Retention(newest=2))
        older = store.newest_valid(self.identity, lambda event, message: told.append((event, message)))
        assert older == Checkpoint(self.run.checkpoints / OLDER, 2)
        aside = f"{fault.kind}-{NEWER}"
        message = f"{NEWER} does not verify ({fault.text}); set aside as {aside}"
        assert told == [("checkpoint_passed_over", message)]
        assert names(self.run.checkpoints) == [aside, OLDER]
        (self.run.checkpoints / aside).rename(self.newest)
        return fault

    def damaged_by(self, content: bytes, name: str) -> Fault:
        """The fault with a file's content replaced; the content of before is put back."""
        path = self.newest / name
        before = path.read_bytes()
        assert content != before
        path.write_bytes(content)
        fault = self.diagnose()
        path.write_bytes(before)
        return fault
