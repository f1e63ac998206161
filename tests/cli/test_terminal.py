from __future__ import annotations

import os
import subprocess
import sys
from typing import IO, cast

from rich.console import Console

from lowmem_seq.cli.terminal import LONGEST_TEXT, LastingStream, harmless
from tests.builders import SECONDS_FOR_A_PROCESS

TALKS_TO_A_CLOSED_PIPE = """
import sys
from typing import IO, cast
from lowmem_seq.cli.terminal import LastingStream

stream = LastingStream(sys.stdout)
stream.write("first\\n")
stream.flush()
sys.stdin.read()
for number in range(3):
    stream.write("x" * 100_000)
    stream.flush()
print("lives", file=sys.stderr)
"""


def test_a_reader_that_goes_away_ends_nothing() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", TALKS_TO_A_CLOSED_PIPE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdout.readline().strip() == b"first"
    child.stdout.close()
    child.stdin.close()
    assert child.wait(SECONDS_FOR_A_PROCESS) == 0
    assert child.stderr.read().strip() == b"lives"
    child.stderr.close()


def test_what_can_be_written_is_written_through() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        console = Console(file=cast(IO[str], LastingStream(stream)), highlight=False)
        assert not console.is_terminal
        console.print("step 20")
    with os.fdopen(reader, "rb") as end:
        assert end.read() == b"step 20\n"


def test_text_from_elsewhere_moves_no_cursor_and_fills_no_screen() -> None:
    assert harmless("step\x1b[2J 20\r\n\u202etxt\x9b") == "step [2J 20 \n txt "
    assert harmless("ä 漢 🙂") == "ä 漢 🙂"
    assert harmless("x" * (LONGEST_TEXT + 1)) == "x" * LONGEST_TEXT + " ..."
