"""From a run folder to a session that can train: data, device, model, newest checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lowmem_seq.channel import Channel
from lowmem_seq.config import RunConfig
from lowmem_seq.data.pack import Pack
from lowmem_seq.data.parts import Parts, open_parts
from lowmem_seq.errors import DataError, UsageError
from lowmem_seq.memory.governor import Governor
from lowmem_seq.memory.limit import Limit
from lowmem_seq.memory.plan import Plan, plan_from_json
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.models import ImageClassifier, build_model
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.device import make_accelerator
from lowmem_seq.training.loop import Training
from lowmem_seq.training.state import TrainingState


def open_data(run: RunFolder, config: RunConfig) -> tuple[Pack, Parts]:
    """Return the pack that data.json names, and its parts as the config asks for them.

    Raises:
        DataError: the pack is gone, or is not the one the run was started with.
    """
    record = run.read_json(run.data_file)
    if record is None:
        raise DataError(f"{run.data_file} is missing.", run.resume_command)
    pack = Pack.open(Path(record["pack"]))
    if pack.fingerprint != record["fingerprint"]:
        raise DataError(
            f"the pack {record['pack']} holds other images than this run was started with.",
            f"{run.resume_command} --data PATH   with the images of the start",
        )
    return pack, open_parts(pack, config.data.classes, config.data.validation_fraction, config.seed)


def make_model(config: RunConfig, class_count: int) -> ImageClassifier:
    """Return the model with the weights that the seed gives it."""
    torch.manual_seed(config.seed)
    return build_model(config.model, class_count)


def read_plan(run: RunFolder) -> Plan:
    """Return the plan of a run.

    Raises:
        UsageError: it has none.
    """
    plan_json = run.read_json(run.plan_file)
    if plan_json is None:
        raise UsageError(f"{run.plan_file} is missing.", f"{run.resume_command}   measures it anew")
    return plan_from_json(plan_json)


def open_training(
    run: RunFolder, plan: Plan, channel: Channel, governor: Governor | None = None, limit: Limit | None = None
) -> Training:
    """Return the run's training at step 0, computed as `plan` says.

    Args:
        run: what is trained.
        plan: how.
        channel: leads to the supervisor.
        governor: watches memory; by default one of this process, under the plan's cap.
        limit: what the system enforces on this process.
    """
    config = run.config
    torch.set_num_threads(plan.threads)
    pack, parts = open_data(run, config)
    accelerator = make_accelerator(plan.device, plan.precision)
    state = TrainingState(make_model(config, len(parts.classes)).to(accelerator.device), config.recipe)
    if governor is None:
        governor = Governor(
            system_reader(),
            os.getpid(),
            plan.cap_bytes - plan.others_bytes,
            limit=limit,
            tell_peak=lambda peak_bytes: channel.say({"event": "peak", "bytes": peak_bytes}),
        )
    return Training(run, config, plan, pack, parts, state, accelerator, channel, governor)
