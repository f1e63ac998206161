"""A hub without a wire: what machines say is put into its end, and what it says is read from there."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from safetensors.numpy import save_file

from lowmem_seq.cluster.compression import CODECS, Chunks
from lowmem_seq.cluster.deltas import Parcel
from lowmem_seq.cluster.frames import CLIENT_CODEC, HUB_CODEC, Payload
from lowmem_seq.cluster.hub import Hub
from lowmem_seq.cluster.hub_end import Arrived
from lowmem_seq.cluster.layout import Floats, Layout
from lowmem_seq.cluster.messages import (
    Base,
    Beat,
    DeltaPiece,
    Encoding,
    FromClient,
    FromHub,
    GoAway,
    Hello,
    Leased,
    Progress,
    Range,
    Reason,
    Settings,
    State,
    UpdatePiece,
    UploadPiece,
    Want,
    WeightsPiece,
    WeightsWanted,
)
from lowmem_seq.cluster.pieces import Assembly, Cutter
from lowmem_seq.cluster.serving import CLUSTER_FOLDER, START_FILE, Serving, write_serving
from lowmem_seq.cluster.token import machine_id
from lowmem_seq.cluster.wire import Sent
from tests.cluster.clocks import Clock
from tests.cluster.vectors import parcel_of, vector_of
from tests.cluster.wires import hello

KEYS = {name: f"{number:02x}" * 16 for number, name in enumerate(("host", "joiner", "third"), start=1)}
HOST, JOINER, THIRD = (machine_id(key) for key in KEYS.values())
NAMES = dict(zip((HOST, JOINER, THIRD), KEYS, strict=True))
SETTINGS = Settings(30.0, 1.0, 5.0, "fp32", 0, "plain", 1.0, 0.0)
SHAPES = {"body.weight": [300, 3], "head.bias": [10]}
LAYOUT = Layout.of_shapes(SHAPES)
BATCH = 10

Kind = TypeVar("Kind", bound=FromHub)


def serving(total: int = 1000, **changes: Any) -> Serving:
    said = hello()
    assert said.data is not None
    one = Serving(1, 0, HOST, said.program, said.experiment, said.data, total, 500, SETTINGS)
    return msgspec.structs.replace(one, **changes)


def write_start(run_folder: Path, layout: Layout = LAYOUT, seed: int = 0) -> Floats:
    """Write the first weights, as the host's trainer does; return them as one vector."""
    flat = vector_of(layout.elements, seed, spread=1.0)
    (run_folder / CLUSTER_FOLDER).mkdir(exist_ok=True)
    save_file(dict(layout.views(flat)), run_folder / CLUSTER_FOLDER / START_FILE)
    return flat


def prepare(run_folder: Path, what: Serving | None = None, layout: Layout = LAYOUT) -> Floats:
    """Make the folder that a hub is started with; return the first weights."""
    write_serving(run_folder, what or serving())
    return write_start(run_folder, layout)


def hello_of(machine: str, base: Base | None = None, layout: Layout = LAYOUT, **changes: Any) -> Hello:
    said = hello(KEYS[NAMES[machine]])
    told = {
        "name": NAMES[machine],
        "base": base,
        "layout": layout.fingerprint(),
        "effective_batch": BATCH,
        "samples_per_second": 100.0,
    }
    return msgspec.structs.replace(said, **{**told, **changes})


class FakeEnd:
    """Takes the place of HubEnd."""

    def __init__(self) -> None:
        self.inbox: deque[Arrived] = deque()
        self.said: dict[str, list[tuple[FromHub, tuple[bytes, ...]]]] = {}
        self.room: dict[str, int] = {}
        """How many messages a machine takes before it is full; it is endless where nothing is said."""
        self.gone: set[str] = set()
        self.bytes_sent: Counter[str] = Counter()
        self.bytes_received: Counter[str] = Counter()

    def receive(self, timeout_seconds: float) -> Arrived | None:
        return self.inbox.popleft() if self.inbox else None

    def send(self, machine: str, message: FromHub, payloads: Sequence[Payload] = ()) -> Sent:
        HUB_CODEC.encode(message, payloads)
        if machine in self.gone:
            return Sent.GONE
        if self.room.get(machine) == 0:
            return Sent.FULL
        if machine in self.room:
            self.room[machine] -= 1
        self.said.setdefault(machine, []).append((message, tuple(bytes(one) for one in payloads)))
        return Sent.QUEUED

    def drop(self, machine: str, reason: Reason = "dropped", text: str = "") -> None:
        self.said.setdefault(machine, []).append((GoAway(reason, text), ()))

    def wake(self) -> None:
        pass


