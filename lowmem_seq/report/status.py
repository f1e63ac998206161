"""How a run stands, read from its folder alone: while it runs, before its first step, or after it broke."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lowmem_seq.checkpoint.manifest import MANIFEST, Checkpoint
from lowmem_seq.checkpoint.store import bytes_on_disk, checkpoints_in
from lowmem_seq.disk import free_bytes
from lowmem_seq.report.summary import (
    AFTER_A_PAUSE,
    Summariser,
    Summary,
    odd_events_explained,
    require_numbers,
)
from lowmem_seq.runs.events import Event, time_of
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.runs.happenings import why_crashed, why_paused

WITHOUT_A_WORD = "the trainer ended without a word"
ENDS = ("finished", "stopped", "crashed")
ALIVE = ("running", "paused")
MOST_SAVES = 100
"""Saves whose times are remembered: more than ever lie there that are not kept for good."""
FIGURES = (
    "run",
    "name",
    "state",
    "step",
    "total_steps",
    "epoch",
    "images_seen",
    "train_loss",
    "val_loss",
    "val_accuracy",
    "test_loss",
    "test_accuracy",
    "wall_seconds",
    "tree_bytes",
    "peak_tree_bytes",
    "cap_bytes",
    "micro_batch",
    "accumulation",
    "parameters",
    "weights_sha256",
    "restarts",
    "peers",
    "eta_seconds",
)
"""What a status takes from the run's summary as it is."""
OF_A_RANK = ("machine", "device", "precision")
FIGURES_OF_A_RANK = ("images_per_second", "samples")
"""The second: of each step."""


@dataclass(frozen=True)
class Status:
    """How a run stands. What is not known is None."""

    figures: Summary
    images_per_second: float | None
    """Of the last `train` event."""
    cause: str | None
    """Why the run crashed or is paused, as a clause or a sentence."""
    paused: str | None
    """The same of a pause, with what ends it."""
    paused_unix_seconds: float | None
    """Since when."""
    waits_for: tuple[str, ...]
    """`power`, `hours`: what must come before a paused run goes on; none of them where it is the disk."""
    goes_on_unix_seconds: float | None
    """When its hours begin, if that is all that lacks."""
    starting: bool
    """Whether the run is held, and its trainer has not begun yet."""
    epochs: float | None
    """How many the whole run has."""
    heard_unix_seconds: float | None
    """Time of the last event."""
    memory_unix_seconds: float | None
    """Time of the last look at the memory."""
    saved_step: int | None
    """The newest checkpoint that lies there."""
    saved_unix_seconds: float | None
    lost_step: int | None
    """A step that the events call saved, where no checkpoint lies there."""
    last_restart_cause: str | None
    world: Event | None
    """The ranks of engine mode, as they found each other; None where the run is not held, or trains otherwise."""
    checkpoints: tuple[tuple[int, int], ...]
    """Step and bytes of each, oldest first."""
    free_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """The status as `lowmem-seq status --json` prints it."""
        return {
            **self.figures,
            "images_per_second": self.images_per_second,
            "cause": self.cause,
            "paused_unix_seconds": self.paused_unix_seconds,
            "goes_on_unix_seconds": self.goes_on_unix_seconds,
            "saved_step": self.saved_step,
            "saved_unix_seconds": self.saved_unix_seconds,
            "last_event_unix_seconds": self.heard_unix_seconds,
            "last_restart_cause": self.last_restart_cause,
            "world": self.world,
            "checkpoints": [{"step": step, "bytes": size} for step, size in self.checkpoints],
            "free_bytes": self.free_bytes,
        }


class _Present:
    """What the events tell of the present session, and of the last occurrence of some."""

    def __init__(self) -> None:
        self.started: Event | None = None
        self.ended: Event | None = None
        self.restarted: Event | None = None
        self.paused: Event | None = None
        self.paused_unix_seconds: float | None = None
        self.memory: Event | None = None
        self.world: Event | None = None
        self.heard_unix_seconds: float | None = None
        self.saved: dict[int, float | None] = {}
        self.images_per_second: float | None = None

    def take(self, event: Event) -> None:
        kind, at = event["event"], time_of(event)
        self.heard_unix_seconds = at
        if kind in AFTER_A_PAUSE:
            self.paused = self.paused_unix_seconds = None
        if kind == "session_opened":
            self.world = None
        elif kind == "session_started":
            self.started, self.ended = event, None
        elif kind == "session_ended":
            self.ended = event
        elif kind == "train":
            self.images_per_second = float(event["images_per_second"])
        elif kind == "trainer_restarted":
            self.restarted = event
        elif kind == "paused":
            self.paused_unix_seconds = self.paused_unix_seconds if self.paused is not None else at
            self.paused = event
        elif kind == "memory":
            self.memory = event
        elif kind == "world_formed":
            self.world = event
        if kind == "checkpoint":
            self.saved.pop(event["step"], None)  # so that the one saved last stands last
            self.saved[event["step"]] = at
            if len(self.saved) > MOST_SAVES:
                del self.saved[next(iter(self.saved))]

    @property
    def waits_for(self) -> tuple[str, ...]:
        """What the event of a pause names; none of a full disk's."""
        told = self.paused.get("waits_for", ()) if self.paused is not None else ()
        return tuple(str(what) for what in told)

    @property
    def goes_on_unix_seconds(self) -> float | None:
        """When the hours of a paused run begin."""
        return None if self.paused is None else time_of(self.paused, "until_unix_seconds")

    @property
    def is_training(self) -> bool:
        """Whether a trainer began, and told of no end."""
        return self.started is not None and self.ended is None


