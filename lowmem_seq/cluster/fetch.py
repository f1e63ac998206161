"""Has the host's packed images in this machine's cache: `python -m lowmem_seq.cluster.fetch RUN_DIR`.

They are taken from the cache where they are there, whatever they came from, or else fetched from the hub, as the
weights will be. What came stays in the cache when that breaks off (data/arriving.py), and the next session goes on
from there. It speaks JSON lines: `fetching`, `fetched` if anything came, then `packed`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowmem_seq.channel import Channel
from lowmem_seq.cluster.client_end import ClientEnd
from lowmem_seq.cluster.knock import SECONDS_TO_ANSWER, hello_of
from lowmem_seq.cluster.membership import read_membership
from lowmem_seq.cluster.pack_reader import PackReader
from lowmem_seq.cluster.token import token_from_environment
from lowmem_seq.data.arriving import ArrivingPack
from lowmem_seq.data.cache import one_at_a_time, remove_leftovers
from lowmem_seq.data.pack import Pack, PackDescription
from lowmem_seq.data.prepare import disk_errors_explained, kept_pack, require_space
from lowmem_seq.errors import DataError, LowmemSeqError
from lowmem_seq.runs.folder import RunFolder, open_run

SECONDS_BETWEEN_MESSAGES = 0.25
Say = Callable[[dict[str, Any]], None]


def main() -> int:
    """Have the images of the run whose folder is named on the command line; return the exit code."""
    channel = Channel(saves=False)
    try:
        pack = have(open_run(Path(sys.argv[1])), channel.say)
    except LowmemSeqError as error:
        channel.say_error(error)
        return error.exit_code
    channel.say({"event": "packed", "pack": str(pack.folder), "fingerprint": pack.fingerprint})
    return 0


def have(run: RunFolder, say: Say) -> Pack:
    """Return the pack that the host of a run has, from the cache or from the hub.

    Raises:
        ClusterError: the hub refuses this machine, is gone for too long, or sends what can't be.
        DataError: it is not in the cache, and there is no host; or the disk has no room; or what came is damaged.
        UsageError: there is no token.
    """
    size, record = run.config.data.image_size, run.read_json(run.data_file)
    known = None if record is None else str(record["fingerprint"])
    pack = None if known is None else kept_pack(known, size)
    if pack is not None:
        return pack
    part = read_membership(run)
    if part is None or part.hosts:
        raise DataError(
            "the images of this run are those of another machine that hosted, and are not in this one's cache.",
            f"{run.resume_command} --data PATH   with the same images; --join IP:PORT, without it, fetches them",
        )
    remove_leftovers()
    with disk_errors_explained(), ClientEnd(token_from_environment(), part.address, part.port) as end:
        end.connect(SECONDS_TO_ANSWER)
        reader = PackReader(end, hello_of(run, part), lambda: say({"event": "fetch_cut_off"}), run.resume_command)
        description = reader.describe(size)
        with one_at_a_time(description.fingerprint, lambda: say(_does("waiting for another run that fetches it"))):
            return kept_pack(description.fingerprint, size) or _fetched(reader, description, say)


def _fetched(reader: PackReader, description: PackDescription, say: Say) -> Pack:
    """Return the pack once all of it came and is what was told; what an earlier try left is taken up."""
    said_at = 0.0

    def report(message: dict[str, Any]) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= SECONDS_BETWEEN_MESSAGES:
            said_at = time.monotonic()
            say(message)

    with ArrivingPack(description, lambda done: report(_does("checking what came before", done))) as arriving:
        had_bytes, began = arriving.here_bytes, time.monotonic()
        require_space(arriving.total_bytes - had_bytes)
        while (missing := arriving.missing) is not None:
            for piece in reader.read(*missing):
                arriving.append(piece)
                seconds = time.monotonic() - began
                report(
                    {
                        "event": "fetching",
                        "done": arriving.here_bytes,
                        "total": arriving.total_bytes,
                        "bytes_per_second": (arriving.here_bytes - had_bytes) / max(seconds, 0.001),
                    }
                )
        pack = arriving.finish()
    came_bytes, seconds = arriving.total_bytes - had_bytes, time.monotonic() - began
    told = {
        "fingerprint": pack.fingerprint,
        "bytes": came_bytes,
        "had_bytes": had_bytes,
        "seconds": round(seconds, 3),
    }
    say({"event": "fetched", **told})
    return pack


def _does(what: str, done: int = 0) -> dict[str, Any]:
    return {"event": "packing", "what": what, "done": done, "total": None}


if __name__ == "__main__":
    sys.exit(main())