class Stage:
    """A hub, a clock, and what was said."""

    def __init__(self, run_folder: Path, what: Serving | None = None) -> None:
        self.folder, self.clock, self.end = run_folder, Clock(), FakeEnd()
        self.events: list[dict[str, Any]] = []
        self.hub = Hub(run_folder, what or serving(), self.end, self.events.append, self.clock)

    def step(self, seconds: float = 0.0) -> None:
        self.clock.go_on(seconds)
        self.hub.close()  # a save that is under way puts a merge off
        self.hub.step(0)

    def pass_by(self, seconds: float, beat: Callable[[], None] = lambda: None) -> None:
        """Let time pass, second by second, as it does for a hub."""
        for _ in range(round(seconds)):
            beat()
            self.step(1.0)

    def say(self, machine: str, message: FromClient, *payloads: bytes) -> None:
        CLIENT_CODEC.encode(message, payloads)
        self.end.inbox.append(Arrived(machine, message, payloads))
        self.step()

    def heard(self, machine: str, kind: type[Kind]) -> list[Kind]:
        """What a machine was told of a kind, up to now."""
        return [message for message, _ in self.end.said.get(machine, []) if isinstance(message, kind)]

    def last(self, machine: str, kind: type[Kind]) -> Kind:
        return self.heard(machine, kind)[-1]

    def told(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]

    def forget_said(self) -> None:
        self.end.said.clear()

    def join(self, *machines: str) -> None:
        """Have machines say hello and take the weights."""
        for machine in machines:
            self.say(machine, hello_of(machine))
            self.say(machine, WeightsWanted(None, "weights", 0))
            self.say(machine, Beat(None, "training", 100.0, ()))

    def beat(self, machine: str, state: State = "training", **progress: int) -> None:
        told = tuple(Progress(int(lease[1:]), done) for lease, done in progress.items())
        self.say(machine, Beat(0, state, 100.0, told))

    def lease(self, machine: str, seconds: float = 1.0) -> list[tuple[int, int]]:
        """Have a machine ask for work; return the ranges."""
        self.say(machine, Want(1, seconds))
        return [(one.range.start, one.range.end) for one in self.last(machine, Leased).leases]

    def bring(
        self,
        machine: str,
        ranges: Sequence[tuple[int, int]],
        change: Floats,
        number: int = 1,
        encoding: Encoding = "fp32",
        pieces: int | None = None,
    ) -> None:
        """Have a machine send a delta, or the first of its pieces."""
        parcel = parcel_of(change, CODECS[encoding])
        cutter = Cutter(parcel.chunks, parcel.payload)
        told = tuple(Range(*one) for one in ranges)
        samples = sum(end - start for start, end in ranges)
        size = parcel.chunks.total_bytes
        for index in range(cutter.count)[:pieces]:
            piece = DeltaPiece(encoding, index, cutter.count, size, number, 0, samples, told)
            self.say(machine, piece, cutter.piece(index))

    def upload(self, machine: str, base: Base, weights: Floats) -> None:
        parcel = parcel_of(weights, CODECS["fp32"])
        cutter = Cutter(parcel.chunks, parcel.payload)
        for index in range(cutter.count):
            piece = UploadPiece("fp32", index, cutter.count, parcel.chunks.total_bytes, base)
            self.say(machine, piece, cutter.piece(index))

    @property
    def base(self) -> Base:
        return self.hub.desk.base

    @property
    def weights(self) -> Floats:
        assert self.hub.desk.rounds is not None
        weights: Floats = self.hub.desk.rounds.weights.base.copy()
        return weights

    def stop(self) -> None:
        """Stop the hub; each look at its clock takes a while."""

        def clock() -> float:
            self.clock.go_on(0.5)
            return self.clock()

        self.hub._clock = clock
        self.hub.stop()


def parcels_in(
    said: Sequence[tuple[FromHub, tuple[bytes, ...]]], kind: type[WeightsPiece] | type[UpdatePiece], elements: int
) -> list[tuple[Base, Parcel]]:
    """The vectors of a kind that a machine was sent as a whole, and what the weights are with each."""
    found = []
    assembly: Assembly | None = None
    for message, payloads in said:
        if isinstance(message, kind):
            if message.index == 0 or assembly is None:
                assembly = Assembly(Chunks(elements, CODECS[message.encoding]))
            assembly.take(message, payloads[0])
            if assembly.is_whole:
                found.append((message.base, assembly.parcel))
    return found


def constant(value: float, layout: Layout = LAYOUT) -> Floats:
    return np.full(layout.elements, value, np.float32)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.01)


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
