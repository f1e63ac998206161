from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lowmem_seq.channel import Channel
from lowmem_seq.data import __main__ as program
from lowmem_seq.data.pack import Pack
from tests.data.builders import class_files, write_folder


def lines_of(*arguments: str) -> tuple[int, list[dict[str, object]], str]:
    command = [sys.executable, "-m", "lowmem_seq.data", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:  # its input stays open, as a supervisor that lives keeps it
        assert child.stdout is not None
        assert child.stderr is not None
        lines = [json.loads(line) for line in child.stdout]
        errors = child.stderr.read()
        return child.wait(), lines, errors


def test_progress_and_then_the_pack(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "photos", class_files("cat", "dog"))
    code, lines, errors = lines_of(str(root), "8")
    assert code == 0
    assert errors == ""
    assert {line["event"] for line in lines[:-1]} == {"packing"}
    assert lines[-2] == {"event": "packing", "what": "reading images", "done": 8, "total": 8}
    assert lines[-1]["event"] == "packed"
    pack = Pack.open(Path(str(lines[-1]["pack"])))
    assert pack.size("train") == 6
    assert lines[-1]["fingerprint"] == pack.fingerprint


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["cifr10", "32"], 2, "cifr10"), (["./gone.zip", "32"], 5, "gone.zip"), (["shapes"], 2, "takes a source")],
)
def test_errors_are_lines_too(arguments: list[str], code: int, message: str) -> None:
    found, lines, errors = lines_of(*arguments)
    assert found == code
    assert lines[-1]["event"] == "error"
    assert lines[-1]["exit_code"] == code
    assert message in str(lines[-1]["message"])
    assert lines[-1]["hint"]
    assert errors == ""


def test_there_are_at_most_ten_messages_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(number / 1000 for number in range(5000))
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    channel = Channel(listen=False)
    said: list[object] = []
    monkeypatch.setattr(channel, "say", said.append)
    progress = program.PackingProgress(channel)
    for done in range(3000):
        progress("reading images", done, 3000)
    progress("reading images", 3000, 3000)
    assert 25 <= len(said) <= 32
    assert said[-1] == {"event": "packing", "what": "reading images", "done": 3000, "total": 3000}
