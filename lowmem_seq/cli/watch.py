"""`lowmem-seq watch`: a run as it goes on, in another terminal than its own.

It reads the run's folder and nothing else, so it may be begun and ended at any time, and the run goes on without
it. What was read is not read again: a week of training is watched in the same memory as a minute.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lowmem_seq.cli import status as status_command
from lowmem_seq.cli.curves import Curve, Series, largest, mean
from lowmem_seq.cli.keys import Wait, keyboard
from lowmem_seq.cli.settings import RunDirArgument
from lowmem_seq.cli.terminal import can_redraw, harmless, make_console
from lowmem_seq.report.status import ALIVE, Status, StatusReader
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.folder import RunFolder, open_run
from lowmem_seq.runs.happenings import Told, tell
from lowmem_seq.units import format_bytes, format_seconds

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_DISK_LOOKS = 5.0
"""Whether the run is held, and what lies there, without an event that tells of it."""
SECONDS_BETWEEN_LINES = 60.0
SECONDS_TO_BEGIN = 10.0
"""What a run that was only just made may take until its process holds it."""
MOST_HAPPENINGS = 8
STATED = ("ended", "died")
"""Of what happened, what the state says."""
LINES_BESIDE = 21
"""That a screen has beside the happenings, which make room for them where it is low."""


class Watched:
    """A run as its events tell it: how it stands, its curves, and what happened last.

    Args:
        run: its folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self._reader = StatusReader(run)
        self.losses, self.accuracies, self.memory = Series(mean), Series(largest), Series(largest)
        self.happened: deque[tuple[float | None, Told]] = deque(maxlen=MOST_HAPPENINGS)
        self._looked_at = float("-inf")
        self.new: list[tuple[float | None, Told]] = []
        """Of what happened, that since the look before."""
        self.status = self.look()
        self.new = []

    def look(self) -> Status:
        """Take in what is new, and return how the run stands.

        Raises:
            UsageError: an event is not as it should be.
        """
        self.new = []
        heard = False
        for event in self._reader.news():
            heard = True
            self._take(event)
        if heard or time.monotonic() - self._looked_at >= SECONDS_BETWEEN_DISK_LOOKS:
            self._looked_at = time.monotonic()
            self.status = self._reader.status()
        return self.status

    @property
    def goes_on(self) -> bool:
        """Whether a process holds the run."""
        return self.status.figures["state"] in ALIVE

    def _take(self, event: Event) -> None:
        kind = event["event"]
        with contextlib.suppress(KeyError, TypeError, ValueError):  # what is odd is no reason to stop watching
            if kind == "train":
                self.losses.add(float(event["train_loss"]))
            elif kind == "validation":
                self.accuracies.add(float(event["val_accuracy"]))
            elif kind == "memory":
                self.memory.add(float(event["tree_bytes"]))
            told = tell(event)
            if told is None or told.kind in STATED:
                return
            self.new = [*self.new[-MOST_HAPPENINGS:], (self._reader.heard_unix_seconds, told)]
            if told.kind != "figure":
                self.happened.append(self.new[-1])


def watch(run_dir: RunDirArgument) -> None:
    """Watch a run as it goes on, from another terminal.

    It ends with the run. q or Ctrl-C ends the watching alone. Without a terminal it prints a line a minute.

    Examples:
        lowmem-seq watch runs/small-20261122-230000
    """
    run = open_run(run_dir)
    watched = Watched(run)
    console = make_console(sys.stdout)
    ended_by_user = False
    try:
        await_beginning(watched, time.sleep)
        if can_redraw(console):
            with keyboard() as wait:
                ended_by_user = show_live(watched, console, wait)
        else:
            print_lines(watched, console, time.sleep)
    except KeyboardInterrupt:
        ended_by_user = True
    if ended_by_user and watched.goes_on:
        console.print("watching ended; the run goes on")
    else:
        console.print(Text(harmless(f"next: {status_command.next_step(run, watched.status)}")), soft_wrap=True)


def await_beginning(watched: Watched, sleep: Callable[[float], None]) -> None:
    """Return once the run has begun; one that never does is as it stands."""
    until = time.monotonic() + SECONDS_TO_BEGIN
    while watched.status.heard_unix_seconds is None and not watched.goes_on and time.monotonic() < until:
        sleep(0.1)
        watched.look()


