from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gemm import forward_flops, peak_flops
from benchmarks.page import ROOT
from benchmarks.peers import accelerate_loop
from benchmarks.peers.task import StepClock, Task
from benchmarks.sides import timm_arguments
from benchmarks.workloads import AS_IT_IS, WORKLOADS, missing_packages
from lowmem_seq.models import build_model, create_model, to_timm_state_dict
from lowmem_seq.runs.folder import RunFolder
from tests.benchmarks.builders import our_config
from tests.models.builders import tiny_sequencer

TIMM_TINY = {
    **{"num_classes": 3, "layers": (1, 1), "patch_sizes": (4, 2), "embed_dims": (8, 12)},
    **{"hidden_sizes": (2, 3), "mlp_ratios": (3.0, 3.0), "stem_norm": True, "drop_path_rate": 0.1},
}
needs_timm = pytest.mark.skipif(
    bool(missing_packages("plain")), reason="LOWMEM_SEQ_PEERS names no folder with timm"
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def task(folder: Path, **changes: Any) -> Task:
    """Two steps of eight images, after none."""
    return Task(
        **{
            **{"model": TIMM_TINY, "images": str(folder), "image_size": 16, "crop_padding": 2},
            **{"label_smoothing": 0.1, "effective_batch": 8, "micro_batch": 4, "precision": "fp32"},
            **{"warm_up_steps": 1, "steps": 1, "told": str(folder / "told.json"), **changes},
        }
    )


def told(folder: Path) -> list[float]:
    ends: list[float] = json.loads((folder / "told.json").read_text(encoding="utf-8"))
    return ends


def peers_python(*arguments: str) -> str:
    """Return what a Python process says that sees the peers' packages; this one must not import them."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_timm
def test_the_plain_loop_tells_when_its_steps_ended(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", draws.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(16) % 3)
    (tmp_path / "task.json").write_text(json.dumps(asdict(task(tmp_path, precision="bf16"))), encoding="utf-8")
    peers_python("-m", "benchmarks.peers.plain", str(tmp_path / "task.json"))
    first, second = told(tmp_path)
    assert first < second


@needs_timm
def test_peers_train_the_model_that_ours_trains() -> None:
    code = (
        "import json, sys; from benchmarks.peers.task import timm_model, use_peers_folder; use_peers_folder(); "
        "models = [timm_model(one) for one in json.loads(sys.argv[1])]; "
        "print(json.dumps([{key: value.shape for key, value in one.state_dict().items()} for one in models]))"
    )
    configs = [our_config(name, AS_IT_IS) for name in WORKLOADS]
    timm_s = json.loads(peers_python("-c", code, json.dumps([timm_arguments(config, 10) for config in configs])))
    for config, shapes in zip(configs, timm_s, strict=True):
        weights = to_timm_state_dict(build_model(config.model, 10))
        assert shapes == {name: list(value.shape) for name, value in weights.items()}


def test_the_bare_loop_trains_the_model_of_a_run_as_it_was_planned(run: RunFolder, tmp_path: Path) -> None:
    accelerate_loop.train(task(tmp_path, run=str(run.path)))
    first, second = told(tmp_path)
    assert first < second


def test_the_clock_writes_after_the_last_step_alone(tmp_path: Path) -> None:
    clock = StepClock(task(tmp_path, warm_up_steps=2, steps=1))
    assert [clock.step_ended(), clock.step_ended()] == [False, False]
    assert not (tmp_path / "told.json").exists()
    assert clock.step_ended()
    assert len(told(tmp_path)) == 3


def test_products_of_linear_layers_and_lstms_are_counted_by_hand() -> None:
    lstm = torch.nn.LSTM(3, 2, batch_first=True, bidirectional=True)
    assert forward_flops(lstm, torch.zeros(5, 7, 3)) == 2 * (5 * 7) * 2 * 4 * 2 * (3 + 2)
    linear = torch.nn.Linear(3, 4)
    assert forward_flops(linear, torch.zeros(5, 7, 3)) == 2 * (5 * 7) * 3 * 4


def test_flops_grow_with_the_images() -> None:
    model = tiny_sequencer()
    one = forward_flops(model, torch.zeros(1, 16, 16, 3))
    assert forward_flops(model, torch.zeros(3, 16, 16, 3)) == 3 * one


def test_sequencer2d_s_takes_what_the_paper_says() -> None:
    """8.4 GFLOPs an image, where a multiplication with its addition counts once (arXiv 2205.01972, table 1)."""
    assert forward_flops(create_model("sequencer2d_s"), torch.zeros(1, 224, 224, 3)) / 2e9 == pytest.approx(
        8.4, rel=0.02
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_products_reach_some_speed(precision: str) -> None:
    assert peak_flops(precision, sizes=(64,), seconds=0.01) > 1e6
