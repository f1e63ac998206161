"""The real hub's process, serving a fresh run to which no machine has said hello."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowmem_seq.cluster import opening
from lowmem_seq.cluster.membership import take_part
from lowmem_seq.data.pack import Pack
from tests.builders import free_port, make_run, read_line, tiny_config


@contextmanager
def fresh_hub(folder: Path, pack: Pack) -> Iterator[int]:
    """Give the port of a hub with the token in LOWMEM_SEQ_TOKEN; it is stopped at the end."""
    port = free_port()
    host = make_run(folder, pack, tiny_config("steps=5"))
    take_part(host, "host", "127.0.0.1", port)
    opening.write(host)
    words = [sys.executable, "-m", "lowmem_seq.cluster.hub", str(host.path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as hub:
        assert '"cluster_open"' in read_line(hub)
        yield port
        hub.communicate("stop\n")
