from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowmem_seq.data.pack import Pack
from lowmem_seq.runs.folder import RunFolder
from tests.builders import end, make_run, read_line, start_python, tiny_config
from tests.cli.conftest import CommandLine
from tests.cli.test_status import write_story


def contents(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything in a folder: when it changed, its rights, and its bytes."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            path.stat().st_mode,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in (folder, *folder.rglob("*"))
    }


@pytest.mark.parametrize("flag", [[], ["--json"]])
@pytest.mark.parametrize("command", ["status", "verify"])
def test_looking_at_a_run_changes_nothing_in_its_folder(
    command_line: CommandLine, run: RunFolder, command: str, flag: list[str]
) -> None:
    write_story(run)
    with run.locked(), run.writing():
        before = contents(run.path)
        assert command_line(command, str(run.path), *flag).code == 0
        assert contents(run.path) == before
    half = run.checkpoints / "step-00000060.partial-0123abcd"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    before = contents(run.path)
    assert command_line(command, str(run.path), *flag).code == 0
    assert contents(run.path) == before


HOLDING = """
import sys
from pathlib import Path
from lowmem_seq.runs.folder import RunFolder

with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user may read."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextlib.contextmanager
def somebody_elses(folder: Path) -> Iterator[None]:
    """Let this process read a folder, and not write it."""
    modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
    for path in modes:
        path.chmod(0o555 if path.is_dir() else 0o444)
    is_root = os.geteuid() == 0
    if is_root:  # to whom rights mean nothing
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.skipif(sys.platform == "win32", reason="rights of files are other ones on Windows")
def test_somebody_elses_run_can_be_looked_at(
    command_line: CommandLine, public_folder: Path, tiny_pack: Pack
) -> None:
    run = make_run(public_folder / "run", tiny_pack, tiny_config())
    write_story(run)
    os.chdir(public_folder)
    holder = start_python(HOLDING, str(run.path))
    assert read_line(holder) == "held"
    with somebody_elses(run.path):
        before = contents(run.path)
        running = json.loads(command_line("status", "run", "--json").out)
        assert command_line("verify", "run").code == 0
        assert contents(run.path) == before
    assert running["state"] == "running"
    assert end(holder)[0] == 0
    with somebody_elses(run.path):
        assert json.loads(command_line("status", "run", "--json").out)["state"] == "crashed"