class StatusReader:
    """Reads how a run stands, and again later: what it has read once it does not read again.

    Args:
        run: its folder; nothing in it is changed.

    Raises:
        UsageError: its settings are not as they should be.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._reader = run.events.follow()
        self._summariser, self._present = Summariser(run), _Present()

    @property
    def heard_unix_seconds(self) -> float | None:
        """Time of the last event that was taken in."""
        return self._present.heard_unix_seconds

    def news(self) -> Iterator[Event]:
        """Yield the events that have come since the last time, each as soon as it is taken in.

        Raises:
            UsageError: an event is not as it should be.
        """
        for event in self._reader.events():
            with odd_events_explained(self._run):
                self._summariser.take(event)
                self._present.take(event)
            yield event

    def status(self) -> Status:
        """Return how the run stands, by the events taken in, its lock and its checkpoints.

        Raises:
            UsageError: an event was not as it should be.
        """
        with odd_events_explained(self._run):
            return _status(self._run, self._summariser.summary(), self._present)


def read_status(run: RunFolder) -> Status:
    """Return how a run stands; nothing in its folder is changed.

    Raises:
        UsageError: its settings or its events are not as they should be.
    """
    reader = StatusReader(run)
    for _ in reader.news():
        pass
    return reader.status()


def _status(run: RunFolder, summary: Summary, present: _Present) -> Status:
    state = summary["state"] if summary["state"] in (*ALIVE, *ENDS) else "crashed"
    training = state in ALIVE and present.is_training
    figures = {key: summary[key] for key in FIGURES} | {"state": state}
    epochs = present.started.get("epochs") if present.started is not None else None
    require_numbers({"epochs": epochs})
    checkpoints = checkpoints_in(run.checkpoints)
    sizes = [(checkpoint.step, bytes_on_disk(checkpoint)) for checkpoint in checkpoints]
    newest = checkpoints[-1] if checkpoints else None
    return Status(
        figures=figures,
        images_per_second=present.images_per_second,
        cause=_cause(state, present),
        paused=why_paused(present.paused) if state == "paused" and present.paused is not None else None,
        paused_unix_seconds=present.paused_unix_seconds if state == "paused" else None,
        waits_for=present.waits_for if state == "paused" else (),
        goes_on_unix_seconds=present.goes_on_unix_seconds if state == "paused" else None,
        starting=state == "running" and not training,
        epochs=epochs,
        heard_unix_seconds=present.heard_unix_seconds,
        memory_unix_seconds=time_of(present.memory) if present.memory is not None else None,
        saved_step=newest.step if newest is not None else None,
        saved_unix_seconds=saved_at(newest, present.saved) if newest is not None else None,
        lost_step=max(present.saved) if present.saved and newest is None else None,
        last_restart_cause=_told(present.restarted, "cause"),
        world=_world(present.world) if state in ALIVE and present.world is not None else None,
        checkpoints=tuple(sizes),
        free_bytes=_free_bytes(run),
    )


def _cause(state: str, present: _Present) -> str | None:
    if state == "paused":
        return _told(present.paused, "what", "cause")
    if state != "crashed":
        return None
    return WITHOUT_A_WORD if present.ended is None else why_crashed(present.ended)


def _world(event: Event) -> Event:
    """Return what is shown of a `world_formed` event.

    Raises:
        KeyError, TypeError, ValueError: it is not as expected.
    """
    ranks = [{key: rank[key] for key in (*OF_A_RANK, *FIGURES_OF_A_RANK)} for rank in event["ranks"]]
    for rank in ranks:
        require_numbers({key: rank[key] for key in FIGURES_OF_A_RANK})
        rank.update({key: str(rank[key]) for key in OF_A_RANK})
    return {"address": str(event["address"]), "backend": str(event["backend"]), "ranks": ranks}


def _told(event: Event | None, *keys: str) -> str | None:
    """Return what an event says in words, or None."""
    words = [event[key] for key in keys if event.get(key)] if event is not None else []
    return ": ".join(str(word) for word in words) or None


def saved_at(checkpoint: Checkpoint, told: dict[int, float | None]) -> float | None:
    """Return when a checkpoint was saved: as the events say, or else by the time of its manifest."""
    at = told.get(checkpoint.step)
    with contextlib.suppress(OSError):
        return at if at is not None else (checkpoint.path / MANIFEST).stat().st_mtime
    return at


def saved_steps(run: RunFolder) -> dict[int, float | None]:
    """Return the steps that the events call saved, each with its time."""
    return {
        event["step"]: time_of(event)
        for event in run.events
        if event["event"] == "checkpoint" and isinstance(event.get("step"), int)
    }


def _free_bytes(run: RunFolder) -> int | None:
    with contextlib.suppress(OSError):
        return free_bytes(run.path)
    return None
