"""Take docs/images/screen.svg, the screen of a real run at a step of it: `python docs/make_pictures.py`.

The run is one as the README shows it, in a folder that is thrown away. It is stopped, as by Ctrl-C, once the
picture is taken, which is after a minute or so.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from lowmem_seq.cli import main as command_line
from lowmem_seq.cli import train
from lowmem_seq.cli.screen import SessionScreen
from lowmem_seq.supervisor.child import Message

PICTURE = Path(__file__).resolve().parent / "images" / "screen.svg"
COMMAND = "lowmem-seq train small --data shapes --max-ram 2GB"
STEP = 240
WIDTH = 108
WEB_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""What rich would have a browser load from elsewhere; the system's own font serves."""


class Still(Live):
    """A display that draws nothing, so that a picture of the last state can be taken once."""

    def start(self, refresh: bool = False) -> None:
        """Begin nothing."""

    def stop(self) -> None:
        """End nothing."""

    def update(self, renderable: RenderableType, *, refresh: bool = False) -> None:
        """Draw nothing."""


class Camera(SessionScreen):
    """A session's screen, as a terminal of 108 columns shows it, of which a picture is taken at a step."""

    def __init__(self, console: Console, *rest: Any) -> None:
        del console
        self._film = Console(file=io.StringIO(), record=True, force_terminal=True, width=WIDTH)
        self._film.print(Text.assemble(("$ ", "bold green"), COMMAND))
        super().__init__(self._film, *rest)

    def __enter__(self) -> Camera:
        self._live = Still(console=self._film, auto_refresh=False)
        return self

    def show(self, message: Message) -> None:
        """Take in what a child said; take the picture when it is time, and stop the run."""
        super().show(message)
        if message.get("event") == "train" and message["step"] >= STEP and not self._stopping:
            self._film.print(self._draw())
            PICTURE.parent.mkdir(exist_ok=True)
            drawn = WEB_FONT.sub("", self._film.export_svg(title="lowmem-seq"))
            PICTURE.write_text("\n".join(line.rstrip() for line in drawn.splitlines()) + "\n", encoding="utf-8")
            os.kill(os.getpid(), signal.SIGINT)


def main() -> None:
    """Train, and take the picture."""
    vars(train)["SessionScreen"] = Camera
    sys.argv = COMMAND.split()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            command_line.main()
        except SystemExit as end:
            print(f"ended with {end.code}; the picture is {PICTURE}")
        os.chdir("/")


if __name__ == "__main__":
    main()
