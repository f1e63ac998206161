"""What tests of several rooms are made of: a tiny config, a plan, a run folder, a process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lowmem_seq.channel import Channel
from lowmem_seq.config import RunConfig, load_preset, override, validate
from lowmem_seq.data.pack import Pack
from lowmem_seq.files import write_json
from lowmem_seq.memory.plan import Measurement, Plan, Setting
from lowmem_seq.runs.folder import RunFolder, create_run

if TYPE_CHECKING:  # torch
    from lowmem_seq.training.loop import Training

SECONDS_FOR_A_PROCESS = 60.0
NEEDS_LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need rights of their own on Windows")


class Heard(Channel):
    """A channel that keeps what is said."""

    def __init__(self) -> None:
        super().__init__(listen=False)
        self.said: list[dict[str, Any]] = []

    def say(self, message: dict[str, Any]) -> None:
        self.said.append(message)


def tiny_config(*assignments: str) -> RunConfig:
    """The preset `tiny` at 16x16, with these `a.b=value` laid over it."""
    settings = load_preset("tiny")
    for assignment in ("data.image_size=16", "machine.threads=1", *assignments):
        override(settings, assignment)
    return validate(settings)


def tiny_plan(micro_batch: int = 8) -> Plan:
    """A plan as the planner would write it, with one measurement."""
    return Plan(
        device="cpu",
        precision="fp32",
        micro_batch=micro_batch,
        workers=1,
        recomputed_layers=0,
        threads=1,
        allocator="default",
        chosen=Setting(micro_batch, 1),
        cap_bytes=2 * 10**9,
        cap_source="given",
        others_bytes=10**8,
        data_limit_bytes=None,
        predicted_peak_bytes=4 * 10**8,
        predicted_images_per_second=100.0,
        environment={"OMP_NUM_THREADS": "1"},
        measurements=(
            Measurement(
                micro_batch=micro_batch,
                workers=1,
                recomputed_layers=0,
                allocator="default",
                peak_bytes=3 * 10**8,
                data_bytes=4 * 10**8,
                images_per_second=100.0,
            ),
        ),
    )


def make_run(path: Path, pack: Pack, config: RunConfig) -> RunFolder:
    """A run folder that is ready for a trainer: its data and its plan are there, and no step is done."""
    run = create_run(path, config)
    data = {"format_version": 1, "source": "test", "pack": str(pack.folder), "fingerprint": pack.fingerprint}
    write_json(run.data_file, data)
    write_json(run.plan_file, tiny_plan().to_json())
    return run


def train_here(run: RunFolder) -> Training:
    """Train a run to its end in this process; return the training as it stands then."""
    from lowmem_seq.training.session import open_training, read_plan

    training = open_training(run, read_plan(run), Channel(listen=False))
    assert training.go()
    return training


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def names(folder: Path) -> list[str]:
    """The names in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def start_python(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a Python process that runs `code`, with pipes to all of its ends."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1", **environment},
    )


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line that the process prints, without its end; one that stays silent is ended."""
    assert process.stdout is not None
    patience = threading.Timer(SECONDS_FOR_A_PROCESS, process.kill)
    patience.start()
    try:
        return process.stdout.readline().rstrip("\n")
    finally:
        patience.cancel()


def end(process: subprocess.Popen[str], last_words: str = "") -> tuple[int, str, str]:
    """Say the last words, close the input, and return exit code, output and errors of the process."""
    try:
        out, err = process.communicate(last_words, timeout=SECONDS_FOR_A_PROCESS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err
