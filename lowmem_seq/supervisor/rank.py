"""The life of a rank's trainer in engine mode: one, and what follows its end is the launcher's to do.

All ranks go on from one checkpoint, so a trainer that died can't be replaced alone. The session ends with an error;
the launcher ends the other ranks, and starts all of them again where it was told to (--max-restarts).
"""

from __future__ import annotations

from lowmem_seq.channel import STOP_SIGNALS
from lowmem_seq.cluster.pulse import START_AGAIN
from lowmem_seq.cluster.rank import Rank
from lowmem_seq.errors import ClusterError
from lowmem_seq.memory.plan import Plan
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.laptop import Laptop
from lowmem_seq.supervisor.screen import Screen
from lowmem_seq.supervisor.signals import StopSignals
from lowmem_seq.supervisor.trainer import LEFT_AT_ONCE, STOPPED, make_smaller, run_trainer


def train_rank(run: RunFolder, rank: Rank, plan: Plan, screen: Screen, stops: StopSignals, laptop: Laptop) -> int:
    """Train as one rank; return 0, 4 (stopped, by whomever, and saved) or 130 (left at once).

    Raises:
        ClusterError: this rank's trainer died, or another rank has ended.
        LowmemSeqError: what the trainer said was wrong.
    """
    ending = run_trainer(run, plan, screen, stops, laptop)
    if ending.code in (0, STOPPED):  # one rank's stop is that of all
        return ending.code
    if stops.count > 1:
        run.events.append("session_ended", state="crashed", cause="left at once on a second signal")
        return LEFT_AT_ONCE
    if stops.count and -ending.code in STOP_SIGNALS:
        run.events.append("session_ended", state="stopped", cause="asked for while the trainer was starting")
        return STOPPED
    run.events.append("session_ended", state="crashed", cause=ending.cause)
    if ending.for_want_of_memory:
        make_smaller(run, plan, ending)
    if ending.error is not None and not ending.died:
        raise ending.error
    raise ClusterError(f"{rank}: {ending.cause}.", START_AGAIN)
