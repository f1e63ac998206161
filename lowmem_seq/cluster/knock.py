"""Asks a hub whether it would take this machine: `python -m lowmem_seq.cluster.knock RUN_DIR`.

Before a machine packs data and measures for minutes, it asks. What is not known yet (the data's fingerprint, the
model's layout) is left out, and compared when it comes to train. The hub counts a machine that knocks as none.
"""

from __future__ import annotations

import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from lowmem_seq import __version__
from lowmem_seq.channel import Channel
from lowmem_seq.cluster.client_end import ClientEnd, Line
from lowmem_seq.cluster.membership import Membership, read_membership
from lowmem_seq.cluster.messages import Bye, GoAway, Hello, Refused, Welcome
from lowmem_seq.cluster.refusals import refused, sent_away
from lowmem_seq.cluster.token import token_from_environment
from lowmem_seq.errors import ClusterError, LowmemSeqError
from lowmem_seq.runs.folder import RunFolder, open_run

SECONDS_TO_ANSWER = 45.0
"""With the start of a process and its imports, that is within the minute in which a wrong launch is told."""


def main() -> int:
    """Knock for the run whose folder is named on the command line; return the exit code."""
    channel = Channel(saves=False)
    try:
        run = open_run(Path(sys.argv[1]))
        welcome = knock(run, SECONDS_TO_ANSWER)
    except LowmemSeqError as error:
        channel.say_error(error)
        return error.exit_code
    peers = [{name: getattr(peer, name) for name in peer.__struct_fields__} for peer in welcome.peers]
    channel.say({"event": "answered", "accepted": welcome.base.accepted, "total": welcome.total, "peers": peers})
    return 0


def knock(run: RunFolder, seconds: float) -> Welcome:
    """Return what the hub says to this machine.

    Raises:
        ClusterError: nobody answers, or the hub refuses this machine.
        UsageError: there is no token.
    """
    part = read_membership(run)
    assert part is not None
    hello = hello_of(run, part)
    until = time.monotonic() + seconds
    with ClientEnd(token_from_environment(), part.address, part.port) as end:
        end.connect(seconds)
        end.send(hello)
        while (left := until - time.monotonic()) > 0:
            received = end.receive(left)
            if received is Line.UP:
                end.send(hello)
            if received is None or isinstance(received, Line):
                continue
            if isinstance(received.message, Welcome):
                end.send(Bye("stopped", ""))
                return received.message
            if isinstance(received.message, Refused):
                raise refused(received.message)
            if isinstance(received.message, GoAway):
                raise sent_away(received.message)
    raise ClusterError(
        f"the hub at {part.address}:{part.port} did not answer within {seconds:.0f} s.",
        "is it another program that listens there?",
    )


def hello_of(run: RunFolder, part: Membership) -> Hello:
    """Return what a machine says of itself before it trains."""
    config, data = run.config, run.read_json(run.data_file)
    return Hello(
        machine=part.machine,
        machine_key=part.machine_key,
        name=part.name,
        program=__version__,
        torch=version("torch"),
        python=platform.python_version(),
        system=platform.system(),
        experiment=config.experiment_hash(),
        data=None if data is None else str(data["fingerprint"]),
        layout=None,
        device="",
        precision="",
        effective_batch=config.recipe.effective_batch,
        samples_per_second=0.0,
        base=None,
    )


if __name__ == "__main__":
    sys.exit(main())
