"""What a run needs on this machine, measured: `python -m lowmem_seq.training.probe RUN_DIR REQUEST KNOWN`.

A disposable process measures the settings that the search asks for (measuring.py), and tells what it found. A
process that met its limit ends, since libraries are not whole then; its supervisor starts another one for what is
left to look at. Nothing that it computes is kept.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch

from lowmem_seq.channel import Channel
from lowmem_seq.cluster.membership import read_membership
from lowmem_seq.cluster.rank import planned_config, read_rank
from lowmem_seq.cluster.room import FP32, member_bytes, rank_bytes
from lowmem_seq.errors import LowmemSeqError
from lowmem_seq.memory.cores import usable_cores
from lowmem_seq.memory.footprint import Facts
from lowmem_seq.memory.governor import SilentGovernor
from lowmem_seq.memory.limit import system_limit
from lowmem_seq.memory.out_of_memory import is_out_of_memory
from lowmem_seq.memory.plan import Means, Measurement, Plan, Setting
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.memory.remembered import DOES_NOT_FIT, Knowledge, Look, Request, knowledge_from_json
from lowmem_seq.memory.search import FEW, fitting, next_look
from lowmem_seq.memory.seen import COMFORTABLE, allowed_bytes, measures_on
from lowmem_seq.memory.space import make_space
from lowmem_seq.runs.folder import RunFolder, open_run
from lowmem_seq.training.device import choose_device, choose_precision
from lowmem_seq.training.loop import Training
from lowmem_seq.training.measuring import Probe
from lowmem_seq.training.session import open_training
from lowmem_seq.training.tracking import load

ROUNDS = 2.5
"""Rounds that a look takes at the least where they are long: those that are timed, and an evaluation."""


class Prober:
    """Follows the search as far as this process may, and tells what it finds.

    Args:
        probe: measures.
        training: what it measures.
        request: what was asked for.
        known: what earlier processes found; it grows.
        began: when this process was started, by the monotonic clock.
    """

    def __init__(self, probe: Probe, training: Training, request: Request, known: Knowledge, began: float) -> None:
        self._probe, self._training, self._request = probe, training, request
        self._known, self._deadline = known, began + request.seconds
        self._start_seconds = time.monotonic() - began

    def go(self) -> None:
        """Take one look after the other, until the search ends or asks for another process, or time is over."""
        request, known = self._request, self._known
        assert known.facts is not None
        space = make_space(self._training.config, known.facts, request.allocators)
        if request.only is not None:
            known_path = request.lstm_path in space.lstm_paths  # it was asked for before the device was known
            path = request.lstm_path if known_path else space.lstm_paths[0]
            self._take(Look(request.only, Means(request.allocator, path)))
            return
        hurry = known.gave_up(request.budget_bytes)
        while True:
            look = next_look(space, known, request.budget_bytes, hurry)
            if look is not None and not hurry and not look.fresh and not self._has_time_for(look):
                self._training.channel.say({"event": "gave_up"})
                hurry = True
                look = next_look(space, known, request.budget_bytes, hurry)
            if look is None or look.means.allocator != request.allocator or (look.fresh and self._probe.count):
                return
            point = self._take(look)
            if not measures_on(space, point.peak_bytes, request.budget_bytes):
                return

    def _take(self, look: Look) -> Measurement:
        fresh = self._probe.count == 0
        point = self._probe.measure(look.setting, look.means.lstm_path)
        (self._known.verified if fresh else self._known.measured).append(point)
        self._training.channel.say({"event": "measured", "fresh": fresh, **asdict(point)})
        return point

    def _has_time_for(self, look: Look) -> bool:
        """Whether a look can be taken, and the choice be seen to be sound after it."""
        points = self._known.points()
        if not points:
            return True
        fastest = fitting(self._known, self._request.budget_bytes)
        is_tight = bool(fastest) and fastest[0].peak_bytes > COMFORTABLE * self._request.budget_bytes
        needs_another = is_tight and self._probe.count > 0
        speed = max(point.images_per_second for point in points[-FEW:])
        seconds = ROUNDS * look.setting.micro_batch * look.setting.workers / speed
        return time.monotonic() + seconds + (self._start_seconds + seconds if needs_another else 0) < self._deadline


def _facts(training: Training, libraries_bytes: int) -> Facts:
    """Return what is known before the first step."""
    state, parts = training.state, training.parts
    average = {} if state.average is None else state.average.values
    return Facts(
        device=training.plan.device,
        precision=training.plan.precision,
        layers=state.model.layer_count,
        libraries_bytes=libraries_bytes,
        weights_bytes=sum(value.nbytes for value in state.parameters.values()),
        average_bytes=sum(value.nbytes for value in average.values()),
        image_size=training.config.data.image_size,
        train_images=parts.train.size,
        validation_images=parts.validation.size,
        test_images=parts.test.size,
        recommended_bytes=torch.mps.recommended_max_memory() if training.plan.device == "mps" else 0,
    )


def _open(run: RunFolder, request: Request, facts: Facts | None, channel: Channel) -> Training:
    """Return the run's training, at a setting that is changed before anything is computed."""
    config = planned_config(run)
    device = choose_device(config.machine.device)
    # chosen once, by the first process: another could come to another result
    precision = choose_precision(config.machine.precision, device) if facts is None else facts.precision
    plan = Plan(
        device=device,
        precision=precision,
        **asdict(Setting(1, 1)),
        threads=usable_cores(config.machine.threads, config.machine.background),
        allocator=request.allocator,
        chosen=Setting(1, 1),
        cap_bytes=request.budget_bytes,
        cap_source="given",
        others_bytes=0,
        data_limit_bytes=None,
        predicted_peak_bytes=0,
        predicted_images_per_second=0.0,
    )
    governor = SilentGovernor(system_reader(), os.getpid(), request.budget_bytes)
    return open_training(run, plan, channel, governor, config=config)


