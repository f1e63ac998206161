"""Nothing in the life of a run is a pickle: reading one raises in every process of a whole cycle, and it works.

Somebody else's run folder must not be able to run code, and a pickle is code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lowmem_seq.checkpoint.store import CheckpointStore, Retention
from lowmem_seq.runs.folder import RunFolder
from tests.sessions import Session, python_with, wait_until

NO_PICKLE = '''
"""Every Python process that finds this on its path can read no pickle, and leaves its command line."""
import _pickle
import importlib.abc
import importlib.util
import json
import os
import pathlib
import pickle
import sys


def refuse(*arguments, **settings):
    raise AssertionError("a pickle is read")


class Unpickler:
    def __init__(self, *arguments, **settings):
        refuse()


class Loader(importlib.abc.Loader):
    """Loads torch.serialization as it is, without its load."""

    def __init__(self, inner):
        self.inner = inner

    def create_module(self, spec):
        return self.inner.create_module(spec)

    def exec_module(self, module):
        self.inner.exec_module(module)
        module.load = refuse


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch.serialization":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        spec.loader = Loader(spec.loader)
        return spec


for module in (pickle, _pickle):
    module.load = module.loads = refuse
    module.Unpickler = Unpickler
pickle._load = pickle._loads = refuse
pickle._Unpickler = Unpickler
sys.meta_path.insert(0, Finder())
note = pathlib.Path(os.environ["NOTES"]) / f"{os.getpid()}.json"
note.write_text(json.dumps(sys.orig_argv))
'''
FLAGS = (
    *("--steps", "1000000", "--checkpoint-every", "5steps", "--micro-batch", "16", "--max-ram", "1GB"),
    *("--set", "machine.threads=1", "--set", "augmentation.mixup=0.3", "--set", "recipe.ema_decay=0.9"),
)


@pytest.fixture
def no_pickle(tmp_path: Path) -> dict[str, str]:
    """The environment in which nobody reads a pickle, and everybody leaves a note."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "path").mkdir()
    return {
        "PYTHONPATH": python_with(NO_PICKLE, folder=tmp_path / "path"),
        "NOTES": str(tmp_path / "notes"),
        "LOWMEM_SEQ_CACHE": str(tmp_path / "cache"),
    }


def noted(folder: Path) -> list[list[str]]:
    """The command lines of all processes that could read no pickle."""
    return [json.loads(note.read_text(encoding="utf-8")) for note in (folder / "notes").iterdir()]


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint; 0 before the first."""
    return max((one.step for one in CheckpointStore(run / "checkpoints", Retention(1)).all()), default=0)


def draw_pictures(folder: Path) -> Path:
    """Two classes of plain pictures, bright and dark."""
    for part, count in (("train", 40), ("test", 8)):
        for label, brightness in (("bright", 160), ("dark", 20)):
            place = folder / part / label
            place.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (brightness + number, number, brightness)).save(place / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    "reads",
    [
        "import pickle; pickle.loads(pickle.dumps(1))",
        "import io, pickle; pickle.load(io.BytesIO(pickle.dumps(1)))",
        "import io, pickle; pickle.Unpickler(io.BytesIO(pickle.dumps(1)))",
        "import io, torch; file = io.BytesIO(); torch.save({}, file); file.seek(0); torch.load(file)",
    ],
)
def test_a_process_that_reads_a_pickle_would_fail(no_pickle: dict[str, str], reads: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", reads], env={**os.environ, **no_pickle}, capture_output=True, encoding="utf-8"
    )
    assert "AssertionError: a pickle is read" in done.stderr


def test_no_process_of_a_whole_cycle_reads_a_pickle(no_pickle: dict[str, str], tmp_path: Path) -> None:
    def lowmem_seq(*arguments: str) -> str:
        with Session(*arguments, cwd=tmp_path, **no_pickle) as session:
            return session.ended(0)

    pictures = str(draw_pictures(tmp_path / "pictures"))
    run = tmp_path / "run"
    lowmem_seq("data", "add", pictures)
    lowmem_seq("data", "show", pictures)
    with Session("train", "tiny", "--data", pictures, "--run-dir", "run", *FLAGS, cwd=tmp_path, **no_pickle) as it:
        wait_until(lambda: newest_step(run) >= 10, "the second checkpoint")
        it.trainer().kill()
        it.wait_for_words("another one starts in")
        it.process.kill()
        it.process.wait()
    wait_until(lambda: not RunFolder(run).is_locked(), "a trainer that had been started again")
    steps = newest_step(run) + 10
    assert "resumes after step" in lowmem_seq("resume", "run", "--steps", str(steps))
    lowmem_seq("verify", "run")
    lowmem_seq("status", "run")
    for kind in ((), ("--markdown",), ("--json",)):
        told = lowmem_seq("report", "run", *kind)
    summary: dict[str, Any] = json.loads(told)[0]
    assert (summary["state"], summary["step"]) == ("finished", steps)
    commands = [" ".join(line[1:]) for line in noted(tmp_path)]
    for module, times in (
        ("lowmem_seq data", 2),
        ("lowmem_seq train", 1),
        ("lowmem_seq resume", 1),
        ("lowmem_seq report", 3),
        ("lowmem_seq.data", 2),
        ("lowmem_seq.training.probe", 1),
        ("lowmem_seq.training ", 2),
    ):
        assert sum(f" {module}" in command for command in commands) >= times, (module, commands)
