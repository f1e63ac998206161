"""What a report's page says of one run in words and tables, beside its plots."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, NamedTuple

from lowmem_seq.report.history import History
from lowmem_seq.report.summary import Summary
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.units import format_bytes, format_seconds

PROGRAM = "lowmem-seq"
OF_ONE_START = ("--run-dir",)
"""Flags that a second start can't have again."""


class Tile(NamedTuple):
    """A figure that is shown large."""

    title: str
    value: str
    note: str = ""
    share: float | None = None
    """Of a whole, 0 to 1, where a bar is drawn."""


class Compared(NamedTuple):
    """A figure as it was predicted, and as it came."""

    what: str
    predicted: str
    actual: str
    difference: str


def tiles(summary: Summary, history: History) -> list[Tile]:
    """Return what is known of a run in large figures."""
    told = [_quality(summary), _progress(summary), _time(summary, history), _speed(summary)]
    told += [_memory(summary, history), _time_left(summary)]
    if history.repeated_steps or summary["restarts"]:
        again = f"{history.repeated_steps:,} steps done again" if history.repeated_steps else ""
        told.append(Tile("restarts", f"{summary['restarts']:,}", again))
    return [tile for tile in told if tile is not None]


def machine_tile(summary: Summary) -> list[Tile]:
    """Return how many machines trained a run, if several did, and what share of it each had."""
    machines = summary["machines"] or []
    shares = [machine["share"] for machine in machines]
    if len(machines) < 2:
        return []
    told = "" if None in shares or len(shares) > 3 else f"{' + '.join(f'{share:.0%}' for share in shares)} of all"
    return [Tile("machines", f"{len(machines)}", told)]


def _quality(summary: Summary) -> Tile | None:
    """Return accuracy and loss of the part that counts most of those that are known."""
    for part, title in (("test", "test accuracy"), ("val", "validation accuracy")):
        accuracy, loss = summary[f"{part}_accuracy"], summary[f"{part}_loss"]
        if accuracy is not None:
            return Tile(title, f"{accuracy:.2%}", "" if loss is None else f"loss {loss:.4f}", accuracy)
    return None if summary["train_loss"] is None else Tile("training loss", f"{summary['train_loss']:.4f}")


def _progress(summary: Summary) -> Tile | None:
    step, total = summary["step"], summary["total_steps"]
    if step is None:
        return None
    epochs = "" if summary["epoch"] is None else f"epoch {summary['epoch']:.4g}"
    return Tile(
        "steps", f"{step:,}" + (f" of {total:,}" if total and total != step else ""), epochs, _share(step, total)
    )


def _time(summary: Summary, history: History) -> Tile | None:
    if summary["wall_seconds"] is None:
        return None
    sessions = len(history.clock.session_starts) + 1
    return Tile("time", format_seconds(summary["wall_seconds"]), f"in {sessions:,} session{'s' * (sessions > 1)}")


def _time_left(summary: Summary) -> Tile | None:
    left = summary["eta_seconds"]
    if left is None:
        return None
    note = "once it goes on" if summary["state"] == "paused" else "at the present speed"
    return Tile("time left", f"about {format_seconds(left)}", note)


def _speed(summary: Summary) -> Tile | None:
    rate = summary["images_per_second"]
    if rate is None:
        return None
    with_what = ", ".join(str(summary[name]) for name in ("device", "precision") if summary[name])
    return Tile("images/s", f"{rate:,.0f}", with_what)


def _memory(summary: Summary, history: History) -> Tile | None:
    peak, nearest = summary["peak_tree_bytes"], history.nearest_to_cap
    if peak is None:
        return None
    share = None if nearest is None else min(1.0, nearest.share)
    return Tile("peak RAM", format_bytes(peak), told_share_of_cap(history), share)


def told_share_of_cap(history: History) -> str:
    """Return how near the run came to its cap, in words; nothing where that is not known.

    A run that went on under another cap is held against the one that it had at the time.
    """
    nearest = history.nearest_to_cap
    if nearest is None:
        return ""
    if nearest.was_the_only_cap:
        return f"{nearest.share:.0%} of the cap of {format_bytes(round(nearest.cap_bytes))}"
    return f"at most {nearest.share:.0%} of the cap of the time"


def _share(part: float, whole: float | None) -> float | None:
    return min(1.0, max(0.0, part / whole)) if whole else None


def predicted_and_actual(plan: dict[str, Any], history: History) -> list[Compared]:
    """Return what a plan foretold beside what came since it was made; what either lacks is left out."""
    since = history.at_plan
    peaks = [point.y for point in history.by_time["peak_tree_bytes"] if point.x >= since.seconds]
    usual = history.rates_of_plan.value
    peak, rate = (_positive(plan.get(f"predicted_{name}")) for name in ("peak_bytes", "images_per_second"))
    compared = []
    if peak and peaks:
        told = (format_bytes(round(peak)), format_bytes(round(max(peaks))), _off(peak, max(peaks)))
        compared.append(Compared("peak RAM", *told))
    if rate and usual:
        compared.append(Compared("images/s", f"{rate:,.0f}", f"{usual:,.0f}", _off(rate, usual)))
    images = (history.standing.steps_done - since.steps_done) * history.effective_batch
    seconds = history.standing.training_seconds - since.training_seconds
    if rate and images > 0 and seconds > 0:
        told = (format_seconds(images / rate), format_seconds(seconds), _off(images / rate, seconds))
        compared.append(Compared(f"time to train on {images:,.0f} images", *told))
    return compared


def _positive(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 < value < 10**15 else None


def _off(predicted: float, actual: float) -> str:
    return f"{actual / predicted - 1:+.1%}"


def repeating_command(run: RunFolder, environment: dict[str, Any] | None) -> str:
    """Return the command line that trains such a run again: the one it was begun with, or its settings' file."""
    words = (environment or {}).get("command")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words) or "train" not in words:
        return shlex.join([PROGRAM, "train", str(run.config_file)])
    kept: list[str] = []
    left_out = False
    for word in words[1:]:
        if not left_out and word.partition("=")[0] not in OF_ONE_START:
            kept.append(word)
        left_out = not left_out and word in OF_ONE_START
    return shlex.join([PROGRAM, *kept])


def environment_rows(environment: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return what a run was made with, a line each; packages and variables by their names."""
    rows: list[tuple[str, str]] = []
    for key, value in (environment or {}).items():
        if key in ("format_version", "command") or value is None:
            continue
        if isinstance(value, dict):
            rows += [(str(name), str(one)) for name, one in value.items() if one is not None]
        else:
            told = format_bytes(value) if key.endswith("_bytes") and isinstance(value, int) else str(value)
            rows.append((key.removesuffix("_bytes").replace("_", " "), told))
    return rows


def name_of(run: RunFolder) -> str:
    """Return the name of a run's folder, also where one stands in it."""
    return Path(run.path).resolve().name
