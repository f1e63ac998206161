"""What was measured: gathered over the processes of one planning, and remembered for the next one.

<cache>/plans/<key>.json holds measurements, never choices: another cap asks the same figures other questions. The
key stands for the machine, the versions, the model and whatever else a measurement depends on. A file that is
damaged or of another release is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lowmem_seq.data.cache import cache_folder
from lowmem_seq.files import make_folder, read_json, write_json
from lowmem_seq.memory.footprint import Facts
from lowmem_seq.memory.plan import (
    TORCH_LSTM,
    Means,
    Measurement,
    Setting,
    measurement_from_json,
    require_amounts,
    require_counts,
    require_means,
)
from lowmem_seq.memory.seen import allowed_bytes

FORMAT_VERSION = 2
DOES_NOT_FIT = 75
"""Exit code of a probing process that met its limit: what it was about to measure does not fit."""
SAME = 0.1
"""Share by which two budgets may differ for a search that ran out of time to count for both."""
HARDLY_MORE_BYTES = 5 * 10**6
"""What did not fit is not tried again with a budget that is larger by this: supervisors differ by as much. A cap
that is named is larger by more."""
MOST_FACTS = {"layers": 10**4, "image_size": 1024}
MOST_WRITTEN = 25
"""Of each kind, the newest: what is remembered goes to a child on its command line, which Windows bounds at 32,767
characters, some 140 measurements; a planning adds some thirty."""
MOST_REMEMBERED = 1000
"""Measurements that a file may hold; a planning makes some thirty."""


@dataclass(frozen=True)
class Look:
    """Something to measure."""

    setting: Setting
    means: Means
    again: int = 0
    """How many measurements of the same are wanted before this one."""
    fresh: bool = False
    """In a process that has measured nothing before."""


@dataclass(frozen=True)
class Request:
    """What a probing process is asked for."""

    budget_bytes: int
    """What it may hold; it keeps to it."""
    allocators: tuple[str, ...]
    """Those that the planner may choose from."""
    allocator: str
    """The one that this process was started with."""
    seconds: float
    """How long it may take, its start included."""
    lstm_path: str = TORCH_LSTM
    """Of what is measured alone."""
    only: Setting | None = None
    """Measure this one alone, and without a limit: nothing fits, and a cap that would do is to be named."""


@dataclass(frozen=True)
class Unfit:
    """A setting whose process met its limit with it, and had measured nothing before."""

    setting: Setting
    means: Means
    budget_bytes: int
    """What it was allowed to hold."""


@dataclass(frozen=True)
class GivenUp:
    """A search that time ended."""

    budget_bytes: int
    comfortable_bytes: int
    """Budgets from here on would have left its choice as it was: memory was not what held it back."""


@dataclass
class Knowledge:
    """What is known of one model on one machine."""

    facts: Facts | None = None
    measured: list[Measurement] = field(default_factory=list)
    verified: list[Measurement] = field(default_factory=list)
    """Measured first in their process, before anything could leave traces in it; the peaks are a trainer's."""
    unfit: list[Unfit] = field(default_factory=list)
    given_up: list[GivenUp] = field(default_factory=list)
    evaluated_images_per_second: float = 0.0
    save_seconds: float = 0.0
    """How long a checkpoint takes to be saved."""
    save_bytes: int | None = None
    """What that takes above what is held; None where nothing was saved yet."""

    def points(self) -> list[Measurement]:
        """Return one measurement for each setting and means: the best speed, and the peak that counts.

        That is the one of a fresh process where there is one, and the highest otherwise.
        """
        keys = dict.fromkeys((point.setting, point.means) for point in (*self.measured, *self.verified))
        return [point for key in keys if (point := self._point(*key)) is not None]

    def _point(self, setting: Setting, means: Means) -> Measurement | None:
        def of(points: list[Measurement]) -> list[Measurement]:
            return [point for point in points if (point.setting, point.means) == (setting, means)]

        alone, every = of(self.verified), of([*self.measured, *self.verified])
        if not every:
            return None
        return Measurement(
            **asdict(setting),
            **asdict(means),
            peak_bytes=max(point.peak_bytes for point in alone or every),
            data_bytes=max(point.data_bytes for point in alone or every),
            images_per_second=max(point.images_per_second for point in every),
        )

    def answer(self, look: Look, budget_bytes: int) -> tuple[bool, Measurement | None]:
        """Return whether a look was taken, and what it gave: None where the setting did not fit.

        A peak that is too high counts only from a fresh process: others hold some of what came before.
        """
        measured = self.verified if look.fresh else [*self.measured, *self.verified]
        like = [point for point in measured if (point.setting, point.means) == (look.setting, look.means)]
        if len(like) > look.again:
            point = self._point(look.setting, look.means)
            assert point is not None
            if point.peak_bytes <= allowed_bytes(budget_bytes) or any(one in self.verified for one in like):
                return True, point
        return self.failed(look, budget_bytes), None

    def failed(self, what: Look | Measurement, budget_bytes: int) -> bool:
        """Whether a process that computed so met its limit, with as much to hold or more."""
        return any(
            (one.setting, one.means) == (what.setting, what.means)
            and one.budget_bytes + HARDLY_MORE_BYTES >= budget_bytes
            for one in self.unfit
        )

    def gave_up(self, budget_bytes: int) -> bool:
        """Whether a search under such a budget was ended by time: another one would hardly get further."""
        return any(
            abs(one.budget_bytes - budget_bytes) <= SAME * budget_bytes or budget_bytes >= one.comfortable_bytes
            for one in self.given_up
        )

    def to_json(self) -> dict[str, Any]:
        """What is known, as a file holds it."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}


def knowledge_from_json(value: Any) -> Knowledge:
    """Return what a file holds.

    Raises:
        ValueError, TypeError, KeyError: it is of another release, or no such file.
    """
    if value["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {value['format_version']}")
    lists = ("measured", "verified", "unfit", "given_up")
    if any(not isinstance(value[name], list) or len(value[name]) > MOST_REMEMBERED for name in lists):
        raise ValueError("a list is none, or too long")
    known = Knowledge(
        facts=None if value["facts"] is None else _checked_facts(Facts(**value["facts"])),
        measured=[measurement_from_json(entry) for entry in value["measured"]],
        verified=[measurement_from_json(entry) for entry in value["verified"]],
        unfit=[_checked_unfit(entry) for entry in value["unfit"]],
        given_up=[GivenUp(**entry) for entry in value["given_up"]],
        evaluated_images_per_second=value["evaluated_images_per_second"],
        save_seconds=value["save_seconds"],
        save_bytes=value["save_bytes"],
    )
    require_amounts(known, "evaluated_images_per_second", "save_seconds")
    if known.save_bytes is not None:
        require_amounts(known, "save_bytes")
    for one in known.given_up:
        require_amounts(one, "budget_bytes", "comfortable_bytes")
    return known


def _checked_facts(facts: Facts) -> Facts:
    if facts.device not in ("cpu", "mps", "cuda") or facts.precision not in ("fp32", "bf16"):
        raise ValueError("facts of no device")
    counts = [one.name for one in fields(Facts) if one.name not in ("device", "precision")]
    for name in counts:
        count = getattr(facts, name)
        if type(count) is not int or not 0 <= count <= MOST_FACTS.get(name, 2**63 - 1):
            raise ValueError(f"{name} is {count!r}")
    return facts


def _checked_unfit(entry: dict[str, Any]) -> Unfit:
    one = Unfit(**{**entry, "setting": Setting(**entry["setting"]), "means": Means(**entry["means"])})
    require_counts(one.setting, "micro_batch", "workers")
    require_counts(one.setting, "recomputed_layers", least=0)
    require_amounts(one, "budget_bytes")
    require_means(one.means)
    return one


def key_of(subject: Mapping[str, Any]) -> str:
    """Return the name under which measurements of a subject are kept: a hash of all that they depend on."""
    return hashlib.sha256(json.dumps(subject, sort_keys=True, default=str).encode()).hexdigest()[:32]


def file_of(key: str) -> Path:
    """Return where measurements of this name are kept; they may not be there."""
    return cache_folder() / "plans" / f"{key}.json"


def recall(key: str) -> Knowledge:
    """Return what is remembered under this name; nothing known where there is no sound file."""
    try:
        return knowledge_from_json(read_json(file_of(key)))
    except (OSError, ValueError, TypeError, KeyError):
        return Knowledge()


def remember(key: str, known: Knowledge) -> None:
    """Write down what is known; a disk that refuses is no reason not to train."""
    newest = {
        name: value[-MOST_WRITTEN:] if isinstance(value, list) else value for name, value in known.to_json().items()
    }
    with contextlib.suppress(OSError):
        make_folder(file_of(key).parent)
        write_json(file_of(key), newest)
