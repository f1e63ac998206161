"""The plan: how a run is computed on this machine, chosen by what the probe measured under the cap.

The plan never changes the experiment. It is fixed in plan.json before step 1 and reused when the run is resumed;
the governor may take a smaller setting for a while, and `chosen` is what it grows back to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from lowmem_seq.errors import UsageError
from lowmem_seq.memory.environment import ALLOCATORS, VARIABLES, told_allocator
from lowmem_seq.memory.footprint import Footprint
from lowmem_seq.memory.prediction import predict_bytes

FORMAT_VERSION = 3
LSTM_PATHS = ("native", "function", "torch")
"""How LSTMs can be computed; what needs least memory first."""
NATIVE_LSTM = LSTM_PATHS[0]
"""It needs the package's compiled part (compiled.py)."""
TORCH_LSTM = LSTM_PATHS[-1]
MOST_WORKERS = 4
"""More workers than this have too small a share of a batch of 128 to be fast. A divisor of the cores is taken."""
LARGEST_AMOUNT = 2**60
LEAST_LIMIT_BYTES = 64 * 10**6
"""Of the data segment: no torch loads in less."""
MOST = {
    **{"micro_batch": 10**6, "workers": MOST_WORKERS, "threads": 1024, "recomputed_layers": 10**4, "layers": 10**4},
    **{"cap_bytes": LARGEST_AMOUNT, "ranks": 10**4, "neighbours": 10**4},
}
"""What a plan that is read may ask for: more is no plan of any machine, and would bring one to a standstill."""
SHARE_OF_AVAILABLE = 0.7
"""Cap where none is given, as a share of the memory that can be taken without swapping."""
CLEARLY_LESS = 0.92
"""Share of the present peak that a smaller setting may have: worth a change, and no mere spread."""


@dataclass(frozen=True)
class Setting:
    """What a step is computed with; it changes no experiment."""

    micro_batch: int
    """Images that a worker computes at once."""
    workers: int
    """Micro-batches that are computed side by side."""
    recomputed_layers: int = 0
    """Layers, from the first, whose activations are computed a second time instead of being kept."""


@dataclass(frozen=True)
class Means:
    """What all of a session is computed with: it is there before a process begins, or changes rounding."""

    allocator: str
    """How a process is started, one of `ALLOCATORS` (environment.py)."""
    lstm_path: str = TORCH_LSTM
    """How LSTMs are computed (models/bilstm2d.py)."""


@dataclass(frozen=True)
class Measurement:
    """What the probe saw at one setting: steps with optimizer, an evaluation batch and a save."""

    micro_batch: int
    workers: int
    recomputed_layers: int
    allocator: str
    peak_bytes: int
    """The highest resident memory of the trainer."""
    data_bytes: int
    """The highest data segment, as RLIMIT_DATA counts it; 0 where the system has none."""
    images_per_second: float
    lstm_path: str = TORCH_LSTM

    @property
    def setting(self) -> Setting:
        """What was measured."""
        return Setting(self.micro_batch, self.workers, self.recomputed_layers)

    @property
    def means(self) -> Means:
        """What it was measured with."""
        return Means(self.allocator, self.lstm_path)


@dataclass(frozen=True)
class Plan:
    """How a run is computed. Each value is in force from before the first step."""

    device: Literal["cpu", "mps", "cuda"]
    precision: Literal["fp32", "bf16"]
    micro_batch: int
    workers: int
    recomputed_layers: int
    threads: int
    """Threads of each worker's matrix products."""
    allocator: str
    chosen: Setting
    """What the planner chose; micro_batch, workers and recomputed_layers are what is in force now."""
    cap_bytes: int
    cap_source: Literal["given", "machine"]
    others_bytes: int
    """What the processes beside the trainer hold: the supervisor."""
    data_limit_bytes: int | None
    """Bound on the trainer's data segment (Linux, CPU), by which its resident memory stays under the cap."""
    predicted_peak_bytes: int
    """Of all processes of the run."""
    predicted_images_per_second: float
    lstm_path: str = TORCH_LSTM
    """Fixed for a plan: another one would change the last bits. Plans up to format version 2 knew nn.LSTM only."""
    planned_for: str = ""
    """The machine and the torch that it was measured on; empty where that is not known."""
    layers: int = 0
    """How many layers can be recomputed; 0 where that is not known."""
    footprint: Footprint = field(default_factory=Footprint)
    environment: dict[str, str] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()
    part: Literal["", "rank", "member", "host"] = ""
    """Of a cluster, for which it leaves room beside the training: in the trainer, and for the host's hub."""
    ranks: int = 1
    """Processes that compute each step together, of which this one has its part."""
    neighbours: int = 1
    """Those of them on this machine: they share its cores, and the cap that was given."""
    format_version: int = FORMAT_VERSION

    @property
    def setting(self) -> Setting:
        """What is in force now."""
        return Setting(self.micro_batch, self.workers, self.recomputed_layers)

    @property
    def means(self) -> Means:
        """What all of the run is computed with."""
        return Means(self.allocator, self.lstm_path)

    @property
    def measured(self) -> list[Measurement]:
        """What was measured with the same means."""
        return [point for point in self.measurements if point.means == self.means]

    def with_setting(self, setting: Setting) -> Plan:
        """Return the plan with another setting in force; as many cores as before are split among its workers."""
        cores = self.threads * self.workers
        return replace(self, **asdict(setting), threads=threads_each(setting.workers, cores))

    def to_json(self) -> dict[str, Any]:
        """The plan as plan.json holds it."""
        return asdict(self)


