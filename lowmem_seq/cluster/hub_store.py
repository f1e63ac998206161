"""The hub's state on disk: the common weights, what the outer step keeps, and the ledger, all of one round.

It is saved by a thread of its own while the hub goes on with everything but merges, so nothing is copied and nobody
waits: rounds are half a minute apart, and a save of 54M parameters takes seconds.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lowmem_seq.checkpoint.header import read_shapes
from lowmem_seq.checkpoint.store import CheckpointStore, Retention, Tell
from lowmem_seq.cluster.compression import CHUNK
from lowmem_seq.cluster.layout import Floats, Layout
from lowmem_seq.cluster.serving import CLUSTER_FOLDER, RESTORE_HINT, ROUNDS_FOLDER
from lowmem_seq.errors import NoCheckpointError
from lowmem_seq.files import read_json, write_json

VECTORS, LEDGER, LAYOUT = "vectors.safetensors", "ledger.json", "layout.json"
LARGEST_JSON_BYTES = 2**25
SAVE_EVERY_SECONDS = 120.0
LARGEST_SHARE = 0.01
"""Of the time that saves may take."""


@dataclass(frozen=True)
class Saved:
    """A hub's state after a round. Shapes of the vectors: each (elements,)."""

    round: int
    layout: Layout
    vectors: Mapping[str, Floats]
    """What `SharedWeights.state` returns."""
    ledger: Any
    """What `Ledger.to_json` returns."""


@dataclass(frozen=True)
class Found:
    """A state on disk that verifies."""

    round: int
    layout: Layout
    ledger: Any
    path: Path

    def read_into(self, vectors: Mapping[str, Floats]) -> None:
        """Copy what was saved over these, as far as it has them: the outer step may have a momentum since.

        Shapes:
            each: (elements,)
        """
        path = self.path / VECTORS
        there = read_shapes(path).keys()
        read_into({name: vector for name, vector in vectors.items() if name in there}, path)


class HubStore:
    """The saved rounds of one run.

    Args:
        run_folder: the run's; its folder for the cluster is there.
        identity: what they belong to.
    """

    def __init__(self, run_folder: Path, identity: Mapping[str, str]) -> None:
        self._store = CheckpointStore(run_folder / CLUSTER_FOLDER / ROUNDS_FOLDER, Retention(2))
        self._identity = identity

    def load(self, tell: Tell) -> Found | None:
        """Return the newest state that verifies; None where none was ever saved.

        Raises:
            NoCheckpointError: there are some, and none verifies.
            UsageError: they belong to another experiment.
        """
        found = self._store.newest_valid(self._identity, tell)
        if found is None:
            return None
        try:
            layout = Layout.of_shapes(read_json(found.path / LAYOUT, LARGEST_JSON_BYTES))
            ledger = read_json(found.path / LEDGER, LARGEST_JSON_BYTES)
        except ValueError as error:
            raise NoCheckpointError(f"{found.path} can't be read: {error}", RESTORE_HINT) from error
        return Found(found.step, layout, ledger, found.path)

    def save(self, saved: Saved) -> None:
        """Write a state; those before the last two are deleted.

        Raises:
            OSError: what the disk said; what was saved before stands.
        """
        shapes = {name: list(shape) for name, shape in zip(saved.layout.names, saved.layout.shapes, strict=True)}
        self._store.save(
            saved.round,
            {
                VECTORS: lambda path: save_file(dict(saved.vectors), path),
                LEDGER: lambda path: write_json(path, saved.ledger),
                LAYOUT: lambda path: write_json(path, shapes),
            },
            self._identity,
            expected_bytes=sum(vector.nbytes for vector in saved.vectors.values()) + 2**20,
        )


class Saver:
    """Saves now and then, in a thread. While it is `busy` the vectors must stay as they are.

    Args:
        store: where to.
        clock: seconds that only grow.
        wake: called from the thread when a save has ended.
    """

    def __init__(self, store: HubStore, clock: Callable[[], float], wake: Callable[[], None]) -> None:
        self._store, self._clock, self._wake = store, clock, wake
        self._thread: threading.Thread | None = None
        self._not_before = 0.0
        self._round: int | None = None
        self._failure: OSError | None = None
        self._refused = False

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    def is_due(self, round_: int, soon: bool = False) -> bool:
        """Whether this round is to be saved now; `soon` does not wait, unless the disk has refused."""
        in_time = self._clock() >= self._not_before or (soon and not self._refused)
        return not self.busy and round_ != self._round and in_time

    def begin(self, saved: Saved) -> None:
        """Begin a save; `busy` tells when it has ended."""
        self.wait()
        self._thread = threading.Thread(target=self._save, args=(saved,), name="saver")
        self._thread.start()

    def wait(self) -> None:
        """Return when no save is under way."""
        if self._thread is not None:
            self._thread.join()

    def take_failure(self) -> OSError | None:
        """Return, once, why the last save failed; None: it didn't."""
        failure, self._failure = self._failure, None
        return failure

    def _save(self, saved: Saved) -> None:
        began = time.monotonic()
        try:
            self._store.save(saved)
            self._round, self._refused = saved.round, False
        except (OSError, SafetensorError) as error:
            self._failure, self._refused = error if isinstance(error, OSError) else OSError(str(error)), True
        took = time.monotonic() - began
        self._not_before = self._clock() + max(SAVE_EVERY_SECONDS, took / LARGEST_SHARE)
        self._wake()


def read_into(target: Mapping[str, Floats], path: Path) -> None:
    """Copy float32 tensors of a file over those that are there, a chunk at a time where they are flat.

    Raises:
        NoCheckpointError: the file can't be read, or lacks one of them; nothing was copied.
    """
    found = read_shapes(path)
    for name, values in target.items():
        if found.get(name) != ("F32", values.shape):
            raise NoCheckpointError(f"{path} has no float32 tensor {name} {values.shape}", RESTORE_HINT)
    with safe_open(path, "numpy") as file:
        for name, values in target.items():
            if values.ndim != 1:
                np.copyto(values, file.get_tensor(name))
                continue
            part = file.get_slice(name)
            for start in range(0, values.size, CHUNK):
                stop = min(start + CHUNK, values.size)
                values[start:stop] = part[start:stop]


def ledger_text(ledger: Any) -> str:
    """Return a ledger's JSON as it travels: without spaces."""
    return json.dumps(ledger, separators=(",", ":"))
