"""Runs by their events alone, as trainers and supervisors write them."""

from __future__ import annotations

import json
from typing import Any

from lowmem_seq.files import append_line
from lowmem_seq.runs.folder import RunFolder

BATCH, TRAIN_IMAGES, STEPS = 40, 400, 60
CAP_BYTES = 10**9
TESTED_WEIGHTS = "ab"


def tell(run: RunFolder, event: str, at: float | None = None, **details: Any) -> None:
    """Append an event, as of now or of the time `at`."""
    if at is None:
        run.events.append(event, **details)
        return
    line = json.dumps({"time_unix_seconds": at, "event": event, **details})
    append_line(run.events.path, line.encode())


def start_session(run: RunFolder, step: int = 0, micro_batch: int = 16, at: float | None = None) -> None:
    """A trainer begins after `step` steps of 60, of 40 images each, at 10 steps an epoch."""
    tell(
        run,
        "session_started",
        at,
        step=step,
        total_steps=STEPS,
        epochs=STEPS * BATCH / TRAIN_IMAGES,
        parameters=1234,
        train_images=TRAIN_IMAGES,
        classes=["a", "b"],
        device="cpu",
        precision="fp32",
        micro_batch=micro_batch,
        effective_batch=BATCH,
    )


def train_to(
    run: RunFolder, step: int, loss: float = 1.5, rate: float = 100.0, at: float | None = None, **more: Any
) -> None:
    """The trainer is at `step`."""
    tell(
        run,
        "train",
        at,
        step=step,
        epoch=step * BATCH / TRAIN_IMAGES,
        images_seen=BATCH * step,
        train_loss=loss,
        images_per_second=rate,
        **more,
    )


def save(run: RunFolder, step: int, seconds: float = 1.0, at: float | None = None) -> None:
    """The trainer says that it has saved `step`; no checkpoint is written."""
    tell(run, "checkpoint", at, step=step, path=f"step-{step:08d}", seconds=seconds)


def validate(run: RunFolder, step: int, accuracy: float = 0.5, seconds: float = 1.0) -> None:
    """The trainer has looked at the validation part."""
    epoch = step * BATCH / TRAIN_IMAGES
    tell(run, "validation", step=step, epoch=epoch, val_loss=1.2, val_accuracy=accuracy, seconds=seconds)


def record_memory(run: RunFolder, tree: int, peak: int, at: float | None = None) -> None:
    """The supervisor has looked at the memory."""
    tell(run, "memory", at, tree_bytes=tree, peak_tree_bytes=peak, cap_bytes=CAP_BYTES)


def pause(run: RunFolder) -> None:
    """The disk refuses a checkpoint."""
    tell(
        run,
        "paused",
        what="the checkpoint of step 40",
        cause="No space left on device",
        free_bytes=5,
        next_try_seconds=1.0,
        limit_seconds=1800.0,
    )


def pause_for(run: RunFolder, *waits_for: str, until: float | None = None, at: float | None = None) -> None:
    """The trainer has ended, and the supervisor waits for the mains, or for an hour."""
    tell(run, "session_ended", at, state="stopped", step=20, wall_seconds=5.0)
    cause = "this machine runs on battery"
    tell(run, "paused", at, waits_for=list(waits_for), cause=cause, until_unix_seconds=until)


def form_world(run: RunFolder, machine: str = "hp", rate: float = 300.0) -> None:
    """Two ranks of engine mode have found each other."""
    rank = {"machine": machine, "device": "cpu", "precision": "fp32", "images_per_second": rate, "samples": 30}
    ranks = [rank, {**rank, "machine": "mac", "images_per_second": 100.0, "samples": 10}]
    tell(run, "world_formed", rank=0, address="127.0.0.1:29500", backend="gloo", ranks=ranks)


def crash(run: RunFolder, cause: str) -> None:
    """The supervisor says how the trainer ended."""
    tell(run, "session_ended", state="crashed", cause=cause)


def restart(run: RunFolder, cause: str) -> None:
    """A trainer has died, and the supervisor starts another one."""
    crash(run, cause)
    tell(run, "trainer_restarted", cause=cause, deaths_in_a_row=1, max_restarts=10, wait_seconds=1.0)


def stop(run: RunFolder, step: int) -> None:
    """The run was stopped on request."""
    tell(run, "session_ended", state="stopped", step=step, wall_seconds=5.0)


def finish(run: RunFolder, weights_sha256: str = TESTED_WEIGHTS) -> None:
    """The last validation, the test and the end."""
    validate(run, STEPS)
    tested: dict[str, Any] = {
        "test_loss": 1.1,
        "test_accuracy": 0.6,
        "class_accuracies": [0.5, 0.7],
        "confusion": [[1, 1], [3, 7]],
    }
    tell(run, "test", step=STEPS, epoch=6.0, weights_sha256=weights_sha256, **tested)
    tell(run, "session_ended", state="finished", step=STEPS, wall_seconds=12.5)
