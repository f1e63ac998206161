"""One measurement of one side of benchmarks/throughput.py: ours, or a peer, in processes of its own.

Both sides are timed in the same way: from the end of the last optimizer step of a warm-up to the end of the last
step, with all that lies between (reading, decoding, augmentation, forward, backward, clipping, update), and without
start-up, evaluation and saves. What a side holds is the RSS summed over its processes, from its start to that last
step, looked at from outside so seldom that it disturbs neither.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.kills import PROGRAM
from benchmarks.layers import PROCESSORS
from benchmarks.outside import Sampler
from benchmarks.page import ROOT
from benchmarks.peers.task import Task
from benchmarks.workloads import AS_PLANNED, PEERS, Workload, environment_of
from lowmem_seq.config import RunConfig, Sequencer2DConfig
from lowmem_seq.files import make_folder, read_json, write_json
from lowmem_seq.memory.out_of_memory import tells_of_memory
from lowmem_seq.runs.folder import RunFolder

LOOK_SECONDS = 0.05
POLL_SECONDS = 0.01
LONGEST_SECONDS = 3600.0
SECONDS_TO_STOP = 120.0
NEVER = 10**6
Ends = list[tuple[int, float, float]]
"""Of some optimizer steps: their number, when their event was there, and how long a save before it took."""


@contextlib.contextmanager
def started(
    command: Sequence[str], processor: str, place: Path, more: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command whose words go to `place`/said.txt; it has ended when the block has."""
    environment = {**environment_of(processor), **(more or {})}
    with (place / "said.txt").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SECONDS_TO_STOP)
            if process.poll() is None:
                process.kill()
                process.wait()


class OutOfMemoryError(RuntimeError):
    """A side took more memory than the machine has."""


def wait_until_it_ends(process: subprocess.Popen[bytes], place: Path) -> None:
    """Return when a process has ended well.

    Raises:
        OutOfMemoryError: it was killed, or said that there is no memory left.
        RuntimeError: it ended otherwise.
    """
    code = process.wait(LONGEST_SECONDS)
    if code != 0:
        words = (place / "said.txt").read_text(encoding="utf-8", errors="replace")
        wanting = code == -signal.SIGKILL or tells_of_memory(words, limited=False)
        kind = OutOfMemoryError if wanting else RuntimeError
        raise kind(f"{place} ended with code {code}: {words[-1500:]}")


def our_command(workload: Workload, processor: str, data: str, run: Path) -> list[str]:
    """Return the command line of ours: the preset's recipe, of the augmentation the crop and the flip alone."""
    as_peers = ("model.final_pointwise=false", "recipe.evaluate_every_epochs=1000000")  # timm has no such layer
    plainly = tuple(f"augmentation.{name}=0" for name in ("colour", "erase", "mixup", "cutmix"))
    words = [*PROGRAM, "train", workload.preset, "--data", data, "--max-ram", workload.cap]
    words += ["--effective-batch", str(workload.effective_batch), "--precision", PROCESSORS[processor].precision]
    words += ["--epochs", "100000", "--run-dir", str(run), "--quiet"]
    words += ["--checkpoint-every", f"{NEVER if workload.event == 'train' else 1}steps"]
    return [*words, *(word for one in (*as_peers, *plainly) for word in ("--set", one))]


def measure_ours(workload: Workload, processor: str, data: str, place: Path) -> dict[str, Any]:
    """Train as a user does until the steps are done; the run stays in `place`/run until the next one."""
    shutil.rmtree(place, ignore_errors=True)
    make_folder(place)
    run = RunFolder(place / "run")
    with (
        started(our_command(workload, processor, data, run.path), processor, place) as process,
        Sampler(process.pid, sys.maxsize, period_seconds=LOOK_SECONDS) as sampler,
    ):
        seen = watch_steps(run, workload, process, place)
    events = list(run.events)
    told = [
        (event["step"], event["time_unix_seconds"], event.get("seconds", 0.0))
        for event in events
        if event["event"] == workload.event
    ]
    plan = next(event for event in events if event["event"] == "planned")
    if any(event["event"] in ("trainer_restarted", "setting_changed") for event in events):
        raise RuntimeError(f"the run in {place} did not go through as it was planned")
    return {
        "images_per_second": rate_of(seen, workload),
        "told_images_per_second": rate_of(told, workload),
        **held(sampler),
        **{key: plan[key] for key in ("precision", "micro_batch", "workers", "recomputed_layers")},
        **{key: plan[key] for key in ("allocator", "lstm_path", "cap_bytes")},
    }


