"""A run that a stranger made: taking it up costs neither memory nor time, and leads nowhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq import files
from lowmem_seq.checkpoint.manifest import MANIFEST, sealed
from lowmem_seq.files import read_json
from lowmem_seq.runs.folder import RunFolder
from tests.builders import end, read_line, start_python
from tests.crash.patient import Patient

pytestmark = pytest.mark.usefixtures("unsynced")
LOOKING = """
import json, os, sys, time
from pathlib import Path

import psutil

from lowmem_seq.channel import Channel
from lowmem_seq.errors import LowmemSeqError
from lowmem_seq.runs.folder import open_run
from lowmem_seq.training.measuring import PeakSampler
from lowmem_seq.training.session import open_training, read_plan

OF_THE_SAMPLER = (f"/proc/{os.getpid()}/stat", f"/proc/{os.getpid()}/clear_refs")
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)

def look(path):
    before = len(opened)
    try:
        run = open_run(path)
        training = open_training(run, read_plan(run), Channel(listen=False))
        del opened[before:]  # the pack lies outside
        training.saver.load_newest()
        found = f"step {training.state.counters.step}"
        training.saver._saved_step = 0
        training.saver.save()  # looks at the older ones too
    except LowmemSeqError as error:
        found = f"{type(error).__name__}: {error.message}"
    names = [name for name in opened[before:] if not name.startswith(OF_THE_SAMPLER)]
    return found, [name for name in names if not Path(os.path.realpath(name)).is_relative_to(path)]

for line in sys.stdin:
    path = Path(os.path.realpath(line.rstrip("\\n")))
    rss, began = psutil.Process().memory_info().rss, time.monotonic()
    with PeakSampler() as sampler:
        found, outside = look(path)
    print(json.dumps([found, outside, sampler.peak_bytes - rss, time.monotonic() - began]), flush=True)
"""
MOST_MORE_BYTES = 32 * 10**6
MOST_SECONDS = 10.0


def seal_again(checkpoint: Path, **changes: Any) -> None:
    """Make the manifest fit the files, as somebody can who has read how."""
    manifest = read_json(checkpoint / MANIFEST)
    for name, told in manifest["files"].items():
        told |= {"bytes": (checkpoint / name).stat().st_size, "sha256": files.sha256_of(checkpoint / name)}
    (checkpoint / MANIFEST).write_bytes(sealed({**manifest, **changes}))


def put(checkpoint: Path, name: str, content: bytes) -> None:
    """Give a file this content, with a manifest that fits it."""
    (checkpoint / name).write_bytes(content)
    seal_again(checkpoint)


def put_tensors(checkpoint: Path, header: object, data_bytes: int = 0, header_bytes: int | None = None) -> None:
    """Give model.safetensors a header that may lie, also about its own length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if header_bytes is None else header_bytes
    put(checkpoint, "model.safetensors", length.to_bytes(8, "little") + text + bytes(data_bytes))


