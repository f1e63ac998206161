"""One run in figures, read from its folder alone, also while it runs or after it broke."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lowmem_seq.errors import LowmemSeqError, UsageError
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.folder import RunFolder, which_runs

Summary = dict[str, Any]

UNKNOWN: Summary = {
    "run": None,
    "name": None,
    "state": None,
    "data": None,
    "classes": None,
    "parameters": None,
    "step": None,
    "saved_step": None,
    "total_steps": None,
    "epoch": None,
    "images_seen": None,
    "train_loss": None,
    "val_loss": None,
    "val_accuracy": None,
    "test_loss": None,
    "test_accuracy": None,
    "class_accuracies": None,
    "images_per_second": None,
    "wall_seconds": None,
    "tree_bytes": None,
    "peak_tree_bytes": None,
    "cap_bytes": None,
    "device": None,
    "precision": None,
    "micro_batch": None,
    "accumulation": None,
    "weights_sha256": None,
    "sessions": 0,
    "restarts": 0,
    "peers": None,
}


WORDS = (*("run", "name", "state", "data", "classes", "class_accuracies", "device", "precision", "weights_sha256"),)
"""What is no number."""
OF_THE_END = ("test_loss", "test_accuracy", "class_accuracies", "weights_sha256")
"""What the end of a run tells; a session that goes on with it takes it back."""
AFTER_A_PAUSE = ("unpaused", "session_ended", "session_opened", "planned", "session_started")
"""Events that end a pause, or come after whoever paused was gone."""


@contextlib.contextmanager
def odd_events_explained(run: RunFolder) -> Iterator[None]:
    """Turn what goes wrong over an event that is not as this release writes it into a UsageError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(
            f"an event in {run.events.path} is not as expected ({type(error).__name__}: {error}).",
            "restore it from a copy of the run",
        ) from error


def require_numbers(values: Summary) -> None:
    """See that what is counted and printed as numbers is numbers.

    Raises:
        ValueError: something isn't, or is not finite.
    """
    for name, value in values.items():
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ValueError(f"{name} is {value!r}")


def require_words(summary: Summary) -> None:
    """See that what is printed as text is text, and what is counted is a list.

    Raises:
        ValueError: something isn't.
    """
    for name, kind in (("state", str), ("classes", list), ("class_accuracies", list)):
        if summary[name] is not None and not isinstance(summary[name], kind):
            raise ValueError(f"{name} is {summary[name]!r}")
    accuracies = summary["class_accuracies"] or ()
    require_numbers({f"class_accuracies[{index}]": one for index, one in enumerate(accuracies)})


def summarise(run: RunFolder, events: Iterable[Event] | None = None) -> Summary:
    """Return the figures of a run; one that is not known yet is None.

    Args:
        run: its folder.
        events: the run's events, where somebody listens while they are read; None reads them here.

    `images_per_second` is the median over the `train` events of all sessions, evaluation and saves left out.

    Raises:
        UsageError: its settings or its events are not as they should be.
    """
    with odd_events_explained(run):
        summary = _summarise(run, run.events if events is None else events)
        require_numbers({key: value for key, value in summary.items() if key not in WORDS})
        require_words(summary)
    return summary


def _summarise(run: RunFolder, events: Iterable[Event]) -> Summary:
    summary = dict(UNKNOWN, run=str(run.path), state="crashed")
    config = run.config
    summary.update(name=config.name, data=config.data.source)
    rates: list[float] = []
    batch: int | None = None
    started: Event = {}
    paused = False
    for event in events:
        kind = event["event"]
        paused = kind == "paused" or (paused and kind not in AFTER_A_PAUSE)
        if kind == "planned":
            summary["cap_bytes"] = event.get("cap_bytes")
        elif kind == "session_started":
            started = event
            summary.update({key: event.get(key) for key in ("parameters", "classes", "device", "precision")})
            summary.update({key: event.get(key) for key in ("total_steps", "micro_batch")})
            summary.update(_standing_at(event.get("step"), started))
            batch = event.get("effective_batch")
            summary["sessions"] += 1
            summary["state"] = "crashed"  # until it says how it ended
            summary.update(dict.fromkeys(OF_THE_END))
        elif kind in ("train", "validation", "test"):
            summary.update({key: event[key] for key in UNKNOWN if key in event and key != "images_per_second"})
            if "images_per_second" in event:
                rates.append(float(event["images_per_second"]))
        elif kind == "checkpoint":
            summary["saved_step"] = event.get("step")
            summary.update(_standing_at(event.get("step"), started))
        elif kind == "session_opened":
            summary["peers"] = None
        elif kind == "peers_present":
            summary["peers"] = int(event["others"])
        elif kind == "trainer_restarted":
            summary["restarts"] += 1
        elif kind == "memory":
            summary["tree_bytes"], summary["cap_bytes"] = event.get("tree_bytes"), event.get("cap_bytes")
            summary["peak_tree_bytes"] = max(summary["peak_tree_bytes"] or 0, int(event["peak_tree_bytes"]))
        elif kind in ("setting_changed", "micro_batch_changed"):  # the second: as releases before wrote it
            summary["micro_batch"] = event.get("micro_batch")
        elif kind == "session_ended":
            summary.update({key: event[key] for key in ("state", "wall_seconds") if key in event})
            summary.update(_standing_at(event.get("step"), started))
    if batch and summary["micro_batch"]:
        summary["accumulation"] = -(-int(batch) // int(summary["micro_batch"]))
    if rates:
        summary["images_per_second"] = middle(rates)
    if run.is_locked():
        summary["state"] = "paused" if paused else "running"
    else:
        summary["peers"] = None  # nobody is present any more
    return summary


def _standing_at(step: int | None, started: Event) -> Summary:
    """Return what follows from the number of steps done, as far as a session's start tells it."""
    if step is None:
        return {}
    standing: Summary = {"step": step}
    if started.get("effective_batch"):
        standing["images_seen"] = step * started["effective_batch"]
        if started.get("train_images"):
            standing["epoch"] = step * started["effective_batch"] / started["train_images"]
    return standing


def middle(values: list[float]) -> float:
    """Return the median; of an even number the higher of the two in the middle."""
    return sorted(values)[len(values) // 2]


def find_runs(paths: list[Path], root: Path) -> list[RunFolder]:
    """Return the runs in `paths`, or every run under `root` if none is given, oldest first.

    Raises:
        UsageError: a path holds no run, or there is none at all.
    """
    for path in paths:
        run = RunFolder(path)
        if not run.config_file.is_file() and not run.events.path.is_file():  # of a broken one either may be left
            raise UsageError(f"there is no run in {path}.", which_runs(path))
    folders = paths or sorted(
        (file.parent for file in root.glob("*/config.yaml")), key=lambda folder: folder.stat().st_mtime
    )
    if not folders:
        raise UsageError(f"there is no run under {root}.", "lowmem-seq train small --data shapes   makes one")
    return [RunFolder(folder) for folder in folders]


def summarise_all(runs: list[RunFolder]) -> list[Summary]:
    """Return the figures of each run; one whose folder can't be read says why under `state`."""
    return [_summarise_if_readable(run) for run in runs]


def _summarise_if_readable(run: RunFolder) -> Summary:
    try:
        run.refuse_links()  # a read would wait for ever at a pipe, or read a device without end
        return summarise(run)
    except LowmemSeqError as error:
        fault = error.message
    except OSError as error:
        fault = f"it can't be read: {error}"
    return dict(UNKNOWN, run=str(run.path), state=f"unreadable: {fault}")