def watch_steps(run: RunFolder, workload: Workload, process: subprocess.Popen[bytes], place: Path) -> Ends:
    """Return when the ends of steps were told, by this process's clock, as soon as the last one was.

    Raises:
        RuntimeError: the run ended before.
    """
    seen: Ends = []
    last, size, until = workload.warm_up_steps + workload.steps, 0, time.monotonic() + LONGEST_SECONDS
    while not seen or seen[-1][0] < last:
        time.sleep(POLL_SECONDS)
        if process.poll() is not None or time.monotonic() > until:
            words = (place / "said.txt").read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"the run in {place} ended before step {last}: {words[-1500:]}")
        now_size = run.events.path.stat().st_size if run.events.path.exists() else 0
        if now_size == size:
            continue
        now, size = time.monotonic(), now_size
        events = [event for event in run.events if event["event"] == workload.event]
        seen += [(event["step"], now, event.get("seconds", 0.0)) for event in events[len(seen) :]]
    return seen


def rate_of(ends: Ends, workload: Workload) -> float:
    """Return the images a second of the timed steps, without the time of the saves.

    Raises:
        ValueError: nothing tells when those steps ended.
    """
    first, last = workload.warm_up_steps, workload.warm_up_steps + workload.steps
    at = {step: when for step, when, _ in ends}
    if not {first, last} <= at.keys():
        raise ValueError(f"steps {first} and {last} are not among {sorted(at)}")
    saving = sum(seconds for step, _, seconds in ends if first < step <= last)
    return workload.steps * workload.effective_batch / (at[last] - at[first] - saving)


def held(sampler: Sampler) -> dict[str, int]:
    """Return the highest sum that was seen, and what the largest process held then."""
    seen = sampler.seen()
    return {"peak_bytes": seen.highest_bytes, "largest_bytes": max(seen.highest_held.values(), default=0)}


@dataclass(frozen=True)
class Choice:
    """How a peer computes."""

    precision: str
    micro_batch: int


def measure_peer(
    peer: str,
    workload: Workload,
    processor: str,
    choice: Choice,
    run: RunFolder,
    images: Path,
    place: Path,
    tried: bool = False,
) -> dict[str, Any]:
    """Train with a peer; return its speed, and what it held.

    Args:
        peer: its name.
        workload: what it trains.
        processor: on which.
        choice: how it computes.
        run: one of ours: the same model, and the plan that the loop with Accelerate follows.
        images: as the peers read them.
        place: for what it writes.
        tried: only one short step after a shorter warm-up, to choose by.
    """
    shutil.rmtree(place, ignore_errors=True)
    make_folder(place)
    config = run.config
    task = Task(
        model=timm_arguments(config, class_count(run)),
        images=str(images),
        image_size=config.data.image_size,
        crop_padding=config.augmentation.crop_padding,
        label_smoothing=config.recipe.label_smoothing,
        effective_batch=workload.tried_batch if tried else workload.effective_batch,
        micro_batch=choice.micro_batch,
        precision=choice.precision,
        warm_up_steps=max(1, workload.warm_up_steps // 4) if tried else workload.warm_up_steps,
        steps=max(1, workload.steps // 4) if tried else workload.steps,
        told=str(place / "told.json"),
        run=str(run.path),
    )
    write_json(place / "task.json", asdict(task))
    command = [sys.executable, "-m", f"benchmarks.peers.{PEERS[peer].module}", str(place / "task.json")]
    planned = (run.read_json(run.plan_file) or {}).get("environment", {}) if peer in AS_PLANNED else {}
    with (
        started(command, processor, place, planned) as process,
        Sampler(process.pid, sys.maxsize, period_seconds=LOOK_SECONDS) as sampler,
    ):
        wait_until_it_ends(process, place)
    ends: list[float] = read_json(place / "told.json")
    seconds = ends[-1] - ends[task.warm_up_steps - 1]
    return {
        "images_per_second": task.steps * task.effective_batch / seconds,
        **held(sampler),
        **asdict(choice),
        "accumulation": task.accumulation,
    }


def timm_arguments(config: RunConfig, classes: int) -> dict[str, Any]:
    """Return timm's Sequencer2d of the same sizes as ours, by its arguments."""
    model = config.model
    assert isinstance(model, Sequencer2DConfig)
    assert not model.final_pointwise
    return {
        "num_classes": classes,
        "layers": model.layers,
        "patch_sizes": model.patch_sizes,
        "embed_dims": model.widths,
        "hidden_sizes": model.lstm_widths,
        "mlp_ratios": [model.mlp_ratio] * len(model.layers),
        "stem_norm": model.embed_norm,
        "drop_path_rate": model.drop_path,
        "drop_rate": model.dropout,
    }


def class_count(run: RunFolder) -> int:
    """Return the classes of a run that has started."""
    return next(len(event["classes"]) for event in run.events if event["event"] == "session_started")


def measure_limit(processor: str, run: RunFolder) -> dict[str, Any]:
    """Return the most that matrix products reach on a processor now, by precision, and the FLOPs of an image."""
    precisions = sorted({"fp32", PROCESSORS[processor].precision})
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.gemm", str(run.config_file), str(class_count(run)), *precisions],
        env=environment_of(processor),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        encoding="utf-8",
    ).stdout
    found: dict[str, Any] = json.loads(told)
    return found
