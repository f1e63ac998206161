"""The plan: how a run is computed on this machine, chosen by what the probe measured under the cap.

The plan never changes the experiment. It is fixed in plan.json before step 1 and reused when the run is resumed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import psutil

from lowmem_seq.errors import CapTooSmallError, UsageError
from lowmem_seq.memory.environment import VARIABLES
from lowmem_seq.units import format_bytes

FORMAT_VERSION = 1
MARGIN = 0.95
"""Share of the cap that a prediction may fill: probes repeat within 2 to 3 %, the rest is for what they missed."""
MOST_WORKERS = 4
"""More workers than this have too small a share of a batch of 128 to be fast. A divisor of the cores is taken."""
LARGEST_AMOUNT = 2**63 - 1
MOST = {"micro_batch": 10**6, "workers": MOST_WORKERS, "threads": 1024, "cap_bytes": LARGEST_AMOUNT}
"""What a plan that is read may ask for: more is no plan of any machine, and would bring one to a standstill."""
SHARE_OF_AVAILABLE = 0.7
"""Cap where none is given, as a share of the memory that can be taken without swapping."""


@dataclass(frozen=True)
class Measurement:
    """What the probe saw at one micro-batch and number of workers: steps with optimizer and evaluation."""

    micro_batch: int
    workers: int
    peak_bytes: int
    images_per_second: float


@dataclass(frozen=True)
class Plan:
    """How a run is computed. Each value is in force from before the first step."""

    device: Literal["cpu", "mps", "cuda"]
    precision: Literal["fp32", "bf16"]
    micro_batch: int
    """Images that a worker computes at once."""
    workers: int
    """Micro-batches that are computed side by side."""
    threads: int
    """Threads of each worker's matrix products."""
    cap_bytes: int
    cap_source: Literal["given", "machine"]
    predicted_peak_bytes: int
    predicted_images_per_second: float
    environment: dict[str, str] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """The plan as plan.json holds it."""
        return asdict(self)


def plan_from_json(value: dict[str, Any]) -> Plan:
    """Return the plan that plan.json holds.

    Raises:
        UsageError: a format version that this release doesn't know, or keys that are no plan's.
    """
    version = value.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise UsageError(
            f"plan.json has format version {version}; this release reads {FORMAT_VERSION}.",
            "update lowmem-seq, or delete plan.json to have it measured anew",
        )
    try:
        measurements = tuple(Measurement(**entry) for entry in value["measurements"])
        return _checked(Plan(**{**value, "measurements": measurements}))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"plan.json is no plan: {error}", "delete plan.json to have it measured anew") from error


def _checked(plan: Plan) -> Plan:
    """Return a plan that was read, if nothing in it could do harm: it may come from somebody else's run folder.

    Raises:
        ValueError: a number that is none or makes no sense, an unknown device, or a variable that no planner sets.
    """
    _require_counts(plan, "micro_batch", "workers", "threads", "cap_bytes")
    _require_amounts(plan, "predicted_peak_bytes", "predicted_images_per_second")
    for measured in plan.measurements:
        _require_counts(measured, "micro_batch", "workers")
        _require_amounts(measured, "peak_bytes", "images_per_second")
    if plan.device not in ("cpu", "mps", "cuda") or plan.precision not in ("fp32", "bf16"):
        raise ValueError(f"it names {plan.device!r} and {plan.precision!r}")
    if plan.cap_source not in ("given", "machine"):
        raise ValueError(f"cap_source is {plan.cap_source!r}")
    if not isinstance(plan.environment, dict):
        raise ValueError(f"environment is {plan.environment!r}")
    for name, text in plan.environment.items():
        if name not in VARIABLES or not VARIABLES[name].fullmatch(text):
            raise ValueError(f"it sets {name}={text!r}")
    return plan


def _require_counts(holder: Plan | Measurement, *names: str) -> None:
    for name in names:
        count = getattr(holder, name)
        if type(count) is not int or not 1 <= count <= MOST[name]:  # a boolean is an int, too
            raise ValueError(f"{name} is {count!r}")


