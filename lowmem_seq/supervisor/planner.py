"""How the plan is made: disposable children measure the run under the cap, and the fastest that fits is taken.

What they found is remembered. A child that met its limit says by its end that a setting does not fit; the next one
goes on with the rest. Planner and trainer never live at once.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from lowmem_seq.cluster.membership import read_membership
from lowmem_seq.cluster.rank import read_rank
from lowmem_seq.cluster.room import FP32, hub_bytes
from lowmem_seq.config import RunConfig
from lowmem_seq.errors import CapTooSmallError
from lowmem_seq.files import write_json
from lowmem_seq.memory.cores import usable_cores
from lowmem_seq.memory.environment import (
    mps_environment,
    mps_environment_as_usual,
    training_environment,
    usable_allocators,
)
from lowmem_seq.memory.footprint import Facts, make_footprint
from lowmem_seq.memory.limit import data_limit_bytes
from lowmem_seq.memory.out_of_memory import died_for_memory
from lowmem_seq.memory.plan import LARGEST_AMOUNT, Means, Measurement, Plan, Setting, cap_in_force, threads_each
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.memory.remembered import DOES_NOT_FIT, GivenUp, Knowledge, Request, Unfit, key_of, recall, remember
from lowmem_seq.memory.search import fitting, next_look
from lowmem_seq.memory.seen import COMFORTABLE, SHARE_OF_BUDGET, allowed_bytes
from lowmem_seq.memory.space import SMALL_IMAGE, lstm_paths, make_space
from lowmem_seq.memory.tree import ProcessTree
from lowmem_seq.runs.environment import describe_environment, planned_for
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.child import Child, Message
from lowmem_seq.supervisor.screen import Screen
from lowmem_seq.supervisor.signals import StopSignals
from lowmem_seq.supervisor.subject import part_of, subject_of
from lowmem_seq.units import format_bytes

SECONDS_FOR_SMALL_IMAGES = 20.0
SECONDS_FOR_LARGE_IMAGES = 60.0
SHORTEST_CHILD_SECONDS = (4.0, 10.0)
"""A child that has less time left than this would hardly measure anything, for small and for large images."""
CHILD_SAMPLE_SECONDS = 0.01
"""How often a child is looked at: while it loads, nothing but this look keeps it under the cap to the MB."""
CHILD_MACHINE_SECONDS = 0.02
"""How often the machine is looked at while a child measures: 106 us each (docs/results.md)."""
CHILD_SEARCH_SECONDS = 0.25
"""How often it is searched for processes of its own: that takes milliseconds on Windows, where there is one."""
SUPERVISOR_GROWTH_BYTES = 4 * 10**6
"""What the supervisor may come to hold beside what it holds when it plans: its display, and what it reads later."""
REPEATS_WITHIN = 0.025
"""Share by which a peak differs from one measurement to the next; a cap that is named allows for it."""
ROUND_BYTES = 10**7
"""Caps are named in steps of 10 MB."""


@dataclass(frozen=True)
class Planned:
    """A plan, and what is known of the run."""

    plan: Plan
    known: Knowledge


class Planner:
    """Makes the plan of one run.

    Args:
        run: its folder; data.json is there.
        config: its settings.
        screen: is told what is measured.
        stops: end the child that is measuring.
    """

    def __init__(self, run: RunFolder, config: RunConfig, screen: Screen, stops: StopSignals) -> None:
        self._run, self._config, self._screen, self._stops = run, config, screen, stops
        self._reader = system_reader()
        given = config.machine.max_ram_bytes
        self._cap_source: Any = "machine" if given is None else "given"
        self._membership, self._rank = read_membership(run), read_rank(run)
        neighbours = 1 if self._rank is None else self._rank.local_of
        self._machine = self._reader.machine()
        self._cap_bytes = cap_in_force(given, self._machine.available_bytes, neighbours)
        self._own_bytes = self._reader.held_bytes(os.getpid()) + SUPERVISOR_GROWTH_BYTES
        self._short_at_bytes = LARGEST_AMOUNT
        """What a child held when the machine ran short."""
        self._set_others(None)
        self._cores = usable_cores(config.machine.threads, config.machine.background)
        self._allocators = usable_allocators()
        small = config.data.image_size <= SMALL_IMAGE
        self._deadline = time.monotonic() + (SECONDS_FOR_SMALL_IMAGES if small else SECONDS_FOR_LARGE_IMAGES)
        self._shortest_child_seconds = SHORTEST_CHILD_SECONDS[0 if small else 1]
        self._known = Knowledge()
        self._machine_looked_at = float("-inf")
        self._machine_was_short = False

    def _set_others(self, facts: Facts | None) -> None:
        """Set what the processes beside the trainer hold, as far as it is known; the rest is the trainer's."""
        has_momentum = self._config.cluster.outer == "momentum"
        hosts = self._membership is not None and self._membership.hosts
        hub = hub_bytes(facts.weights_bytes // FP32, has_momentum) if hosts and facts is not None else 0
        self._others_bytes = self._own_bytes + hub
        self._room_bytes = max(1, self._cap_bytes - self._others_bytes)
        self._budget_bytes = min(self._room_bytes, self._short_at_bytes)

    def make(self, fresh: bool) -> Planned:
        """Measure what is not known yet, and choose.

        Args:
            fresh: measure all of it, whatever is remembered.

        Raises:
            KeyboardInterrupt: a stop was asked for.
            CapTooSmallError: the model does not fit.
        """
        key = key_of(subject_of(self._run, self._config, self._cores, self._allocators, self._company()))
        self._known = Knowledge() if fresh else recall(key)
        self._set_others(self._known.facts)
        count = len(self._known.points())
        try:
            self._search()
            if not fitting(self._known, self._budget_bytes):
                self._name_a_cap()
        finally:
            if not self._machine_was_short:  # then it was not the run that decided what fits
                remember(key, self._known)
        if count and len(self._known.points()) == count:
            self._screen.show({"event": "remembered", "settings": count})
        return Planned(self._choose(), self._known)

    def _company(self) -> Literal["", "with_others", "rank"]:
        """Return with whom this process trains, which it holds memory for."""
        return "rank" if self._rank is not None else "with_others" if self._membership is not None else ""

    def _search(self) -> None:
        """Have child after child take the looks that the search asks for, until it ends or the time is over."""
        while True:
            means, known = Means(self._allocators[0]), self._known
            if known.facts is not None:
                space = make_space(self._config, known.facts, self._allocators)
                hurry = known.gave_up(self._budget_bytes)
                look = next_look(space, known, self._budget_bytes, hurry)
                if look is not None and not hurry and self._seconds_left() < self._shortest_child_seconds:
                    self._note_giving_up()
                    look = next_look(space, known, self._budget_bytes, hurry=True)
                if look is None:
                    return
                means = look.means
            before = known.to_json(), self._budget_bytes
            self._run_child(means)
            if (known.to_json(), self._budget_bytes) == before:  # no time was left, or no memory of the machine
                return

    def _seconds_left(self) -> float:
        return self._deadline - time.monotonic()

    def _has_a_choice(self) -> bool:
        return bool(fitting(self._known, self._budget_bytes))

    def _machine_is_short(self) -> bool:
        """Return whether the machine has little memory left, as it was seen lately."""
        now = time.monotonic()
        if now - self._machine_looked_at >= CHILD_MACHINE_SECONDS:
            self._machine_looked_at, self._machine = now, self._reader.machine()
        return self._machine.is_short

    def _run_child(self, means: Means, only: Setting | None = None) -> None:
        """Have a child measure what is left to look at, or one setting only, and take in what it tells.

        Raises:
            KeyboardInterrupt: a stop was asked for.
            LowmemSeqError: what the child said was wrong.
        """
        request = Request(
            self._budget_bytes, self._allocators, means.allocator, self._seconds_left(), means.lstm_path, only
        )
        told = (json.dumps(asdict(request)), json.dumps(self._known.to_json()))
        count = self._count()
        environment = training_environment(self._cores, means.allocator)
        if sys.platform == "darwin" and self._config.machine.device != "cpu":
            environment |= mps_environment_as_usual()
        child = Child(
            "lowmem_seq.training.probe",
            str(self._run.path),
            *told,
            environment=environment,
            log=self._run.log_file,
            limit_bytes=self._budget_bytes if only is None else None,
        )
        # on Windows the first process of a virtual environment only starts the interpreter, which holds it all
        tree = ProcessTree(child.process.pid, self._reader, seconds_between_searches=CHILD_SEARCH_SECONDS)
        under_way: Message | None = None
        short = too_large = False
        held_at_the_end = 0
        loads = True  # its libraries and the model; then it bounds itself
        with self._stops.ending(child, at=1):
            for message in child.messages(CHILD_SAMPLE_SECONDS):
                held = tree.held_bytes() + self._others_bytes
                if not short and self._machine_is_short() and (held > self._cap_bytes or self._has_a_choice()):
                    short, held_at_the_end = True, held
                    child.kill()
                elif held > self._cap_bytes and only is None and loads and not short:
                    too_large = True
                    child.kill()
                if message is not None:
                    loads = loads and message.get("event") != "facts"
                    under_way = self._take_in(message, under_way)
            code = child.wait()
        self._stops.raise_if_any()
        if too_large:
            return
        if short and self._has_a_choice():
            self._give_way(held_at_the_end - self._others_bytes)
        self._machine_was_short = self._machine_was_short or short or child.was_killed(code)
        without_memory = code == DOES_NOT_FIT or child.ran_out_of_memory or child.was_killed(code)
        if code == 0 or short or (only is not None and without_memory):
            return
        if loads and only is None and not child.told_an_error:
            return  # at a limit libraries end in many ways; a defect is told by the next child, which has none
        met_limit = without_memory or died_for_memory(code, limited=True)
        if under_way is None or only is not None or not met_limit:
            raise child.failure(code, "planner")
        if self._count() > count:  # what it had measured may have left traces: another process starts with this one
            return
        setting = Setting(**{one.name: under_way[one.name] for one in fields(Setting)})
        means = Means(**{one.name: under_way[one.name] for one in fields(Means)})
        self._known.unfit.append(Unfit(setting, means, self._budget_bytes))

    def _give_way(self, held_bytes: int) -> None:
        """Take what a child held when the machine ran short as what there is, if something measured is so small."""
        if not self._machine_was_short:
            event = self._run.events.append("planning_cut", available_bytes=self._machine.available_bytes)
            self._screen.show(event)
        less = min(held_bytes, allowed_bytes(self._budget_bytes))
        if fitting(self._known, less):
            self._short_at_bytes = self._budget_bytes = less

    def _count(self) -> int:
        return len(self._known.measured) + len(self._known.verified)

    def _take_in(self, message: Message, under_way: Message | None) -> Message | None:
        """Keep what a child says; return what it is measuring now."""
        known, event = self._known, message.get("event")
        if event == "facts":
            known.facts = Facts(**{one.name: message[one.name] for one in fields(Facts)})
            self._set_others(known.facts)
        elif event == "measured":
            point = Measurement(**{one.name: message[one.name] for one in fields(Measurement)})
            (known.verified if message["fresh"] else known.measured).append(point)
            return None
        elif event == "evaluated":
            rate = float(message["images_per_second"])
            known.evaluated_images_per_second = max(known.evaluated_images_per_second, rate)
        elif event == "saved":
            known.save_seconds, known.save_bytes = float(message["seconds"]), int(message["bytes"])
        elif event == "gave_up":
            self._note_giving_up()
        else:
            self._screen.show(message)
        return message if event == "probing" else under_way

    def _note_giving_up(self) -> None:
        points = fitting(self._known, self._budget_bytes)
        if points and not self._known.gave_up(self._budget_bytes):
            comfortable = max(self._budget_bytes, math.ceil(points[0].peak_bytes / COMFORTABLE))
            self._known.given_up.append(GivenUp(self._budget_bytes, comfortable))

    def _name_a_cap(self) -> None:
        """Measure what the smallest setting holds, past the cap, and refuse the cap that was given.

        Where that fits after all, it is what is taken.

        Raises:
            CapTooSmallError: it doesn't.
        """
        device = self._config.machine.device
        means = Means(self._allocators[-1], lstm_paths(self._config, "cpu" if device == "auto" else device)[0])
        if self._known.facts is None and not self._machine_was_short:  # not even the libraries fit
            self._run_child(means, Setting(self._config.machine.micro_batch or 1, 1))
        facts = self._known.facts
        if facts is not None:
            space = make_space(self._config, facts, self._allocators)
            means = Means(self._allocators[-1], space.lstm_paths[0])
            for setting in space.least:
                if not self._measured(setting, means) and not self._machine_was_short:
                    self._run_child(means, setting)
        if fitting(self._known, self._budget_bytes):  # it was the time that was too short, and not the cap
            return
        least = min(self._known.points(), key=lambda point: point.peak_bytes, default=None)
        if least is None:
            raise CapTooSmallError(
                f"the cap of {format_bytes(self._cap_bytes)} is too small for this model: its first step passed "
                "it, and the machine was short of memory.",
                "close other programs, take smaller images (--image-size) or a smaller preset",
            )
        needed = math.ceil(least.peak_bytes * (1 + REPEATS_WITHIN) / SHARE_OF_BUDGET) + self._others_bytes
        needed = max(needed, self._cap_bytes + ROUND_BYTES)
        recomputed = " with every layer recomputed" if least.recomputed_layers else ""
        raise CapTooSmallError(
            f"the cap of {format_bytes(self._cap_bytes)} is too small for this model: micro-batch "
            f"{least.micro_batch}{recomputed} holds {format_bytes(least.peak_bytes)} in the trainer, and the "
            f"supervisor {format_bytes(self._others_bytes)}.",
            f"the smallest cap that would do is about --max-ram {-(-needed // ROUND_BYTES) * 10}MB",
        )

    def _measured(self, setting: Setting, means: Means) -> Measurement | None:
        points = self._known.points()
        return next((one for one in points if (one.setting, one.means) == (setting, means)), None)

    def _choose(self) -> Plan:
        """Return the plan of the fastest setting that fits."""
        known, facts = self._known, self._known.facts
        assert facts is not None
        best = fitting(known, self._budget_bytes)[0]
        environment = training_environment(self._cores, best.allocator)
        if facts.device == "mps" and facts.recommended_bytes:
            environment |= mps_environment(self._room_bytes - facts.libraries_bytes, facts.recommended_bytes)
        return Plan(
            device=facts.device,
            precision=facts.precision,
            **asdict(best.setting),
            threads=threads_each(best.workers, self._cores),
            **asdict(best.means),
            chosen=best.setting,
            cap_bytes=self._cap_bytes,
            cap_source=self._cap_source,
            others_bytes=self._others_bytes,
            data_limit_bytes=data_limit(best, self._room_bytes) if facts.device == "cpu" else None,
            predicted_peak_bytes=best.peak_bytes + self._others_bytes,
            predicted_images_per_second=best.images_per_second,
            planned_for=planned_for(describe_environment()),
            part=part_of(self._run),
            ranks=1 if self._rank is None else self._rank.of,
            neighbours=1 if self._rank is None else self._rank.local_of,
            layers=facts.layers,
            footprint=make_footprint(facts, best.micro_batch, best.workers, best.peak_bytes, self._others_bytes),
            environment=environment,
            measurements=(*known.measured, *known.verified),
        )


def data_limit(best: Measurement, budget_bytes: int, platform: str = sys.platform) -> int | None:
    """Return the bound that the trainer sets on itself, see limit.py; None where the system has none.

    Linux: on its data segment, from what the probe saw of it. Windows: on its private bytes, which are what the cap
    counts.
    """
    if platform == "win32":
        return budget_bytes
    return data_limit_bytes(best.data_bytes, best.peak_bytes, budget_bytes) if best.data_bytes else None


def make_plan(
    run: RunFolder, config: RunConfig, screen: Screen, stops: StopSignals, fresh: bool = False
) -> Planned:
    """Make the plan of a run, or of a rank's part in it, and write plan.json.

    Raises:
        KeyboardInterrupt: a stop was asked for.
        CapTooSmallError: the model does not fit.
    """
    rank = read_rank(run)
    planned = Planner(run, config if rank is None else rank.own_part(config), screen, stops).make(fresh)
    write_json(run.plan_file, planned.plan.to_json())
    run.events.append("planned", **planned.plan.to_json())
    return planned
