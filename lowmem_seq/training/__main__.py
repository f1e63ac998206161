"""The trainer as a process of its own: `python -m lowmem_seq.training RUN_DIR`.

It is started by the supervisor, speaks JSON lines (see channel.py), and ends with the exit codes of errors.py.
"""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path

from lowmem_seq.channel import SECONDS_TO_SAVE, Channel
from lowmem_seq.disk import is_trouble
from lowmem_seq.errors import DiskError, LowmemSeqError, StoppedError
from lowmem_seq.runs.folder import RunFolder, open_run


def main() -> int:
    """Train the run whose folder is named on the command line; return the exit code."""
    faulthandler.enable()  # where a crash of a library happened goes to the run's trainer.log
    channel = Channel()
    try:
        run = open_run(Path(sys.argv[1]))
        with run.writing(SECONDS_TO_SAVE):  # one that lost its supervisor while it was starting may have come first
            run.remove_leftovers()
            return 0 if _train(run, channel) else StoppedError.exit_code
    except LowmemSeqError as error:
        channel.say_error(error)
        return error.exit_code
    except OSError as error:
        if not is_trouble(error):
            raise
        told = DiskError(f"the disk refused: {error}.", "make room on the disk; what was saved before stands")
        channel.say_error(told)
        return told.exit_code


def _train(run: RunFolder, channel: Channel) -> bool:
    """Train from the newest checkpoint on; return whether the end was reached."""
    from lowmem_seq.training.session import open_training, read_plan

    training = open_training(run, read_plan(run), channel)
    training.saver.load_newest()
    finished = training.go()
    training.journal.record(
        "session_ended",
        state="finished" if finished else "stopped",
        step=training.state.counters.step,
        wall_seconds=training.journal.wall_seconds(),
    )
    return finished


if __name__ == "__main__":
    sys.exit(main())
