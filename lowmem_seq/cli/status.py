"""`lowmem-seq status`: whether a run is running, how far it is, and what to type next."""

from __future__ import annotations

import shlex
import sys
import time

from rich.console import RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lowmem_seq.cli.settings import JsonOption, RunDirArgument
from lowmem_seq.cli.terminal import harmless, make_console, print_json
from lowmem_seq.report.status import ALIVE, Status, read_status
from lowmem_seq.runs.folder import RunFolder, open_run
from lowmem_seq.runs.happenings import ranks_in
from lowmem_seq.units import format_bytes, format_rate, format_seconds

STYLES = {"running": "bold green", "finished": "bold green", "paused": "bold yellow", "stopped": "bold yellow"}
BAR_WIDTH = 40
WIDEST = 100


def status(
    run_dir: RunDirArgument,
    as_json: JsonOption = False,
) -> None:
    """Show how a run stands, also while it runs.

    Examples:
        lowmem-seq status runs/small-20261122-230000
    """
    run = open_run(run_dir)
    standing = read_status(run)
    if as_json:
        print_json(standing.to_json())
        return
    console = make_console(sys.stdout)
    console.print(draw(standing, time.time()), width=min(console.width, WIDEST))
    console.print(Text(harmless(f"next: {next_step(run, standing)}")), soft_wrap=True)


def draw(standing: Status, now: float) -> Panel:
    """Return a status as a panel for a terminal.

    Args:
        standing: what is shown.
        now: the time that ages are counted to, in seconds since 1970.
    """
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows(standing, now):
        grid.add_row(label, Text(harmless(value, one_line=True)) if isinstance(value, str) else value)
    return Panel(grid, expand=False)


def rows(standing: Status, now: float) -> list[tuple[str, RenderableType]]:
    """Return label and value of each line; what is not known is left out."""
    figures = standing.figures
    state = Text(figures["state"], style=STYLES.get(figures["state"], "bold red"))
    told: list[tuple[str, RenderableType]] = [
        ("run", ", ".join([figures["run"], *_model(standing)])),
        ("state", state.append(Text(harmless(_why(standing, now), one_line=True), style="none"))),
    ]
    if figures["step"] is not None:
        told.append(("step", progress(standing)))
    if figures["step"] and figures["total_steps"]:
        told.append(("", ProgressBar(figures["total_steps"], figures["step"], width=BAR_WIDTH)))
    told += [
        (label, value)
        for label, value in (
            ("time", _time(standing)),
            ("time left", _time_left(standing)),
            ("learning", learning(standing)),
            ("test", _test(standing)),
            ("speed", speed(standing) and f"{speed(standing)} (most recent)"),
            ("with", _others(standing)),
            *ranks(standing),
            ("RAM", _memory(standing, now)),
            ("saved", _saved(standing, now)),
            ("restarts", _restarts(standing)),
            ("disk", _disk(standing)),
        )
        if value
    ]
    return told


def next_step(run: RunFolder, standing: Status) -> str:
    """Return what to type next, or that there is nothing to do."""
    state = standing.figures["state"]
    path = shlex.quote(str(run.path))
    if state == "running":
        return "nothing to do; Ctrl-C in its own terminal saves and stops it"
    if state == "paused" and standing.waits_for:
        return "nothing to do; the run goes on by itself, and Ctrl-C in its own terminal ends it"
    if state == "paused":
        return "make room on that disk; the run goes on by itself"
    if state == "finished":
        return f"lowmem-seq report {path}"
    return run.resume_command if standing.lost_step is None else f"lowmem-seq verify {path}"


def _model(standing: Status) -> list[str]:
    figures = standing.figures
    parameters = [] if figures["parameters"] is None else [f"{figures['parameters'] / 1e6:.2f}M parameters"]
    return [figures["name"], *parameters]


def _why(standing: Status, now: float) -> str:
    heard = standing.heard_unix_seconds
    ago = "" if heard is None else f", last event {_ago(heard, now)}"
    if standing.paused is not None:
        since = standing.paused_unix_seconds
        told = "" if since is None else f" (paused {_ago(since, now)})"
        return f": {standing.paused}{told}"
    if standing.cause is not None:
        return f": {standing.cause.removesuffix('.')}{ago}"
    return (", the trainer has not begun yet" if standing.starting else "") + ago


