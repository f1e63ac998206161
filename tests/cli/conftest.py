"""The command line in this process: what it prints, and the exit code that it ends with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from lowmem_seq.cli.main import main


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


CommandLine = Callable[..., Ended]


@pytest.fixture
def command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    """Runs `lowmem-seq ARGUMENTS...` in an empty folder, outside of any launcher."""
    for name in ("WORLD_SIZE", "MASTER_ADDR", "LOWMEM_SEQ_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lowmem-seq", *arguments])
        capsys.readouterr()
        try:
            main()
        except SystemExit as end:
            code = end.code
        else:
            code = 0
        assert isinstance(code, int)
        return Ended(code, *capsys.readouterr())

    return run
