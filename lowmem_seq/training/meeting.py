"""Where the ranks of a world meet: the store that all share, at rank 0's address."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lowmem_seq.cluster.pulse import Store
from lowmem_seq.cluster.rank import Rank
from lowmem_seq.errors import ClusterError, StoppedError

SECONDS_A_TRY = 2.0
NEVER = timedelta(days=7)
"""Torch's own timeouts: who is lost is told by the pulse, and a long save is no reason to end."""


def open_store(rank: Rank, within_seconds: float, stop_requested: Callable[[], bool], makes: bool = False) -> Store:
    """Return a connection of its own to the store.

    Args:
        rank: this process's.
        within_seconds: how long to dial.
        stop_requested: ends the dialling.
        makes: make the store, where no launcher has.

    Raises:
        ClusterError: the port is taken, or rank 0 does not answer.
        StoppedError: a stop was asked for.
    """
    until = time.monotonic() + within_seconds
    place = f"{rank.address}:{rank.port}"
    while True:
        tried = _try(rank, makes)
        if not isinstance(tried, RuntimeError):
            part: Store = prefixed(f"lowmem-seq/{rank.attempt}", tried)
            return part
        if makes:
            raise ClusterError(
                f"rank 0 can't listen at {place}: {str(tried).splitlines()[0]}",
                "give the launcher another port: --master_port of torchrun, --main_process_port of accelerate",
            ) from tried
        if stop_requested():
            raise StoppedError(
                "stopped before the ranks had found each other.", "launch all of them again"
            ) from tried
        if time.monotonic() > until:
            raise ClusterError(
                f"rank 0 did not answer at {place} within {within_seconds:.0f} s.",
                "see what rank 0 says itself, and whether a firewall is in the way",
            ) from tried


def prefixed(prefix: str, store: Any) -> Any:
    """Return a store's part with this prefix, which names nothing outside of it."""
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def _try(rank: Rank, makes: bool) -> Any:
    """Return the store, or what torch says of it."""
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            rank.address,
            rank.port,
            is_master=makes,
            timeout=timedelta(seconds=SECONDS_A_TRY),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        return error
    store.set_timeout(NEVER)
    return store