def cap_in_force(given_bytes: int | None, available_bytes: int, neighbours: int = 1) -> int:
    """Return the cap of a run: the one that was given, or a part of what can be taken without swapping.

    Args:
        given_bytes: the cap of the settings.
        available_bytes: what can be taken.
        neighbours: processes that share it evenly, this one among them.
    """
    return given_bytes or int(available_bytes * SHARE_OF_AVAILABLE / neighbours)


def threads_each(workers: int, cores: int) -> int:
    """Return the threads that each worker's matrix products may use."""
    return max(1, cores // workers)


def smaller(plan: Plan, at_any_rate: bool = False) -> Plan | None:
    """Return the plan with the next setting that needs clearly less memory, or None where nothing is left.

    That is the fastest of the measured ones; where none was measured, half the micro-batch, then, at one image, all
    layers recomputed, then one worker.

    Args:
        plan: what is in force.
        at_any_rate: whether settings count of which nobody knows what they need, as the present one can't go on.
    """
    now = plan.setting
    measured = plan.measured
    peaks = highest_peaks(measured)
    present = peaks.get(now, None if at_any_rate else _expected_bytes(plan, peaks, now))
    if present is None:  # it was reached by halving: it needs no more than any that it is smaller than
        present = min((peak for setting, peak in peaks.items() if _asks_less(now, setting)), default=None)

    def is_less(setting: Setting) -> bool:
        if at_any_rate and setting not in peaks:
            return True
        if present is None:
            return at_any_rate and _asks_less(setting, now)
        needed = peaks.get(setting, _expected_bytes(plan, peaks, setting))
        return needed is not None and needed < CLEARLY_LESS * present

    less = [point for point in measured if is_less(point.setting) and point.setting != now]
    if less:
        return plan.with_setting(max(less, key=lambda point: point.images_per_second).setting)
    return next((plan.with_setting(setting) for setting in _steps_down(now, plan.layers) if is_less(setting)), None)


def within(plan: Plan, room_bytes: int) -> Plan:
    """Return the plan with the fastest setting that was measured and holds no more, or with the least of all.

    One that holds no more already, and one of whose setting nothing is known, stay as they are.

    Args:
        plan: what is in force.
        room_bytes: what the trainer can hold.
    """
    peaks = highest_peaks(plan.measured)
    if peaks.get(plan.setting, 0) <= room_bytes:
        return plan
    fitting = [point for point in plan.measured if peaks[point.setting] <= room_bytes]
    fastest = max(fitting, key=lambda point: point.images_per_second, default=None)
    return plan.with_setting(min(peaks, key=lambda one: peaks[one]) if fastest is None else fastest.setting)


def _expected_bytes(plan: Plan, peaks: Mapping[Setting, int], setting: Setting) -> int | None:
    """Return the peak to expect at another micro-batch; None where this way to compute was never measured."""
    way = {
        one.micro_batch: peak
        for one, peak in peaks.items()
        if (one.workers, one.recomputed_layers) == (setting.workers, setting.recomputed_layers)
    }
    return predict_bytes(way, setting.micro_batch, plan.footprint.without_images_bytes) if way else None


def _steps_down(now: Setting, layers: int) -> Iterator[Setting]:
    """Yield ever smaller settings, whatever was measured."""
    while now.micro_batch > 1:
        now = replace(now, micro_batch=now.micro_batch // 2)
        yield now
    if now.recomputed_layers < layers:
        now = replace(now, recomputed_layers=layers)
        yield now
    if now.workers > 1:
        yield replace(now, workers=1)


def told_change(before: Setting, now: Setting) -> dict[str, int]:
    """Return a change of setting as the event `setting_changed` tells it."""
    return {**{f"{name}_before": value for name, value in asdict(before).items()}, **asdict(now)}


def highest_peaks(measured: Sequence[Measurement]) -> dict[Setting, int]:
    """Return the highest peak of each setting, in bytes."""
    peaks: dict[Setting, int] = {}
    for point in measured:
        peaks[point.setting] = max(point.peak_bytes, peaks.get(point.setting, 0))
    return peaks


def _asks_less(other: Setting, than: Setting) -> bool:
    """Whether a setting surely needs less memory: it asks for less in one thing, and for more in none."""
    return other != than and (
        other.micro_batch <= than.micro_batch
        and other.workers <= than.workers
        and other.recomputed_layers >= than.recomputed_layers
    )


def plan_from_json(value: dict[str, Any]) -> Plan:
    """Return the plan that plan.json holds; one of an earlier format version is told in the words of today.

    Raises:
        UsageError: a format version that this release doesn't know, or keys that are no plan's.
    """
    version = value.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise UsageError(
            f"plan.json has format version {version}; this release reads 1 to {FORMAT_VERSION}.",
            "update lowmem-seq, or delete plan.json to have it measured anew",
        )
    try:
        told = _told_by_version_1(value) if version == 1 else value
        return _checked(
            Plan(
                **{
                    **told,
                    "format_version": FORMAT_VERSION,
                    "chosen": Setting(**told["chosen"]),
                    "footprint": Footprint(**told["footprint"]),
                    "measurements": tuple(measurement_from_json(entry) for entry in told["measurements"]),
                }
            )
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"plan.json is no plan: {error}", "delete plan.json to have it measured anew") from error


def _told_by_version_1(value: dict[str, Any]) -> dict[str, Any]:
    """Return a plan of version 1, which had no recomputation, one allocator and no limit, as one of version 2."""
    if not isinstance(value["environment"], dict):
        raise ValueError(f"environment is {value['environment']!r}")
    allocator = told_allocator(value["environment"])
    new = {"recomputed_layers": 0, "allocator": allocator, "data_bytes": 0}
    return {
        **value,
        **{"recomputed_layers": 0, "allocator": allocator, "data_limit_bytes": None, "others_bytes": 0},
        "chosen": {"micro_batch": value["micro_batch"], "workers": value["workers"], "recomputed_layers": 0},
        "footprint": {},
        "measurements": [{**new, **entry} for entry in value["measurements"]],
    }


def _checked(plan: Plan) -> Plan:
    """Return a plan that was read, if nothing in it could do harm: it may come from somebody else's run folder.

    Raises:
        ValueError: a number that is none or makes no sense, an unknown device, or a variable that no planner sets.
    """
    require_counts(plan, "micro_batch", "workers", "threads", "cap_bytes", "ranks", "neighbours")
    require_counts(plan.chosen, "micro_batch", "workers")
    require_counts(plan, "recomputed_layers", "layers", least=0)
    require_counts(plan.chosen, "recomputed_layers", least=0)
    require_amounts(plan, "predicted_peak_bytes", "predicted_images_per_second", "others_bytes")
    require_amounts(plan.footprint, *(one.name for one in fields(Footprint)))
    if plan.data_limit_bytes is not None:
        require_amounts(plan, "data_limit_bytes")
        if plan.data_limit_bytes < LEAST_LIMIT_BYTES:
            raise ValueError(f"data_limit_bytes is {plan.data_limit_bytes}")
    if not isinstance(plan.planned_for, str):
        raise ValueError(f"planned_for is {plan.planned_for!r}")
    if plan.device not in ("cpu", "mps", "cuda") or plan.precision not in ("fp32", "bf16"):
        raise ValueError(f"it names {plan.device!r} and {plan.precision!r}")
    if plan.part not in ("", "rank", "member", "host"):
        raise ValueError(f"part is {plan.part!r}")
    if plan.cap_source not in ("given", "machine"):
        raise ValueError(f"cap_source is {plan.cap_source!r}")
    require_means(plan)
    if not isinstance(plan.environment, dict):
        raise ValueError(f"environment is {plan.environment!r}")
    for name, text in plan.environment.items():
        if name not in VARIABLES or not VARIABLES[name].fullmatch(text):
            raise ValueError(f"it sets {name}={text!r}")
    return plan


def measurement_from_json(value: dict[str, Any]) -> Measurement:
    """Return a measurement that was written down.

    Raises:
        TypeError: a value is missing, or one too many is there.
        ValueError: a number that is none or makes no sense.
    """
    point = Measurement(**value)
    require_counts(point, "micro_batch", "workers")
    require_counts(point, "recomputed_layers", least=0)
    require_amounts(point, "peak_bytes", "data_bytes", "images_per_second")
    require_means(point)
    return point


def require_means(holder: Plan | Measurement | Means) -> None:
    """See that the allocator and the LSTM path are known here.

    Raises:
        ValueError: one is not.
    """
    for name, known in (("allocator", tuple(ALLOCATORS)), ("lstm_path", LSTM_PATHS)):
        value = getattr(holder, name)
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{name} is {value!r}")


def require_counts(holder: object, *names: str, least: int = 1) -> None:
    """See that these values are whole numbers, and no larger than any machine has.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        count = getattr(holder, name)
        if type(count) is not int or not least <= count <= MOST[name]:  # a boolean is an int, too
            raise ValueError(f"{name} is {count!r}")


def require_amounts(holder: object, *names: str) -> None:
    """See that these values are numbers from 0, those of bytes whole ones.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        amount = getattr(holder, name)
        kinds = (int,) if name.endswith("bytes") else (int, float)
        if type(amount) not in kinds or not 0 <= amount <= LARGEST_AMOUNT:  # which no NaN is
            raise ValueError(f"{name} is {amount!r}")
