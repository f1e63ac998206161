"""What a trainer does when memory runs out, or is about to: it saves what is whole, and ends for another one.

A process whose allocation failed trains no further. Of 19 that went on under a constant limit, four ended in a
crash, and a thread of oneDNN that could not create its kernel stays broken. But it can still write what lies in
memory, with a little more room than the limit had left.
"""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING

from lowmem_seq.channel import Channel
from lowmem_seq.errors import DiskError
from lowmem_seq.memory.limit import Limit
from lowmem_seq.memory.out_of_memory import is_out_of_memory
from lowmem_seq.memory.readings import peak_so_far, system_reader
from lowmem_seq.runs.folder import RunFolder

if TYPE_CHECKING:
    from lowmem_seq.training.loop import Training

RESERVE_BYTES = 64 * 2**20
"""What the limit is raised by for the last save, which takes 0.2 to 1.1 MB (docs/results.md); the rest is for
Python, and for an allocator that can only take whole areas."""
LONGEST_WORDS = 200


class StartAnew(Exception):  # noqa: N818 (it is no error: the run goes on)
    """This process is to save and end, and another one to go on in its place."""


def leave(
    training: Training | None,
    run: RunFolder,
    channel: Channel,
    limit: Limit,
    cause: BaseException,
    for_want_of_memory: bool,
) -> None:
    """Save the last complete step, and tell the supervisor why another trainer should go on.

    Args:
        training: what was trained; all its workers have stopped. None: it could not even be opened.
        run: where the events go.
        channel: leads to the supervisor.
        limit: the bound on this process, raised here.
        cause: what ended the training; the tensors that its frames hold are let go of.
        for_want_of_memory: whether an allocation failed.
    """
    reader, pid = system_reader(), os.getpid()
    held = peak_so_far(reader, pid)
    machine_is_short = reader.machine().is_short
    limit.raise_by(RESERVE_BYTES)
    words = (str(cause) or type(cause).__name__).splitlines()[0][:LONGEST_WORDS]
    told = f"the trainer ran out of memory: {words}" if for_want_of_memory else words
    saved = training is not None and save_what_is_whole(training, cause)
    step = None if training is None else training.state.counters.step
    if for_want_of_memory:
        run.events.append("out_of_memory", step=step, saved=saved, held_bytes=held, cause=words)
    channel.say(
        {
            "event": "leaving",
            "cause": told,
            "for_want_of_memory": for_want_of_memory,
            "machine_is_short": machine_is_short,
        }
    )


def save_what_is_whole(training: Training, cause: BaseException) -> bool:
    """Save the last complete step if the state is whole; return whether it is safe on the disk."""
    from lowmem_seq.training.device import give_back  # torch, which is there by now

    traceback.clear_frames(cause.__traceback__)  # they hold activations
    training.workers.clear_gradients()
    give_back(training.plan.device)
    if not training.state.is_whole or not training.saver.keeps:
        return False
    try:
        training.saver.save()
    except (DiskError, OSError, RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error, limited=True):
            raise
        return False
    return True
