"""The trainer as a process of its own: `python -m lowmem_seq.training RUN_DIR`.

It is started by the supervisor, speaks JSON lines (see channel.py), and ends with the exit codes of errors.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lowmem_seq.channel import Channel
from lowmem_seq.errors import LowmemSeqError, StoppedError
from lowmem_seq.runs.folder import open_run


def main() -> int:
    """Train the run whose folder is named on the command line; return the exit code."""
    channel = Channel()
    try:
        from lowmem_seq.training.session import load_newest, open_training, read_plan

        run = open_run(Path(sys.argv[1]))
        training = open_training(run, read_plan(run), channel)
        load_newest(training)
        finished = training.go()
        training.journal.record(
            "session_ended",
            state="finished" if finished else "stopped",
            step=training.state.counters.step,
            wall_seconds=training.journal.wall_seconds(),
        )
    except LowmemSeqError as error:
        channel.say_error(error)
        return error.exit_code
    return 0 if finished else StoppedError.exit_code


if __name__ == "__main__":
    sys.exit(main())
