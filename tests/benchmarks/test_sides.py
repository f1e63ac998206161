from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.page import ROOT
from benchmarks.sides import OutOfMemoryError, rate_of, started, wait_until_it_ends, watch_steps
from benchmarks.workloads import (
    AS_IT_IS,
    ONEDNN_OFF,
    STEPS_A_TRAIN_EVENT,
    WITH_AVX2,
    WITHOUT_ONEDNN,
    WORKLOADS,
    environment_of,
)
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.child import RUN_MODULE
from lowmem_seq.training.loop import STEPS_A_TRAIN_EVENT as STEPS_OF_THE_LOOP


class Alive(subprocess.Popen[bytes]):
    """A process that has not ended."""

    def __init__(self) -> None:
        self.returncode = None

    def poll(self) -> int | None:
        return None

    def __del__(self) -> None:
        pass


class Ended(Alive):
    def poll(self) -> int | None:
        return 1


def test_steps_are_timed_from_end_to_end_without_the_saves_between() -> None:
    workload = replace(WORKLOADS["sequencer2d_s"], warm_up_steps=1, steps=2)
    assert workload.event == "checkpoint"
    ends = [(1, 100.0, 5.0), (2, 126.0, 6.0), (3, 153.0, 7.0), (4, 500.0, 9.0)]
    assert rate_of(ends, workload) == 2 * 128 / (20.0 + 20.0)
    with pytest.raises(ValueError, match=r"steps 1 and 3 are not among \[1, 2\]"):
        rate_of(ends[:2], workload)


def test_steps_of_small_are_told_by_the_events_that_every_run_writes() -> None:
    assert STEPS_A_TRAIN_EVENT == STEPS_OF_THE_LOOP
    small = WORKLOADS["small"]
    assert small.event == "train"
    assert small.warm_up_steps % STEPS_A_TRAIN_EVENT == small.steps % STEPS_A_TRAIN_EVENT == 0


def test_a_run_is_watched_until_the_last_timed_step(tmp_path: Path) -> None:
    run, workload = RunFolder(tmp_path), replace(WORKLOADS["small"], warm_up_steps=20, steps=20)
    run.events.append("session_started", step=0)
    for step in (20, 40):
        run.events.append("train", step=step)
    seen = watch_steps(run, workload, Alive(), tmp_path)
    assert [(step, saving) for step, _, saving in seen] == [(20, 0.0), (40, 0.0)]


def test_a_run_that_ends_before_is_told_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "said.txt").write_text("error: the cap is too small", encoding="utf-8")
    with pytest.raises(RuntimeError, match="ended before step 100: error: the cap is too small"):
        watch_steps(RunFolder(tmp_path), WORKLOADS["small"], Ended(), tmp_path)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ('raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried 9 bytes")', OutOfMemoryError),
        ("raise ValueError('a defect')", RuntimeError),
    ],
)
def test_a_peer_that_fails_is_told_from_one_that_takes_too_much_memory(
    code: str, kind: type[Exception], tmp_path: Path
) -> None:
    with (
        started([sys.executable, "-c", code], AS_IT_IS, tmp_path) as process,
        pytest.raises(RuntimeError, match="ended with code 1") as caught,
    ):
        wait_until_it_ends(process, tmp_path)
    assert caught.type is kind


def test_what_is_started_has_ended_after_the_block(tmp_path: Path) -> None:
    with started([sys.executable, "-c", "import time; time.sleep(60)"], AS_IT_IS, tmp_path) as process:
        pass
    assert process.poll() is not None


def test_sides_see_the_processor_and_nothing_that_this_shell_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MALLOC_TRIM_THRESHOLD_", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.setenv(name, "1")
    plain, avx2 = environment_of(AS_IT_IS), environment_of(WITH_AVX2)
    assert not {name for name in plain if name.startswith(("OMP_", "MALLOC_", "ONEDNN_", "ATEN_"))}
    assert (avx2["ATEN_CPU_CAPABILITY"], avx2["ONEDNN_MAX_CPU_ISA"]) == ("avx2", "AVX2")
    assert plain["LOWMEM_SEQ_CACHE"] != avx2["LOWMEM_SEQ_CACHE"]
    assert str(WITHOUT_ONEDNN) not in plain["PYTHONPATH"]
    assert str(ROOT) in plain["PYTHONPATH"]


@pytest.mark.parametrize("processor", [AS_IT_IS, ONEDNN_OFF])
def test_onednn_is_off_in_trainers_too_and_torch_is_imported_by_those_alone_that_want_it(
    processor: str, tmp_path: Path
) -> None:
    (tmp_path / "trains.py").write_text(
        "import sys; before = 'torch' in sys.modules; import torch; print(before, torch.backends.mkldnn.enabled)",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN_MODULE, str(tmp_path), "trains", ""],
        env=environment_of(processor),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.stdout.split() == ["False", str(processor == AS_IT_IS)], done.stderr