def _others(standing: Status) -> str:
    count = standing.figures["peers"]
    if count is None:
        return ""
    return "no other machine at present" if not count else f"{count} other machine{'s' * (count > 1)}"


def ranks(standing: Status) -> list[tuple[str, str]]:
    """Return a row for each rank of engine mode."""
    lines = [] if standing.world is None else ranks_in(standing.world)
    return [("" if number else "ranks", line) for number, line in enumerate(lines)]


def progress(standing: Status) -> str:
    """Return how far a run is: steps and epochs."""
    figures = standing.figures
    total, told = figures["total_steps"], f"{figures['step']:,}"
    if total:
        told += f" of {total:,} ({figures['step'] / total:.0%})"
    if figures["epoch"] is not None:
        told += f", epoch {_one_digit(figures['epoch'])}"
        told += "" if standing.epochs is None else f" of {_one_digit(standing.epochs)}"
    return told


def _one_digit(number: float) -> str:
    return f"{round(number, 1):g}"


def _time(standing: Status) -> str:
    spent = standing.figures["wall_seconds"]
    if spent is None:
        return ""
    return format_seconds(spent) + ("" if standing.figures["state"] == "finished" else " so far")


def _time_left(standing: Status) -> str:
    left = standing.figures["eta_seconds"]
    if left is None:
        return ""
    return f"about {format_seconds(left)}" + (", once it goes on" if standing.figures["state"] == "paused" else "")


def learning(standing: Status) -> str:
    """Return loss and accuracy, as far as they are known."""
    figures = standing.figures
    told = [] if figures["train_loss"] is None else [f"train loss {figures['train_loss']:.4f}"]
    if figures["val_accuracy"] is not None:
        told.append(f"last validation accuracy {figures['val_accuracy']:.2%}")
    return ", ".join(told)


def _test(standing: Status) -> str:
    accuracy, loss = (standing.figures[f"test_{name}"] for name in ("accuracy", "loss"))
    told = [] if accuracy is None else [f"accuracy {accuracy:.2%}"]
    return ", ".join(told if loss is None else [*told, f"loss {loss:.4f}"])


def speed(standing: Status) -> str:
    """Return the rate of the last figures, or nothing before the first."""
    rate = standing.images_per_second
    return "" if rate is None else format_rate(rate)


def _memory(standing: Status, now: float) -> str:
    figures, told = standing.figures, []
    at = standing.memory_unix_seconds
    if figures["state"] in ALIVE and not standing.starting and figures["tree_bytes"] is not None:
        seen = "" if at is None else f" (seen {_ago(at, now)})"
        told.append(f"{format_bytes(figures['tree_bytes'])} now{seen}")
    if figures["peak_tree_bytes"] is not None:
        told.append(f"peak {format_bytes(figures['peak_tree_bytes'])}")
    if figures["cap_bytes"] is not None:
        told.append(f"cap {format_bytes(figures['cap_bytes'])}")
    return ", ".join(told)


def _saved(standing: Status, now: float) -> str:
    if standing.saved_step is None:
        lost = standing.lost_step
        return "nothing yet" if lost is None else f"step {lost:,} was, and no checkpoint lies there now"
    at = standing.saved_unix_seconds
    return f"step {standing.saved_step:,}" + ("" if at is None else f", {_ago(at, now)}")


def _restarts(standing: Status) -> str:
    count, cause = standing.figures["restarts"], standing.last_restart_cause
    return (f"{count:,}" if count else "none") + ("" if cause is None else f"; the last time {cause}")


def _disk(standing: Status) -> str:
    free = [] if standing.free_bytes is None else [f"{format_bytes(standing.free_bytes)} free"]
    count = len(standing.checkpoints)
    if count:
        size = format_bytes(sum(size for _, size in standing.checkpoints))
        free.append(f"{count} checkpoint{'s' if count > 1 else ''}, {size}")
    return "; ".join(free)


def _ago(then: float, now: float) -> str:
    return f"{format_seconds(max(0.0, now - then))} ago"