def show_live(watched: Watched, console: Console, wait: Wait | None) -> bool:
    """Show the run until it ends; return whether watching was ended before."""
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(draw(watched, console, time.time(), with_keys=wait is not None), refresh=True)
            if not watched.goes_on:
                return False
            if wait is None:
                time.sleep(SECONDS_BETWEEN_LOOKS)
            elif wait(SECONDS_BETWEEN_LOOKS) in ("q", "Q"):
                return True
            watched.look()


def print_lines(watched: Watched, console: Console, sleep: Callable[[float], None]) -> None:
    """Print a line a minute, and what happens between, until the run ends."""
    printed_at = float("-inf")
    while True:
        for at, told in watched.new:
            console.print(_line_of(at, told), soft_wrap=True)
        if time.monotonic() - printed_at >= SECONDS_BETWEEN_LINES or not watched.goes_on:
            printed_at = time.monotonic()
            line = f"{_clock(time.time())}  {in_a_line(watched.status)}"
            console.print(Text(harmless(line, one_line=True)), soft_wrap=True)
        if not watched.goes_on:
            return
        sleep(SECONDS_BETWEEN_LOOKS)
        watched.look()


def in_a_line(standing: Status) -> str:
    """Return how a run stands in one line."""
    figures = standing.figures
    told = [str(figures["state"])]
    if figures["step"] is not None:
        told.append("step " + status_command.progress(standing))
    told += [part for part in (status_command.learning(standing), status_command.speed(standing)) if part]
    if figures["tree_bytes"] is not None and figures["state"] in ALIVE:
        cap = "" if figures["cap_bytes"] is None else f" of {format_bytes(figures['cap_bytes'])}"
        told.append(f"RAM {format_bytes(figures['tree_bytes'])}{cap}")
    if figures["eta_seconds"] is not None:
        told.append(f"about {format_seconds(figures['eta_seconds'])} left")
    return ", ".join(told)


def draw(watched: Watched, console: Console, now: float, with_keys: bool) -> Panel:
    """Return what the screen shows.

    Args:
        watched: the run.
        console: whose size it must fit.
        now: the time that ages are counted to, in seconds since 1970.
        with_keys: whether a key can end it.
    """
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in _rows(watched, now):
        grid.add_row(label, Text(harmless(value, one_line=True)) if isinstance(value, str) else value)
    room = min(MOST_HAPPENINGS, console.height - LINES_BESIDE - len(status_command.ranks(watched.status)))
    for number, (at, told) in enumerate(list(watched.happened)[-room:] if room > 0 else ()):
        grid.add_row("lately" if number == 0 else "", _line_of(at, told))
    hint = "q ends watching, not the run" if with_keys and watched.goes_on else None
    width = min(console.width, status_command.WIDEST)
    return Panel(grid, width=width, subtitle=hint, subtitle_align="right", border_style="dim")


def _rows(watched: Watched, now: float) -> Iterator[tuple[str, RenderableType]]:
    """Yield those of `lowmem-seq status`, with curves and a bar for the memory."""
    figures = watched.status.figures
    for label, value in status_command.rows(watched.status, now):
        yield label, value
        width = status_command.BAR_WIDTH
        if label == "learning" and len(watched.losses.points) > 1:
            yield "", _named(Curve(watched.losses.points, width), "loss")
            if len(watched.accuracies.points) > 1:
                yield "", _named(Curve(watched.accuracies.points, width), "validation accuracy")
        elif label == "RAM" and figures["cap_bytes"] and figures["tree_bytes"] is not None:
            if watched.goes_on and not watched.status.starting:
                share = figures["tree_bytes"] / figures["cap_bytes"]
                bar = ProgressBar(1.0, min(share, 1.0), width=width, complete_style="cyan")
                yield "", _named(bar, f"{share:.0%} of the cap")
            if len(watched.memory.points) > 1:
                curve = Curve(watched.memory.points, width, lowest=0.0, highest=float(figures["cap_bytes"]))
                yield "", _named(curve, "of the cap, over time")


def _named(drawn: RenderableType, name: str) -> Table:
    """Return a curve or bar with its name behind it."""
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row(drawn, Text(name, style="dim"))
    return row


def _line_of(at: float | None, told: Told) -> Text:
    clock = "" if at is None else f"{_clock(at)}  "
    return Text(harmless(f"{clock}{told.text}", one_line=True), style="yellow" if told.is_warning else "")


def _clock(unix_seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix_seconds))
