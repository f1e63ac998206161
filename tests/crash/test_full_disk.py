"""A disk that fills up while a run is on it: a tmpfs of 20 MB, which only root may mount, on Linux."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.kills import copy_before_first_step, differences
from lowmem_seq.checkpoint.manifest import find_fault
from lowmem_seq.checkpoint.store import CheckpointStore, Retention
from lowmem_seq.disk import free_bytes
from tests.sessions import EVERY, Session, events, resume, resume_to_the_end, story, wait_until


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 20 MB, for as long as the block lasts."""
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)], check=True, capture_output=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def may_mount() -> bool:
    """Whether this process may mount a disk: root, and not in a container that forbids it."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return False
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.suppress(subprocess.CalledProcessError),
        small_disk(Path(folder) / "disk"),
    ):
        return True
    return False


pytestmark = pytest.mark.skipif(not may_mount(), reason="only root can mount a small disk, on Linux")


def fill(disk: Path, leaving: int = 0) -> None:
    """Put bytes into a file until so few are free."""
    with (disk / "filler").open("ab", buffering=0) as filler, contextlib.suppress(OSError):
        while (free := free_bytes(disk)) > leaving:
            filler.write(bytes(min(free - leaving, 10**6)))


def fill_until_it_pauses(session: Session, run: Path) -> None:
    """Fill the disk after a few saves, and see that the newest checkpoint is whole while the run waits."""
    wait_until((run / "checkpoints" / f"step-{2 * EVERY:08d}").exists, "the second checkpoint")

    def paused() -> bool:
        fill(run.parent)  # what a failed save gives back, too
        return "paused:" in session.said or session.process.poll() is not None

    wait_until(paused, "the pause")
    assert newest_whole(run) >= 2 * EVERY


def newest_whole(run: Path) -> int:
    """The step of the newest checkpoint, which verifies."""
    newest = CheckpointStore(run / "checkpoints", Retention(1)).all()[-1]
    assert find_fault(newest) is None
    return newest.step


@story
def test_a_run_on_a_full_disk_pauses_and_goes_on_when_there_is_room(undisturbed: Path, folder: Path) -> None:
    with small_disk(folder / "disk") as disk:
        run = copy_before_first_step(undisturbed, disk / "run", "checkpoint.keep=2").path
        with resume(run, cwd=folder) as session:
            fill_until_it_pauses(session, run)
            step = newest_whole(run) + EVERY
            assert f"warning: paused: the checkpoint of step {step} can't be written: " in session.said
            assert "are free on its disk); what was saved before stands; it is tried again in" in session.said
            assert session.process.poll() is None
            (disk / "filler").unlink()
            said = session.ended(0)
        assert f"the checkpoint of step {step} is written after" in said
        paused, unpaused = events(run, "paused"), events(run, "unpaused")
        assert {event["what"] for event in (*paused, *unpaused)} == {f"the checkpoint of step {step}"}
        assert len(unpaused) == 1
        assert differences(run, undisturbed) == []


@story
def test_a_disk_that_stays_full_ends_the_run_with_8_and_it_can_be_resumed(undisturbed: Path, folder: Path) -> None:
    settings = ("checkpoint.keep=2", "checkpoint.disk_patience=3s")
    with small_disk(folder / "disk") as disk:
        run = copy_before_first_step(undisturbed, disk / "run", *settings).path
        with resume(run, cwd=folder) as session:
            fill_until_it_pauses(session, run)
            step = newest_whole(run)
            said = session.ended(8)
        told = rf"error: the checkpoint of step {step + EVERY} could not be written for ([3-9]|[1-5]\d) s: "
        assert re.search(told, said), said
        assert "What was saved before stands." in said
        assert f"hint: make room on the disk, then lowmem-seq resume {run}" in said
        assert newest_whole(run) == step
        (disk / "filler").unlink()
        assert f"resumes after step {step} of" in resume_to_the_end(run, cwd=folder)
        assert differences(run, undisturbed) == []


@story
def test_a_stop_ends_the_wait_for_a_full_disk(undisturbed: Path, folder: Path) -> None:
    with small_disk(folder / "disk") as disk:
        run = copy_before_first_step(undisturbed, disk / "run", "checkpoint.keep=2").path
        with resume(run, cwd=folder) as session:
            fill_until_it_pauses(session, run)
            step = newest_whole(run)
            said = session.stopped(expect=8)
        assert f"error: the checkpoint of step {step + EVERY} could not be written" in said
        assert newest_whole(run) == step


@story
def test_a_run_is_not_begun_where_there_is_too_little_room(undisturbed: Path, folder: Path) -> None:
    with small_disk(folder / "disk") as disk:
        run = copy_before_first_step(undisturbed, disk / "run", "checkpoint.keep=2").path
        fill(disk, leaving=10**6)
        with resume(run, cwd=folder) as session:
            said = session.ended(8)
        assert f"error: {run} needs " in said
        assert " on the disk: 4 checkpoints of " in said
        assert "KB are free.\n\nhint: make room, or put the run elsewhere: --run-dir DIR" in said
        assert not (run / "checkpoints").exists()
        assert events(run, "session_started") == events(run, "trainer_restarted") == []


def test_the_filler_fills(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk, leaving=10**6)
        assert 0 < free_bytes(disk) <= 10**6
        fill(disk)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), (disk / "one").open("wb") as file:
            file.write(bytes(5000))
