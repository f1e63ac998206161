"""The trainer as a process of its own: `python -m lowmem_seq.training RUN_DIR`.

It is started by the supervisor, speaks JSON lines (see channel.py), and ends with the exit codes of errors.py.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lowmem_seq.channel import SECONDS_TO_SAVE, START_ANEW, Channel
from lowmem_seq.cluster.pulse import RankLost
from lowmem_seq.errors import LowmemSeqError, StoppedError
from lowmem_seq.memory.limit import system_limit
from lowmem_seq.memory.out_of_memory import is_out_of_memory
from lowmem_seq.memory.readings import peak_so_far, system_reader
from lowmem_seq.runs.folder import RunFolder, open_run
from lowmem_seq.training.shortage import StartAnew, leave, save_what_is_whole
from lowmem_seq.training.watched import EXCHANGE

if TYPE_CHECKING:  # torch is imported once the run is known to be one
    from lowmem_seq.training.loop import Training
    from lowmem_seq.training.world import World


def main() -> int:
    """Train the run whose folder is named on the command line; return the exit code."""
    faulthandler.enable()  # where a crash of a library happened goes to the run's trainer.log
    channel = Channel()
    try:
        run = open_run(Path(sys.argv[1]))
        with run.writing(SECONDS_TO_SAVE):  # one that lost its supervisor while it was starting may have come first
            run.remove_leftovers()
            try:
                return _train(run, channel)
            finally:
                channel.say({"event": "peak", "bytes": peak_so_far(system_reader(), os.getpid())})
    except (LowmemSeqError, OSError) as error:
        return channel.say_failure(error)


def _train(run: RunFolder, channel: Channel) -> int:
    """Train from the newest checkpoint on, under the plan's limit; return the exit code."""
    from lowmem_seq.training.session import find_world, open_training, read_plan, take_up_newest

    plan = read_plan(run)
    limit = system_limit()
    limited = plan.data_limit_bytes is not None and limit.set(plan.data_limit_bytes)
    training: Training | None = None
    world: World | None = None
    try:
        with telling_others(lambda: world):
            world = find_world(run, plan, channel)
            training = open_training(run, plan, channel, limit=limit if limited else None, ranks=world)
            if world is not None:
                world.record(training.journal, training.batch)
            take_up_newest(training)
            finished = training.go(kept_by=limit.name if limited else None)
            if world is not None:
                world.part()
    except RankLost as lost:
        if training is not None:
            save_what_is_whole(training, lost)
        raise
    except StartAnew as wish:
        if training is not None:
            training.source.end(reached=False)  # others need not wait for what this machine has done
        leave(training, run, channel, limit, wish, for_want_of_memory=False)
        return START_ANEW
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error, limited):
            raise
        leave(training, run, channel, limit, error, for_want_of_memory=True)
        return START_ANEW
    training.journal.record(
        "session_ended",
        state="finished" if finished else "stopped",
        step=training.state.counters.step,
        wall_seconds=training.journal.wall_seconds(),
    )
    training.journal.end_tracking()
    return 0 if finished else StoppedError.exit_code


@contextlib.contextmanager
def telling_others(world: Callable[[], World | None]) -> Iterator[None]:
    """Tell the ranks of a world, once there is one, why this one leaves before the end."""
    try:
        yield
    except BaseException as error:
        ranks = world()
        if ranks is not None:
            ranks.leave(str(error) or type(error).__name__)
        raise


def world_is_open() -> bool:
    """Whether this process is still one of a world, or was about to be: it then left before the others."""
    return any(thread.name == EXCHANGE for thread in threading.enumerate())


if __name__ == "__main__":
    code = main()
    if world_is_open():  # a thread may wait for a rank that is gone, and a usual end would wait for that thread
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
