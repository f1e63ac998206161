"""A run that holds more after every step: it says so, and goes on in a process that holds nothing of it yet."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.kills import copy_before_first_step, differences
from lowmem_seq.files import read_json, write_json
from tests.sessions import STEPS, Session, events, python_with, story

LEAKING = """
import sys

if "lowmem_seq.training" in sys.orig_argv:
    from lowmem_seq.channel import Channel
    from lowmem_seq.memory import leak

    leak.SPAN_SECONDS = 0.025
    begin = Channel.__init__

    def begin_leaking(self, *arguments, **details):
        begin(self, *arguments, **details)
        import torch
        from lowmem_seq.training import optimizer

        kept, step = [], optimizer.AdamW.step

        def leaking_step(self, rate):
            kept.append(torch.ones(5_000_000, dtype=torch.uint8))
            step(self, rate)

        optimizer.AdamW.step = leaking_step

    Channel.__init__ = begin_leaking
"""
LEAKED_BYTES = 5_000_000
STEPS_UNTIL_FULL = 40
GROWTH = r"memory grows by [4-6]\.\d\d MB a step"
"""As a line through a dozen noisy points tells it."""


@story
def test_a_leak_is_told_of_and_cured_by_another_process_without_a_different_bit(
    undisturbed: Path, folder: Path
) -> None:
    run = copy_before_first_step(undisturbed, folder / "run", "machine.max_restarts=3")
    plan = read_json(run.plan_file)
    held = max(point["peak_bytes"] for point in plan["measurements"] if point["micro_batch"] == plan["micro_batch"])
    room = held + STEPS_UNTIL_FULL * LEAKED_BYTES
    write_json(run.plan_file, plan | {"cap_bytes": plan["others_bytes"] + room, "data_limit_bytes": None})
    path = python_with(*LEAKING.splitlines(), folder=folder)
    with Session("resume", str(run.path), cwd=folder, PYTHONPATH=path) as session:
        said = session.ended(0)
    (noticed, *_) = events(run.path, "leak_noticed")
    assert re.match(GROWTH, noticed["message"])
    assert noticed["message"] in said.replace("\n", " ")
    restarts = [event["cause"] for event in events(run.path, "trainer_restarted")]
    assert restarts
    assert all(re.match(GROWTH, cause) for cause in restarts)
    starts = [event["step"] for event in events(run.path, "session_started")]
    assert starts[0] == 0
    assert 12 < starts[1] < STEPS
    assert events(run.path, "setting_changed") == []
    assert differences(run.path, undisturbed) == []