def tensor(shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def name_file(checkpoint: Path, name: str) -> None:
    manifest = read_json(checkpoint / MANIFEST)
    seal_again(checkpoint, files={name: manifest["files"]["state.json"]})


def make_link(checkpoint: Path, name: str, target: str) -> None:
    (checkpoint / name).unlink()
    (checkpoint / name).symlink_to(target)


def make_pipe(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)


def make_long(path: Path, beginning: bytes) -> None:
    """A file of 100 MB, most of it zeros that take no room on the disk."""
    with path.open("wb") as file:
        file.write(beginning)
        file.truncate(10**8)


def lose_checkpoints_to_long_events(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint.parent)
    make_long(checkpoint.parents[1] / "events.jsonl", b'{"event": "checkpoint", "step": ')


CANT_BE_READ = r"NoCheckpointError: .*model\.safetensors can't be read: .+"
OTHER_TENSORS = r"NoCheckpointError: the checkpoint's model has other tensors than this model: .+"
FALLEN_BACK = "step 2"
A_LINK = r"UsageError: .+ is a link, .+"
A_PIPE = r"UsageError: .+ is a pipe or a device\."
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a header longer than the file": (lambda at: put_tensors(at, {}, header_bytes=2**40), CANT_BE_READ),
    "a header of 40 MB": (lambda at: put_tensors(at, b"{" + 40_000_000 * b" " + b"}"), CANT_BE_READ),
    "a header of 28,000 tensors": (
        lambda at: put_tensors(at, {f"t{number:06d}": tensor([0], 0, 0) for number in range(28_000)}),
        OTHER_TENSORS,
    ),
    "a header of boxes in boxes": (lambda at: put_tensors(at, 200_000 * b'{"a":'), CANT_BE_READ),
    "2^40 elements": (lambda at: put_tensors(at, {"a": tensor([2**40], 0, 4)}, 4), CANT_BE_READ),
    "2^80 elements": (lambda at: put_tensors(at, {"a": tensor([2**40, 2**40], 0, 4)}, 4), CANT_BE_READ),
    "2^40 bytes": (lambda at: put_tensors(at, {"a": tensor([2**38], 0, 2**40)}, 4), CANT_BE_READ),
    "tensors in the same place": (
        lambda at: put_tensors(at, {"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, 12),
        CANT_BE_READ,
    ),
    "counters of 9 MB": (
        lambda at: put(at, "state.json", b"[" + 3_000_000 * b"[]," + b"[]]"),
        r"NoCheckpointError: .+ holds no counters of step 4\.",
    ),
    "a manifest of 100 MB": (lambda at: make_long(at / MANIFEST, b'{"step": "'), FALLEN_BACK),
    "a manifest of boxes in boxes": (lambda at: (at / MANIFEST).write_bytes(900_000 * b"["), FALLEN_BACK),
    "a manifest of many boxes": (
        lambda at: (at / MANIFEST).write_bytes(b"[" + 300_000 * b"[]," + b"[]]"),
        FALLEN_BACK,
    ),
    **{
        f"a manifest that names {name}": (lambda at, name=name: name_file(at, name), FALLEN_BACK)  # type: ignore[misc]
        for name in ("..\\x", "../../config.yaml", "/etc/hosts", "C:x", "con", "straße.json", "long" * 75 + ".json")
    },
    "events without an end": (lose_checkpoints_to_long_events, "step 0"),
}
if sys.platform != "win32":
    HOSTILE |= {
        "weights that are a link": (lambda at: make_link(at, "model.safetensors", "/dev/zero"), A_LINK),
        "a manifest that is a link": (lambda at: make_link(at, MANIFEST, "/etc/hosts"), A_LINK),
        "a manifest that is a pipe": (lambda at: make_pipe(at, MANIFEST), A_PIPE),
    }


@dataclass(frozen=True)
class Looked:
    """What taking up a run came to, and what it cost."""

    found: str
    opened_outside: list[str]
    more_bytes: int
    seconds: float


Look = Callable[[Path], Looked]


@pytest.fixture(scope="module")
def look(trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Look]:
    """A process that takes up run after run as a trainer does; it has done so once."""
    process = start_python(LOOKING)

    def take_up(path: Path) -> Looked:
        assert process.stdin is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        return Looked(*json.loads(read_line(process)))

    good = Path(shutil.copytree(trained.path, tmp_path_factory.mktemp("good") / "run"))
    take_up(good)
    looked = take_up(good)
    assert (looked.found, looked.opened_outside) == ("step 4", [])
    yield take_up
    assert end(process)[0] == 0


@pytest.mark.parametrize("what", HOSTILE)
def test_a_stranger_s_run_costs_neither_memory_nor_time_and_leads_nowhere(
    patient: Patient, look: Look, what: str
) -> None:
    change, pattern = HOSTILE[what]
    change(patient.newest)
    looked = look(patient.run.path)
    assert re.fullmatch(pattern, looked.found), looked.found
    assert looked.opened_outside == []
    assert looked.more_bytes < MOST_MORE_BYTES
    assert looked.seconds < MOST_SECONDS


RATING = """
import sys
from pathlib import Path
from lowmem_seq.checkpoint.store import CheckpointStore, Retention, best_of
print(best_of(CheckpointStore(Path(sys.argv[1]), Retention(newest=1)).all()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_looking_for_the_best_does_not_wait_at_a_pipe(patient: Patient) -> None:
    """In a process of its own, which can be ended: a read from a pipe without a writer waits for ever."""
    make_pipe(patient.newest, MANIFEST)
    assert end(start_python(RATING, str(patient.run.checkpoints)))[:2] == (0, "None\n")
