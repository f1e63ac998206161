"""A run done again, with the settings that it was computed with at each step: the bits must be the same.

Memory may make a run change its micro-batch, its workers and the layers that it computes twice, at moments that
nobody foresees. Each change is an event; this reads them, and trains a copy of the run with the same changes at the
same steps, undisturbed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.kills import copy_before_first_step, digests, figures
from lowmem_seq.channel import Channel
from lowmem_seq.memory.governor import SilentGovernor
from lowmem_seq.memory.plan import Setting
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.evaluation import Evaluation
from lowmem_seq.training.loop import Training
from lowmem_seq.training.session import open_training, read_plan


@dataclass
class Settings:
    """What a run was computed with; of what was done twice, the last time counts."""

    steps: dict[int, Setting] = field(default_factory=dict)
    """From the step after this one on."""
    validations: dict[int, Setting] = field(default_factory=dict)
    """By step."""
    test: Setting | None = None


def settings_of(run: RunFolder) -> Settings:
    """Return the settings of a run, as its events tell them."""
    settings = Settings()
    now: Setting | None = None
    for event in run.events:
        kind = event["event"]
        if kind == "session_started" or (kind == "setting_changed" and "step" in event):
            now = Setting(event["micro_batch"], event["workers"], event["recomputed_layers"])
            settings.steps = {step: setting for step, setting in settings.steps.items() if step < event["step"]}
            settings.steps[event["step"]] = now
        elif kind == "validation" and now is not None:
            settings.validations[event["step"]] = now
        elif kind == "test":
            settings.test = now
    return settings


class Replay(Training):
    """A training that changes its setting where another one did."""

    settings: Settings

    def train_step(self) -> bool:
        """See Training."""
        self._take(self.settings.steps.get(self.state.counters.step))
        return super().train_step()

    def validate(self) -> Evaluation | None:
        """See Training; the step after it has its own setting."""
        before = self.plan.setting
        self._take(self.settings.validations.get(self.state.counters.step))
        result = super().validate()
        self._take(before)
        return result

    def test(self) -> bool:
        """See Training."""
        self._take(self.settings.test)
        return super().test()

    def _take(self, setting: Setting | None) -> None:
        if setting is not None:
            self.setting.take(self.plan.with_setting(setting))


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
