"""The real hub's process, serving a fresh run to which no machine has said hello."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowmem_seq.cluster import opening
from lowmem_seq.cluster.membership import read_membership, take_part
from lowmem_seq.data.pack import Pack
from lowmem_seq.runs.folder import RunFolder
from tests.builders import free_port, make_run, read_line, tiny_config


@contextmanager
def fresh_hub(folder: Path, pack: Pack) -> Iterator[int]:
    """Give the port of a hub with the token in LOWMEM_SEQ_TOKEN; it is stopped at the end."""
    host = write_host(folder, pack)
    with started_hub(host) as hub:
        part = read_membership(host)
        assert part is not None
        yield part.port
        hub.communicate("stop\n")


def write_host(folder: Path, pack: Pack, *assignments: str) -> RunFolder:
    """Make the run folder of a host, ready for its hub."""
    host = make_run(folder, pack, tiny_config("steps=5", *assignments))
    take_part(host, "host", "127.0.0.1", free_port())
    opening.write(host)
    return host


@contextmanager
def started_hub(host: RunFolder) -> Iterator[subprocess.Popen[str]]:
    """Give the process of a hub that listens; whoever asked for it ends it."""
    words = [sys.executable, "-m", "lowmem_seq.cluster.hub", str(host.path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as hub:
        try:
            assert '"cluster_open"' in read_line(hub)
            yield hub
        finally:
            hub.kill()