def _reserve(training: Training) -> npt.NDArray[np.float32] | None:
    """Return as much memory as the trainer's part among several will hold; None where it has none."""
    if read_rank(training.run) is not None:
        return np.ones(rank_bytes() // FP32, np.float32)
    if read_membership(training.run) is None:
        return None
    weights = sum(value.numel() for value in training.state.parameters.values())
    return np.ones(member_bytes(weights) // FP32, np.float32)


def main() -> int:
    """Probe the run that the command line names, and say the result."""
    began = time.monotonic() - max(0.0, time.time() - psutil.Process().create_time())
    system_limit().set(sys.maxsize)  # it was for the libraries; what is computed bounds itself (measuring.py)
    channel = Channel(saves=False)
    try:
        run = open_run(Path(sys.argv[1]))
        told = json.loads(sys.argv[2])
        request = Request(**{**told, "only": None if told["only"] is None else Setting(**told["only"])})
        known = knowledge_from_json(json.loads(sys.argv[3]))
        load(run.config.machine.log_with)
        libraries_bytes = system_reader().held_bytes(os.getpid())
        training = _open(run, request, known.facts, channel)
        if known.facts is None:
            known.facts = _facts(training, libraries_bytes)
        reserved = _reserve(training)  # held from here on, as the trainer will hold it
        channel.say({"event": "facts", **asdict(known.facts)})
        # what passes the share that may be taken is of no use, and ends before it can pass the cap
        budget_bytes = allowed_bytes(request.budget_bytes) if request.only is None else math.inf
        settings = training.config.machine
        cores = usable_cores(settings.threads, settings.background)
        probe = Probe(training, cores, budget_bytes, request.allocator, known.save_bytes)
        Prober(probe, training, request, known, began).go()
        del reserved
    except LowmemSeqError as error:
        channel.say_error(error)
        return error.exit_code
    except Exception as error:
        if is_out_of_memory(error, limited=True):
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            sys.stderr.flush()
            os._exit(DOES_NOT_FIT)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
