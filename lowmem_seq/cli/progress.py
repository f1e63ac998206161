"""How far a command is that takes a while, on standard error: its result may go elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.text import Text

from lowmem_seq.cli.terminal import can_redraw, make_console

if TYPE_CHECKING:  # numpy
    from lowmem_seq.data.dataset import Progress
    from lowmem_seq.supervisor.child import Message


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Give what shows progress: a bar in a terminal, a line for each new activity elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = make_console(sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not can_redraw(console)) as bar:
        task = bar.add_task("starting", total=None)
        current = ""

        def show(what: str, done: int, total: int | None) -> None:
            nonlocal current
            if what != current:
                current = what
                bar.reset(task, description=what, total=total)
                if not can_redraw(console):
                    console.print(Text(what))
            bar.update(task, completed=done, total=total)

        yield show


def packing_shown(progress: Progress) -> Callable[[Message], None]:
    """Return what shows the progress of a packer by what it says."""

    def show(message: Message) -> None:
        if message.get("event") == "packing":
            progress(message["what"], message["done"], message["total"])

    return show
