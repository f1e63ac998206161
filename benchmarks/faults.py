"""Allocations that fail where and when they are told to, in a real trainer: `install` in its sitecustomize.py.

FAULTS=forward@3,backward@7 makes the first allocation of the forward pass of the step after step 3 fail, and one in
the backward pass of the step after step 7; each once, as the files in FAULTS_DONE say. It is the allocator itself
that fails, under a limit that leaves it no room: what comes next must do with the reserve.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

LARGE_BYTES = 512 * 2**20
PHASES = (
    *("opening", "forward", "backward", "clipping", "optimizer", "average", "evaluation", "save"),
    "final weights",
)
KEEP_THE_STEP = ("forward", "backward", "clipping", "evaluation")
"""Phases after whose failure no complete step is lost."""


class Faults:
    """What is to fail in this process.

    Args:
        wanted: pairs of phase and step.
        done: holds a file for each that has failed already, in this process or one before.
    """

    def __init__(self, wanted: Iterable[tuple[str, int]], done: Path) -> None:
        self._wanted, self._done = set(wanted), done
        self.step = 0

    def strike(self, phase: str) -> None:
        """Fail if this phase of the present step is to fail, and hasn't.

        Raises:
            RuntimeError: what torch's allocator says.
        """
        mark = self._done / f"{phase}@{self.step}"
        if (phase, self.step) in self._wanted and not mark.exists():
            mark.touch()
            fail()


def fail() -> None:
    """Ask for more than a limit leaves, and leave the limit in force."""
    import torch

    if sys.platform == "linux":
        import resource

        from lowmem_seq.memory.readings import system_reader

        held = system_reader().data_bytes(os.getpid())
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (held or 0, hard))
    torch.empty(LARGE_BYTES if sys.platform == "linux" else 2**60, dtype=torch.uint8)


def install() -> None:
    """Make this process fail as FAULTS says, if it is a trainer."""
    if "FAULTS" not in os.environ or "lowmem_seq.training" not in sys.orig_argv:
        return
    from lowmem_seq.channel import Channel

    begin = Channel.__init__

    def begin_with_faults(self: Channel, *arguments: Any, **details: Any) -> None:
        begin(self, *arguments, **details)
        wanted = [word.rpartition("@") for word in os.environ["FAULTS"].split(",")]
        _patch(Faults([(phase, int(step)) for phase, _, step in wanted], Path(os.environ["FAULTS_DONE"])))

    Channel.__init__ = begin_with_faults  # type: ignore[method-assign]


def _patch(faults: Faults) -> None:
    """Put the faults where the phases are."""
    import torch
    from accelerate import Accelerator

    from lowmem_seq.training import loop, optimizer, session, state

    def before(owner: Any, name: str, phase: str) -> None:
        call = getattr(owner, name)

        def striking(*arguments: Any, **details: Any) -> Any:
            faults.strike(phase)
            return call(*arguments, **details)

        setattr(owner, name, striking)

    before(session, "make_model", "opening")
    before(loop, "draw_noise", "forward")
    before(optimizer.AdamW, "clip_gradients", "clipping")
    before(optimizer.RunningAverage, "update", "average")
    before(state, "write_tensors", "save")
    before(loop, "write_tensors", "final weights")
    _count_steps(loop.Training, faults)
    _strike_in_backward(Accelerator, faults)
    torch._fused_adamw_ = _after_the_first(torch._fused_adamw_, faults)
    count = vars(loop)["count"]
    vars(loop)["count"] = lambda model, batches, *rest: count(model, _striking(batches, faults), *rest)


def _count_steps(training: Any, faults: Faults) -> None:
    due = training.validation_is_due

    def validation_is_due(self: Any, step: int) -> bool:
        faults.step = step
        return bool(due(self, step))

    training.validation_is_due = validation_is_due


def _strike_in_backward(accelerator: Any, faults: Faults) -> None:
    backward = accelerator.backward

    def striking(self: Any, loss: Any) -> None:
        loss.register_hook(lambda _gradient: faults.strike("backward"))
        backward(self, loss)

    accelerator.backward = striking


def _after_the_first(update: Callable[..., None], faults: Faults) -> Callable[..., None]:
    """Fail between the updates of the two groups of weights: one is of the next step already, one isn't."""
    calls = 0

    def striking(*arguments: Any, **details: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            faults.strike("optimizer")
        update(*arguments, **details)

    return striking


def _striking(batches: Iterable[Any], faults: Faults) -> Iterator[Any]:
    for number, batch in enumerate(batches):
        if number == 1:
            faults.strike("evaluation")
        yield batch
