"""One run in figures, read from its folder alone, also while it runs or after it broke."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lowmem_seq.errors import LowmemSeqError, UsageError
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.folder import RunFolder, which_runs
from lowmem_seq.runs.time_left import TimeLeft

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
    "eta_seconds": None,
    "machines": None,
}

WORDS = (
    *("run", "name", "state", "data", "classes", "class_accuracies", "device", "precision", "weights_sha256"),
    "machines",
)
"""What is no number."""
OF_THE_END = ("test_loss", "test_accuracy", "class_accuracies", "weights_sha256")
"""What the end of a run tells; a session that goes on with it takes it back."""
AFTER_A_PAUSE = ("unpaused", "session_ended", "session_opened", "planned", "session_started")
"""Events that end a pause, or come after whoever paused was gone."""
MOST_RATES = 4096
"""Rates that a median is made of; where there are more, every second of them, or every fourth, and so on."""


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

    `images_per_second` is the median over the `train` events of all sessions, evaluation and saves left out;
    `eta_seconds` is an estimate, while a process holds the run.

    Raises:
        UsageError: its settings or its events are not as they should be.
    """
    with odd_events_explained(run):
        summariser = Summariser(run)
        for event in run.events if events is None else events:
            summariser.take(event)
        return summariser.summary()


class Summariser:
    """Makes the summary of a run of its events, as they come; its memory does not grow with their number.

    Args:
        run: its folder.
    """

    def __init__(self, run: RunFolder) -> None:
        config = run.config
        self._run = run
        self._summary = dict(UNKNOWN, run=str(run.path), state="crashed", name=config.name, data=config.data.source)
        self._rates = Middle()
        self._time_left = TimeLeft(config)
        self._started: Event = {}
        self._batch: int | None = None
        self._paused = False

    def take(self, event: Event) -> None:
        """Take in the next event."""
        kind, summary = event["event"], self._summary
        self._time_left.take(event)
        self._paused = kind == "paused" or (self._paused and kind not in AFTER_A_PAUSE)
        if kind == "planned":
            summary["cap_bytes"] = event.get("cap_bytes")
        elif kind == "session_started":
            self._started = event
            summary.update({key: event.get(key) for key in ("parameters", "classes", "device", "precision")})
            summary.update({key: event.get(key) for key in ("total_steps", "micro_batch")})
            summary.update(_standing_at(event.get("step"), self._started))
            self._batch = event.get("effective_batch")
            summary["sessions"] += 1
            summary["state"] = "crashed"  # until it says how it ended
            summary.update(dict.fromkeys(OF_THE_END))
        elif kind in ("train", "validation", "test"):
            summary.update({key: event[key] for key in UNKNOWN if key in event and key != "images_per_second"})
            if "images_per_second" in event:
                self._rates.add(float(event["images_per_second"]))
        elif kind == "checkpoint":
            summary["saved_step"] = event.get("step")
            summary.update(_standing_at(event.get("step"), self._started))
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
            summary.update(_standing_at(event.get("step"), self._started))

    def summary(self) -> Summary:
        """Return the figures as of now.

        Raises:
            ValueError: something isn't the finite number, or the text, that it should be.
        """
        summary = dict(self._summary)
        if self._batch and summary["micro_batch"]:
            summary["accumulation"] = -(-int(self._batch) // int(summary["micro_batch"]))
        summary["images_per_second"] = self._rates.value
        if self._run.is_locked():
            summary["state"] = "paused" if self._paused else "running"
            summary["eta_seconds"] = self._time_left.seconds()
        else:
            summary["peers"] = None  # nobody is present any more
        require_numbers({key: value for key, value in summary.items() if key not in WORDS})
        require_words(summary)
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


class Middle:
    """The median of ever more numbers; of an even count the higher of the two in the middle."""

    def __init__(self) -> None:
        self._kept: list[float] = []
        self._seen, self._every = 0, 1

    def add(self, value: float) -> None:
        """Take in one number more."""
        if self._seen % self._every == 0:
            self._kept.append(value)
        self._seen += 1
        if len(self._kept) > MOST_RATES:
            del self._kept[1::2]
            self._every *= 2

    @property
    def value(self) -> float | None:
        """The median; None of no numbers."""
        return statistics.median_high(self._kept) if self._kept else None


def find_runs(paths: list[Path], root: Path) -> list[RunFolder]:
    """Return the runs in `paths`, or every run under `root` if none is given, oldest first.

    Raises:
        UsageError: a path holds no run, or there is none at all.
    """
    for path in paths:
        if not _is_run(path):
            raise UsageError(f"there is no run in {path}.", which_runs(path))
    folders = paths or sorted(filter(_is_run, root.glob("*")), key=lambda folder: folder.stat().st_mtime)
    if not folders:
        raise UsageError(f"there is no run under {root}.", "lowmem-seq train small --data shapes   makes one")
    return [RunFolder(folder) for folder in folders]


def _is_run(path: Path) -> bool:
    """Whether a folder is a run's; of a broken one its settings or its events may be left."""
    run = RunFolder(path)
    return run.config_file.is_file() or run.events.path.is_file()


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
