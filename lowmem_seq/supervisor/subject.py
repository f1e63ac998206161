"""What a plan is for: all that a measurement depends on, and a process's part among several."""

from __future__ import annotations

from typing import Any, Literal

from lowmem_seq.cluster.membership import read_membership
from lowmem_seq.cluster.rank import read_rank
from lowmem_seq.config import RunConfig
from lowmem_seq.runs.environment import DECISIVE, describe_environment
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.runs.trackers import NO_TRACKER


def subject_of(
    run: RunFolder, config: RunConfig, cores: int, allocators: tuple[str, ...], company: str = ""
) -> dict[str, Any]:
    """Return all that a measurement depends on."""
    described = describe_environment()
    record = run.read_json(run.data_file) or {}
    settings = config.to_settings()
    return {
        **{key: described[key] for key in (*DECISIVE, "memory_bytes")},
        "cores": cores,
        "allocators": allocators,
        "device": config.machine.device,
        "precision": config.machine.precision,
        "lstm_path": config.machine.lstm_path,
        "micro_batch": config.machine.micro_batch,
        "model": settings["model"],
        "augmentation": settings["augmentation"],
        "average": config.recipe.ema_decay > 0,
        "batch": config.recipe.effective_batch,
        "image_size": config.data.image_size,
        "data": record.get("fingerprint"),
        "classes": config.data.classes,
        "validation_fraction": config.data.validation_fraction,
        **({company: True} if company else {}),
        **({} if config.machine.log_with == NO_TRACKER else {"log_with": config.machine.log_with}),
    }


def part_of(run: RunFolder) -> Literal["", "rank", "member", "host"]:
    """Return this process's part among several in the present session."""
    if read_rank(run) is not None:
        return "rank"
    membership = read_membership(run)
    return "" if membership is None else membership.role
