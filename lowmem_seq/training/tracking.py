"""A run's figures for a tracker of Accelerate's (TensorBoard and others), beside the run's own events.

What a tracker does is no reason to lose a run: one that fails is told nothing more, and that is recorded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator

from lowmem_seq.files import make_folder
from lowmem_seq.memory.out_of_memory import is_out_of_memory
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.runs.trackers import NO_TRACKER, PACKAGES

TENSORBOARD = "tensorboard"
FIGURES = {
    "train": {
        "train_loss": "train/loss",
        "learning_rate": "train/learning_rate",
        "images_per_second": "train/images_per_second",
        "epoch": "train/epoch",
    },
    "validation": {"val_loss": "validation/loss", "val_accuracy": "validation/accuracy"},
    "test": {"test_loss": "test/loss", "test_accuracy": "test/accuracy"},
}
"""What a tracker is told of each kind of event, and by which name."""
Record = Callable[..., None]


def load(name: str) -> None:
    """Import what a tracker is made of, if it can be: so a probe holds what the trainer will hold.

    Raises:
        Exception: memory ran out.
    """
    if name == NO_TRACKER:
        return
    try:
        if name == TENSORBOARD:
            importlib.import_module("torch.utils.tensorboard")
        else:
            importlib.import_module(PACKAGES[name][0])
    except Exception as error:
        if is_out_of_memory(error, limited=True):
            raise


class Tracking:
    """One session's line to a tracker.

    Args:
        accelerator: made for this tracker (device.py).
        name: the tracker's.
        run: what is trained; files go to its `logs`.
        project: what the tracker files the run under.
        record: takes an event's name and details, where there is something to tell about the tracker itself.
    """

    def __init__(self, accelerator: Accelerator, name: str, run: RunFolder, project: str, record: Record) -> None:
        self._accelerator, self._name, self._run = accelerator, name, run
        self._project, self._record = project, record
        self._is_on = False
        self._told: dict[str, int] = {}

    def start(self, step: int) -> None:
        """Begin after `step` steps of the run.

        A session that was killed may have told of later ones, which are done again now: TensorBoard drops what it
        was told of them; other trackers are not told again.
        """
        self._is_on = True
        settings: dict[str, Any] = {}
        if self._name == TENSORBOARD:
            settings = {TENSORBOARD: {"purge_step": step + 1}}
        else:
            self._told = told_before(self._run, self._name)

        def begin() -> None:
            if not self._accelerator.log_with:
                raise ModuleNotFoundError(f"{PACKAGES[self._name][0]} is not installed here")
            make_folder(self._run.logs)
            self._accelerator.init_trackers(self._project, init_kwargs=settings)

        self._try(begin)
        if self._is_on:
            self._record("tracking_started", tracker=self._name, folder=str(self._run.logs))

    def take(self, event: Event) -> None:
        """Tell the figures of an event, if it has any."""
        kind = event["event"]
        if not self._is_on or kind not in FIGURES or event["step"] <= self._told.get(kind, -1):
            return
        figures = {name: event[key] for key, name in FIGURES[kind].items()}
        self._try(lambda: self._accelerator.log(figures, step=event["step"]))

    def end(self) -> None:
        """Let the tracker write its last."""
        for tracker in self._accelerator.trackers if self._is_on else ():
            self._try(tracker.finish)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self._is_on = False
            self._record("tracking_failed", tracker=self._name, cause=f"{type(error).__name__}: {error}")


def told_before(run: RunFolder, name: str) -> dict[str, int]:
    """Return the last step that earlier sessions told a tracker of, by kind of event."""
    told: dict[str, int] = {}
    is_on = False
    for event in run.events:
        kind = event["event"]
        if kind in ("session_started", "tracking_failed"):
            is_on = False
        elif kind == "tracking_started":
            is_on = event.get("tracker") == name
        elif is_on and kind in FIGURES and isinstance(event.get("step"), int):
            told[kind] = max(told.get(kind, -1), event["step"])
    return told
