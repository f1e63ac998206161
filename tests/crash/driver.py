"""A trainer that can be killed at any system call: `python -m tests.crash.driver`.

It makes a real run folder, holds its lock and saves real checkpoints; only its weights are a chain of hashes. With
its imports behind it, it reads an action and a folder a line, and forks a child for each, which stops itself, so
that strace can be attached. It tells the child's process id, and then how it ended.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from lowmem_seq.checkpoint.codec import read_tensors_into, write_tensors
from lowmem_seq.checkpoint.store import CheckpointStore, Retention
from lowmem_seq.errors import UsageError
from lowmem_seq.files import write_json
from lowmem_seq.runs.folder import create_run, open_run
from tests.builders import tiny_config

KEPT = 2
IDENTITY = {"experiment_sha256": "e" * 64, "data_fingerprint": "d" * 64}
WEIGHTS, STATE = "model.safetensors", "state.json"
CONFIG = tiny_config()
DEFECT = 99
"""The exit code of a child that raised what it must not raise."""


class Trainer:
    """One session of one run. A save that the disk refuses is tried once more, as the real trainer does."""

    def __init__(self, folder: Path) -> None:
        self.run = open_run(folder) if (folder / "config.yaml").exists() else create_run(folder, CONFIG)
        self.store = CheckpointStore(self.run.checkpoints, Retention(KEPT))
        self.step = self.refusals = 0
        self.weights = torch.zeros(hashlib.sha256().digest_size, dtype=torch.uint8)

    def begin(self) -> None:
        """Tidy the folder, complete a new one, and take up the newest checkpoint."""
        self.run.remove_leftovers()
        for path in (self.run.data_file, self.run.plan_file):
            if not path.exists():
                write_json(path, {"name": path.name})
        self.run.events.append("session_started")
        checkpoint = self.store.newest_valid(IDENTITY, self.tell)
        if checkpoint is not None:
            self.step = checkpoint.step
            read_tensors_into({"weights": self.weights}, checkpoint.path / WEIGHTS, "model")

    def tell(self, event: str, message: str) -> None:
        self.run.events.append(event, message=message)

    def train(self, until: int) -> None:
        """Do the steps that are left, and save each."""
        while self.step < until:
            self.step += 1
            digest = hashlib.sha256(bytes(self.weights.tolist()) + b"%d" % self.step).digest()
            self.weights = torch.tensor(list(digest), dtype=torch.uint8)
            self.save()

    def save(self) -> None:
        try:
            self.save_once()
        except OSError:
            self.refusals += 1
            self.save_once()
        self.run.events.append("checkpoint", step=self.step)

    def save_once(self) -> None:
        writers: dict[str, Callable[[Path], None]] = {WEIGHTS: self.write_weights, STATE: self.write_state}
        self.store.save(self.step, writers, IDENTITY)

    def write_weights(self, path: Path) -> None:
        write_tensors(path, {"weights": self.weights})

    def write_state(self, path: Path) -> None:
        path.write_text(f'{{"step": {self.step}}}', encoding="utf-8")


def train(folder: Path, until: int) -> int:
    """Start a run, or go on with it, up to a step; return how often the disk refused a save."""
    trainer = Trainer(folder)
    with trainer.run.locked():
        trainer.begin()
        trainer.train(until)
    return trainer.refusals


def save_again(folder: Path) -> int:
    """Save the newest checkpoint's step in its own place; return how often the disk refused."""
    trainer = Trainer(folder)
    with trainer.run.locked():
        trainer.begin()
        trainer.save()
    return trainer.refusals


ACTIONS: dict[str, Callable[[Path], int]] = {
    "first": lambda folder: train(folder, 1),
    "third": lambda folder: train(folder, 3),
    "again": save_again,
}


def _act(action: str, folder: Path) -> int:
    """Do an action, if need be at the second try; return how often the disk refused it."""
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        try:
            return ACTIONS[action](folder)
        except (OSError, UsageError) as error:
            if not isinstance(error, OSError) and not isinstance(error.__cause__, OSError):
                raise
        return 1 + ACTIONS[action](folder)
    except Exception:
        traceback.print_exc()
        return DEFECT


def main() -> None:
    """Serve until the input ends."""
    with tempfile.TemporaryDirectory() as folder:  # what is imported late is imported now
        train(Path(folder) / "run", KEPT + 1)
    print("ready", flush=True)
    for line in sys.stdin:
        action, folder = line.rstrip("\n").split(" ", 1)
        child = os.fork()
        if child == 0:
            os._exit(_act(action, Path(folder)))
        os.waitpid(child, os.WUNTRACED)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
