"""From a run folder to a session that can train: data, device, model, newest checkpoint."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lowmem_seq.channel import Channel
from lowmem_seq.checkpoint.manifest import Checkpoint
from lowmem_seq.checkpoint.store import checkpoints_in
from lowmem_seq.cluster.membership import machine_of, read_membership
from lowmem_seq.cluster.rank import read_rank
from lowmem_seq.cluster.roll_call import hello_of
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
from lowmem_seq.training.device import give_back, make_accelerator
from lowmem_seq.training.initial import InitialWeights, take_initial_weights
from lowmem_seq.training.loop import Training
from lowmem_seq.training.ranks import Ranks
from lowmem_seq.training.state import TrainingState

if TYPE_CHECKING:
    from lowmem_seq.training.together import Together
    from lowmem_seq.training.world import World


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


def find_world(run: RunFolder, plan: Plan, channel: Channel) -> World | None:
    """Return the world of ranks that this process is one of, once all are there; None where it trains for itself.

    Raises:
        ClusterError: a rank did not come, or would train something else.
        StoppedError: a stop was asked for meanwhile.
    """
    rank = read_rank(run)
    if rank is None:
        return None
    from lowmem_seq.training.world import form_world  # torch.distributed, for those who need it

    config = run.config
    pack, parts = open_data(run, config)
    hello = replace(
        hello_of(config),
        length=f"{config.total_steps(parts.train.size)} steps",
        data=pack.fingerprint,
        device=plan.device,
        precision=plan.precision,
        images_per_second=plan.predicted_images_per_second,
    )
    cluster = config.cluster
    return form_world(
        rank, hello, cluster.form_within_seconds, cluster.lost_after_seconds, lambda: channel.stop_requested
    )


def open_training(
    run: RunFolder,
    plan: Plan,
    channel: Channel,
    governor: Governor | None = None,
    limit: Limit | None = None,
    config: RunConfig | None = None,
    ranks: Ranks | None = None,
) -> Training:
    """Return the run's training at step 0, computed as `plan` says.

    Args:
        run: what is trained.
        plan: how.
        channel: leads to the supervisor.
        governor: watches memory; by default one of this process, under the plan's cap.
        limit: what the system enforces on this process.
        config: the settings, where they are not just the run's.
        ranks: those with whom each step is computed, if anybody.
    """
    config = run.config if config is None else config
    torch.set_num_threads(plan.threads)
    pack, parts = open_data(run, config)
    accelerator = make_accelerator(plan.device, plan.precision, config.machine.log_with, run.logs)
    model = make_model(config, len(parts.classes))
    initial = find_initial_weights(run, config, model, parts.classes)
    state = TrainingState(model.to(accelerator.device), config.recipe)
    if governor is None:
        governor = Governor(
            system_reader(),
            os.getpid(),
            plan.cap_bytes - plan.others_bytes,
            limit=limit,
            tell_peak=lambda peak_bytes: channel.say({"event": "peak", "bytes": peak_bytes}),
            release=lambda: give_back(plan.device),
        )
    training = Training(run, config, plan, pack, parts, state, accelerator, channel, governor, ranks)
    training.initial = initial
    return training


def find_initial_weights(
    run: RunFolder, config: RunConfig, model: ImageClassifier, classes: tuple[str, ...]
) -> InitialWeights | None:
    """Have a model begin with the weights that its run has for that, if it has any and no checkpoint yet.

    Ranks other than the first one get theirs from it.

    Raises:
        UsageError: they have changed, have gone, or are another model's.
    """
    rank = read_rank(run)
    if config.init_sha256 is None or checkpoints_in(run.checkpoints) or not (rank is None or rank.is_first):
        return None
    return take_initial_weights(model, run.initial_file, config.init_sha256, classes)


def find_others(training: Training) -> Together | None:
    """Have a training's samples come from the cluster that its run folder names for this session, if it names one.

    Raises:
        UsageError: there is no token, or the folder's part in the cluster is damaged.
    """
    membership = read_membership(training.run)
    if membership is None:
        return None
    from lowmem_seq.training.together import Together  # pyzmq, for those who need it

    together = Together(training, membership, training.pack.fingerprint)
    training.source = together
    return together


def take_up_newest(training: Training) -> None:
    """Load the newest checkpoint, and have the samples come from where it says: others, the rest, or all.

    Raises:
        NoCheckpointError: there were some, and none can be gone on from.
        ClusterError: the machines that this session is to train with are not there, or refuse this one.
        UsageError: the checkpoints belong to another experiment, or there is no token.
    """
    if read_rank(training.run) is not None:
        _take_up_with_others(training)
        return
    others, machine = find_others(training), machine_of(training.run)
    checkpoint = training.saver.load_newest()
    _tell_of_initial_weights(training, checkpoint)
    if others is not None:
        others.join(checkpoint)
        return
    if machine is None or checkpoint is None:
        return
    from lowmem_seq.training.rest import Rest, standing_of

    saved = standing_of(checkpoint)
    if saved is not None:
        training.source = Rest(training, machine, saved)


def _take_up_with_others(training: Training) -> None:
    """Load the newest checkpoint on the first rank, and have all begin at it.

    Raises:
        NoCheckpointError: there were some, and none can be gone on from.
        UsageError: it is of laptop mode, whose machines have not trained all samples in their order.
    """
    ranks = training.ranks
    checkpoint = training.saver.load_newest() if ranks.is_first else None
    _tell_of_initial_weights(training, checkpoint)
    if checkpoint is not None:
        from lowmem_seq.training.rest import standing_of

        if standing_of(checkpoint) is not None:
            raise UsageError(
                "this run was trained in laptop mode, which leaves samples behind that others had on lease.",
                f"{training.run.resume_command}   goes on with one process, or --mode laptop with several machines",
            )
    ranks.begin_alike(training.state)
    if not ranks.is_first:
        training.journal.take_up(training.state.counters)


def _tell_of_initial_weights(training: Training, checkpoint: Checkpoint | None) -> None:
    if checkpoint is None and training.initial is not None:
        training.journal.record(
            "initial_weights",
            path=training.config.init_from,
            tensors=training.initial.tensors,
            head_drawn_anew=training.initial.head_drawn_anew,
        )
