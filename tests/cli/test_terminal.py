from __future__ import annotations

import io
import json
import os

import pytest
from rich.text import Text

from lowmem_seq.cli.terminal import LastingStream, harmless, make_console, print_json
from lowmem_seq.text import LONGEST_TEXT
from tests.builders import end, read_line, start_python

TALKS_TO_A_CLOSED_PIPE = """
import sys
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
    child = start_python(TALKS_TO_A_CLOSED_PIPE)
    assert read_line(child) == "first"
    assert child.stdout is not None
    child.stdout.close()
    child.stdout = None
    code, _, errors = end(child)
    assert (code, errors) == (0, "lives\n")


def test_what_can_be_written_is_written_through() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        console = make_console(stream)
        assert not console.is_terminal
        console.print("step 20")
    with os.fdopen(reader, "rb") as end:
        assert end.read() == b"step 20\n"


def test_text_from_elsewhere_moves_no_cursor_and_fills_no_screen() -> None:
    assert harmless("step\x1b[2J 20\r\n\u202etxt\x9b") == "step [2J 20 \n txt "
    assert harmless("step\x1b[2J 20\nend", one_line=True) == "step [2J 20 end"
    assert harmless("ä 漢 🙂") == "ä 漢 🙂"
    assert harmless("x" * (LONGEST_TEXT + 1)) == "x" * LONGEST_TEXT + " ..."


@pytest.mark.parametrize(("encoding", "written"), [("cp1252", b"\xe4 ????\n"), ("ascii", b"? ????\n")])
def test_letters_that_a_stream_lacks_end_nothing(encoding: str, written: bytes) -> None:
    through = io.BytesIO()
    stream = io.TextIOWrapper(through, encoding=encoding, newline="\n")
    make_console(stream).print(Text("ä 漢🙂"))
    stream.flush()
    assert through.getvalue() == written


def test_a_stream_that_writes_what_it_lacks_in_its_own_way_keeps_it() -> None:
    through = io.BytesIO()
    stream = io.TextIOWrapper(through, encoding="ascii", errors="backslashreplace")
    assert LastingStream(stream).write("ä") == 1
    stream.flush()
    assert through.getvalue() == b"\\xe4"


@pytest.mark.parametrize("soft_wrap", [True, False])
def test_long_lines_are_broken_by_whom_it_was_asked_of(monkeypatch: pytest.MonkeyPatch, soft_wrap: bool) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    make_console(stream, soft_wrap).print("word " * 9 + "end")
    assert len(stream.getvalue().splitlines()) == (1 if soft_wrap else 3)


def test_json_holds_letters_of_every_terminal_and_no_commands(capsys: pytest.CaptureFixture[str]) -> None:
    told = {"name": "\x1b[2J \x9b2J \u202e ä 漢 🙂 \udcff", "two": [1, None]}
    print_json(told)
    out = capsys.readouterr().out
    assert json.loads(out) == told
    assert out.isascii()
    assert all(mark.isprintable() or mark == "\n" for mark in out)
