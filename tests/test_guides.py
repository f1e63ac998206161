"""Every `lowmem-seq` line of the README and the guides, run: in a folder that has what it names, with a tiny model.

What needs no training is run by test_docs.py and cli/test_own_pictures.py; what needs a second machine by
cluster/test_sessions.py and doctor/test_peer.py, on loopback.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from benchmarks.kills import PROGRAM
from tests.cli.test_own_pictures import QUICK
from tests.data.builders import coloured_files, write_folder, write_zip
from tests.plugged import program
from tests.sessions import SECONDS_TO_WAIT, lowmem_seq, rewound
from tests.test_docs import INSTALLING, READING_COMMANDS, ROOT, RUN_DIR, commands

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
WITH_A_SECOND_MACHINE = {"--host", "--join", "--peer", "hp/small-20261122-230012"}
RUN_ELSEWHERE = {*READING_COMMANDS, *QUICK, INSTALLING}
LINES = sorted(
    line
    for line in {line for page in PAGES for line in commands(page)} - RUN_ELSEWHERE
    if not WITH_A_SECOND_MACHINE & set(shlex.split(line))
)
QUICKLY = ("--micro-batch", "8", "--set", "machine.threads=1")
BESIDE = {"train": ("--steps", "2", *QUICKLY), "plan": QUICKLY}
"""What a command is given beside what the page says, so that it takes seconds."""
SAID = {
    "train": "test accuracy",
    "resume": "test accuracy",
    "plan": "of the cap of",
    "predict": "photo.jpg",
    "eval": "accuracy ",
    "export": "written: ",
    "report": "page: ",
    "doctor": "oneDNN",
    "data": "train and",
    "status": "step",
    "watch": "step",
    "--debug": "step",
}
"""A word that each of them says."""

pytestmark = pytest.mark.slow
Ended = dict[str, "Future[subprocess.CompletedProcess[str]]"]


def stand_in(line: str) -> list[str]:
    """What is run for a line: its words, with a model, a length and hours by which it ends within seconds."""
    now = datetime.now()
    hours = f"{now - timedelta(hours=1):%H:%M}-{now + timedelta(hours=2):%H:%M}"
    swapped = {"RUN_DIR": RUN_DIR, "22:00-07:00": hours, "airplane,automobile,bird,cat": "circle,cross,ring,square"}
    command, *words = shlex.split(line)[1:]
    words = [swapped.get(word, word).replace("/mnt/big/", "big/") for word in words]
    if command in BESIDE:
        words[0] = "tiny"
    return [command, *words, *BESIDE.get(command, ())]


def run_line(line: str, place: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run what stands in for a line, in a folder of its own; the plug of its machine is in."""
    shutil.copytree(place, folder)
    plugged = program(folder / "photo.jpg") if "--pause-on-battery" in line else PROGRAM
    return subprocess.run(
        [*plugged, *stand_in(line)],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=SECONDS_TO_WAIT,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the lines name; the run there was interrupted after ten of twenty steps."""
    place = tmp_path_factory.mktemp("guides") / "place"
    files = coloured_files(red=(200, 40, 40), green=(40, 200, 40), blue=(40, 40, 200))
    write_folder(place / "photos", files)
    write_folder(place / "big" / "photos", files)
    write_zip(place / "photos.zip", files)
    (place / "photo.jpg").write_bytes(files["red/0.png"])
    length = ("--steps", "20", "--checkpoint-every", "10steps")
    lowmem_seq("train", "tiny", "--data", "photos", *length, *QUICKLY, "--run-dir", "whole", cwd=place)
    for run in (RUN_DIR, "runs/medium-20261123-080000", f"big/{Path(RUN_DIR).name}"):
        rewound(place / "whole", place / run, 10)
    (place / "whole" / "model.safetensors").rename(place / "sequencer2d_s.safetensors")
    return place


@pytest.fixture(scope="module")
def ended(request: pytest.FixtureRequest, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """The lines, being run two at a time: most of each is one process that loads torch on one core."""
    folder = tmp_path_factory.mktemp("lines")
    here = [item.callspec.params["line"] for item in request.session.items if item.path == request.path]  # type: ignore[attr-defined]
    pool = ThreadPoolExecutor(2)
    try:
        yield {line: pool.submit(run_line, line, place, folder / str(number)) for number, line in enumerate(here)}
    finally:
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("line", LINES)
def test_what_a_guide_tells_to_type_does_what_it_says(line: str, ended: Ended) -> None:
    done = ended[line].result()
    command = line.split()[1]
    assert done.returncode in ((0, 11) if command == "doctor" else (0,)), done.stdout + done.stderr
    assert SAID[command] in done.stdout
    if command == "doctor" and "--json" in line:
        assert json.loads(done.stdout)["checks"]
