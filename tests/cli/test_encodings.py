"""Terminals that lack letters, colours or a cursor: what is shown there is plainer, and nothing fails."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lowmem_seq.cli.plan import draw
from lowmem_seq.cli.screen import SessionScreen
from lowmem_seq.cli.terminal import make_console
from lowmem_seq.data.pack import Pack
from lowmem_seq.memory.forecast import make_forecast
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.planner import Planned
from tests.builders import SECONDS_FOR_A_PROCESS, make_run, tiny_config
from tests.cli.test_plan import CONFIG, KNOWN, MACHINE, a_plan
from tests.cli.test_status import write_story

NAME = "grüße 漢字 🙂"
ENCODINGS = ("cp437", "cp1252", "ascii", "utf-8")
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]")
ESCAPE = "\x1b["

RUN_ALL = """
import json, sys
from lowmem_seq.cli.main import main

for arguments in json.loads(sys.argv.pop()):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        print("ended", end.code or 0, flush=True)
"""
MESSAGES = (
    {"event": "packing", "what": f"packing {NAME}", "done": 5, "total": 10},
    {"event": "probing", "micro_batch": 8, "workers": 1},
    {
        "event": "session_started",
        "step": 0,
        "total_steps": 60,
        "epochs": 6.0,
        "parameters": 1234,
        "classes": ["süß", "漢字", "🙂"],
        "train_images": 45,
        "validation_images": 5,
        "test_images": 12,
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        "effective_batch": 8,
    },
    {"event": "train", "step": 20, "epoch": 2.0, "train_loss": 1.25, "images_per_second": 100.0},
    {"event": "validation", "step": 20, "epoch": 2.0, "val_accuracy": 0.5, "val_loss": 1.1},
    {"event": "checkpoint", "step": 20},
    {"event": "paused", "what": NAME, "cause": "kein Platz für 漢字", "free_bytes": 5, "next_try_seconds": 1.0},
    {"event": "unpaused", "what": NAME, "seconds": 2.0},
)


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=request.param, newline="\n")


def said(stream: io.TextIOWrapper) -> str:
    """What was written, as a terminal of the stream's encoding reads it."""
    stream.flush()
    written = stream.buffer
    assert isinstance(written, io.BytesIO)
    return written.getvalue().decode(stream.encoding)


def tell_a_session(console: Console, run: RunFolder) -> None:
    with SessionScreen(console, run, tiny_config(), quiet=False) as screen:
        for message in MESSAGES:
            screen.show_memory(10**8, 10**8, 10**9)
            screen.show(dict(message))


@pytest.mark.parametrize("stream", ENCODINGS, indirect=True)
@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_session_is_told_in_every_encoding(
    stream: io.TextIOWrapper, run: RunFolder, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    if is_terminal:
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    tell_a_session(make_console(stream, soft_wrap=True), run)
    told = said(stream)
    assert (ESCAPE in told) is is_terminal
    assert "epoch 2: validation accuracy 50.00%" in told
    assert "going on" in told
    assert ("漢字" in told) is (stream.encoding == "utf-8")


@pytest.mark.parametrize("stream", ["utf-8"], indirect=True)
def test_a_terminal_without_a_cursor_gets_lines(
    stream: io.TextIOWrapper, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("lowmem_seq.cli.screen.SECONDS_BETWEEN_LINES", 0.0)
    tell_a_session(make_console(stream, soft_wrap=True), run)
    told = said(stream)
    assert ESCAPE not in told
    assert "step 20/60, epoch 2.0/6, loss 1.250" in told


@pytest.mark.parametrize("stream", ["utf-8"], indirect=True)
@pytest.mark.parametrize("no_colour", [True, False])
def test_no_color_is_heard(
    stream: io.TextIOWrapper, run: RunFolder, monkeypatch: pytest.MonkeyPatch, no_colour: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    console = make_console(stream, soft_wrap=True)
    tell_a_session(console, run)
    planned = Planned(a_plan(), KNOWN)
    forecast = make_forecast(CONFIG, planned.plan, KNOWN)
    console.print(draw(CONFIG, planned, forecast, MACHINE, 80, coloured=True), width=80)
    told = said(stream)
    assert bool(COLOUR.search(told)) is not no_colour
    assert "LLL" in told  # the bar of a plan is told by letters where its colours are not seen


@pytest.mark.parametrize("stream", ENCODINGS, indirect=True)
def test_a_plan_is_drawn_in_every_encoding(stream: io.TextIOWrapper) -> None:
    planned = Planned(a_plan(), KNOWN)
    forecast = make_forecast(CONFIG, planned.plan, KNOWN)
    make_console(stream).print(draw(CONFIG, planned, forecast, MACHINE, 80, coloured=False), width=80)
    assert "of the cap of 1.25 GB" in said(stream)
    assert max(map(len, said(stream).splitlines())) <= 80


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_commands_that_read_end_well_in_every_encoding(encoding: str, tmp_path: Path, tiny_pack: Pack) -> None:
    run = make_run(tmp_path / "runs" / NAME, tiny_pack, tiny_config(f"name={NAME}"))
    write_story(run)
    path = f"runs/{NAME}"
    lines = [
        ["status", path],
        ["verify", path],
        ["report", path],
        ["report", path, path],
        ["report", "--markdown"],
        ["report", "--json"],
        ["data", "list"],
        ["train", "--help"],
        ["status", f"{path}x"],
    ]
    ended = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", RUN_ALL, json.dumps(lines)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "80"},
        capture_output=True,
        timeout=SECONDS_FOR_A_PROCESS,
        check=False,
    )
    out, errors = ended.stdout.decode(encoding), ended.stderr.decode(encoding)
    assert ended.returncode == 0, errors
    assert re.findall(r"^ended (\d+)$", out, flags=re.MULTILINE) == ["0"] * 8 + ["2"]
    assert (NAME in out) is (encoding == "utf-8")
    assert errors.count("error: ") == 1
    assert "did you mean" in errors
    assert "Traceback" not in errors