def _require_amounts(holder: Plan | Measurement, *names: str) -> None:
    for name in names:
        amount = getattr(holder, name)
        kinds = (int,) if name.endswith("bytes") else (int, float)
        if type(amount) not in kinds or not 0 <= amount <= LARGEST_AMOUNT:  # which no NaN is
            raise ValueError(f"{name} is {amount!r}")


def usable_cores(wanted: int | None) -> int:
    """Return how many cores to use: as given, or all physical ones."""
    return wanted or psutil.cpu_count(logical=False) or os.cpu_count() or 1


def worker_counts(cores: int, effective_batch: int, wanted: int | None, on_cpu: bool) -> list[int]:
    """Return the numbers of workers to try, most first: one a core (up to MOST_WORKERS), and one alone.

    Args:
        cores: how many may be used.
        effective_batch: images in a step.
        wanted: the micro-batch that the user gave; no more workers than a step has of them.
        on_cpu: a GPU is kept busy by one worker.
    """
    micro_batches = effective_batch if wanted is None else math.ceil(effective_batch / wanted)
    fitting = [count for count in range(1, MOST_WORKERS + 1) if cores % count == 0 and count <= micro_batches]
    most = max(fitting) if on_cpu else 1
    return [most, 1] if most > 1 else [1]


def threads_each(workers: int, cores: int) -> int:
    """Return the threads that each worker's matrix products may use."""
    return max(1, cores // workers)


def candidate_sizes(effective_batch: int, workers: int, wanted: int | None, smallest: int) -> list[int]:
    """Return the micro-batches to probe, smallest first.

    Either the wanted one, or powers of two from `smallest` up to the share of the batch that falls to one worker.
    """
    if wanted is not None:
        return [min(wanted, effective_batch)]
    share = math.ceil(effective_batch / workers)
    sizes = [2**power for power in range(share.bit_length()) if 2**power < share]
    return [*(size for size in sizes if size >= smallest), share]


def smaller_sizes(size: int) -> list[int]:
    """Return the halves of a micro-batch, largest first, down to one."""
    halves = []
    while size > 1:
        size //= 2
        halves.append(size)
    return halves


def predict_peak(measured: Sequence[Measurement], micro_batch: int, floor_bytes: int) -> int:
    """Return the peak bytes at another micro-batch: affine through the two nearest sizes that were measured.

    With a single measurement all above `floor_bytes`, what is held for no images at all, is taken to grow with the
    micro-batch.
    """
    ordered = sorted(measured, key=lambda point: abs(point.micro_batch - micro_batch))
    near = (ordered[0].micro_batch, ordered[0].peak_bytes)
    far = (ordered[1].micro_batch, ordered[1].peak_bytes) if len(ordered) > 1 else (0, floor_bytes)
    slope = (far[1] - near[1]) / (far[0] - near[0])
    return round(near[1] + max(0.0, slope) * (micro_batch - near[0]))


def choose(measured: Sequence[Measurement], cap_bytes: int, others_bytes: int) -> Measurement:
    """Return the fastest of the measured micro-batches that fits.

    Args:
        measured: what the probe saw.
        cap_bytes: what all processes of the run may hold.
        others_bytes: what those beside the trainer hold: the supervisor.

    Raises:
        CapTooSmallError: none fits.
    """
    fitting = [point for point in measured if point.peak_bytes <= (cap_bytes - others_bytes) * MARGIN]
    if not fitting:
        least = min(measured, key=lambda point: point.peak_bytes)
        needed = math.ceil(least.peak_bytes / MARGIN) + others_bytes
        raise CapTooSmallError(
            f"the cap of {format_bytes(cap_bytes)} is too small for this model: micro-batch {least.micro_batch} "
            f"holds {format_bytes(least.peak_bytes)} in the trainer.",
            f"the smallest cap that would do is about --max-ram {-(-needed // 10**7) * 10}MB",
        )
    return max(fitting, key=lambda point: point.images_per_second)
