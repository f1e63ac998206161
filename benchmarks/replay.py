"""A run done again, with the settings that it was computed with at each step: the bits must be the same.

Memory may make a run change its micro-batch, its workers and the layers that it computes twice, at moments that
nobody foresees. Each change is an event; this reads them, and trains a copy of the run with the same changes at the
same steps, undisturbed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.kills import copy_before_first_step, digests, figures
from lowmem_seq.channel import Channel
from lowmem_seq.memory.governor import SilentGovernor
from lowmem_seq.memory.plan import Setting
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.loop import Training
from lowmem_seq.training.session import open_training, read_plan


@dataclass
class Settings:
    """What a run was computed with."""

    after: dict[int, Setting] = field(default_factory=dict)
    """By step: from the evaluation of that step on, because a trainer began there."""
    from_step: dict[int, Setting] = field(default_factory=dict)
    """By step: from the computation of the step after that one on, because the trainer changed."""


def settings_of(run: RunFolder) -> Settings:
    """Return the settings of the steps that count; those that were done again count as they were the last time."""
    settings = Settings()
    for event in run.events:
        if event["event"] == "session_started":
            for before in (settings.after, settings.from_step):
                for step in [step for step in before if step >= event["step"]]:
                    del before[step]
            settings.after[event["step"]] = _setting(event)
        elif event["event"] == "setting_changed" and "step" in event:
            settings.from_step[event["step"]] = _setting(event)
    return settings


def _setting(event: dict[str, Any]) -> Setting:
    return Setting(event["micro_batch"], event["workers"], event["recomputed_layers"])


class Replay(Training):
    """A training that changes its setting where another one did."""

    settings: Settings

    def validation_is_due(self, step: int) -> bool:
        """The first thing that is asked after each step."""
        if step in self.settings.after:
            self.setting.take(self.plan.with_setting(self.settings.after[step]))
        return super().validation_is_due(step)

    def train_step(self) -> bool:
        """See Training."""
        change = self.settings.from_step.get(self.state.counters.step)
        if change is not None:
            self.setting.take(self.plan.with_setting(change))
        return super().train_step()


def differences_from_replay(run: Path, replayed: Path) -> list[str]:
    """Return the files and figures of a finished run that are not those of its replay.

    Of a figure that was measured twice, by two processes with different settings, the last one counts: a replay
    measures once.
    """
    ours, theirs = ({key: told[-1] for key, told in figures(path).items()} for path in (run, replayed))
    differing = [str(key) for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)]
    files, copies = digests(run), digests(replayed)
    return sorted([*differing, *(name for name in {*files, *copies} if files.get(name) != copies.get(name))])


def replay(run: RunFolder, to: Path) -> Path:
    """Train a copy of a finished run, with its settings at its steps; return the copy's folder."""
    copy = copy_before_first_step(run.path, to)
    plan = read_plan(copy)
    governor = SilentGovernor(system_reader(), os.getpid(), plan.cap_bytes)
    training = open_training(copy, plan, Channel(listen=False), governor)
    training.__class__ = Replay
    assert isinstance(training, Replay)
    training.settings = settings_of(run)
    assert training.go()
    return copy.path
