"""The hub as the process that a supervisor starts, with real connections over the loopback."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from lowmem_seq.cluster.client_end import ClientEnd, Line
from lowmem_seq.cluster.compression import CODECS
from lowmem_seq.cluster.deltas import Parcel
from lowmem_seq.cluster.frames import Payload, Received
from lowmem_seq.cluster.hub_end import HubEnd
from lowmem_seq.cluster.layout import Floats
from lowmem_seq.cluster.messages import (
    Beat,
    Bye,
    DeltaPiece,
    Finished,
    FromClient,
    FromHub,
    GoAway,
    Hello,
    Leased,
    LedgerTold,
    Peers,
    Progress,
    Range,
    Refused,
    UpdatePiece,
    UploadPiece,
    UploadWanted,
    Want,
    WeightsPiece,
    WeightsWanted,
    Welcome,
)
from lowmem_seq.cluster.pieces import Cutter
from lowmem_seq.cluster.serving import Serving
from lowmem_seq.cluster.token import TOKEN_VARIABLE, new_token
from lowmem_seq.cluster.wire import Sent
from lowmem_seq.errors import ClusterError
from tests.cluster.hubs import HOST, JOINER, LAYOUT, SETTINGS, constant, hello_of, parcels_in, prepare, serving
from tests.cluster.vectors import content_of, flat_layout, parcel_of
from tests.cluster.wires import TOKEN

SECONDS = 20.0
SOON = msgspec.structs.replace(SETTINGS, round_seconds=2.0, beat_seconds=0.2, lost_after_seconds=2.0)
Kind = TypeVar("Kind", bound=FromHub)


class Process:
    """A hub, and what it says to its supervisor."""

    def __init__(self, folder: Path, code: str = TOKEN.code) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lowmem_seq.cluster.hub", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, TOKEN_VARIABLE: code, "OMP_NUM_THREADS": "1"},
        )
        self.events: list[dict[str, Any]] = []
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))

    def await_event(self, name: str, seconds: float = SECONDS) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            event = self._lines.get(timeout=max(0.01, deadline - time.monotonic()))
            self.events.append(event)
            if event["event"] == name:
                return event

    def stop(self) -> int:
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.write("stop\n")
            self.process.stdin.flush()
        return self.process.wait(SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(SECONDS)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


Start = Callable[[], Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts hubs of one run; they end with the test."""
    started: list[Process] = []

    def make() -> Process:
        started.append(Process(tmp_path))
        return started[-1]

    yield make
    for one in started:
        one.close()


class Player:
    """A machine that is played: it says what a test has it say, and beats while it waits."""

    def __init__(self, port: int, machine: str) -> None:
        self.machine, self.client = machine, ClientEnd(TOKEN, "127.0.0.1", port)
        self.said: list[tuple[FromHub, tuple[bytes, ...]]] = []
        self.ever: list[FromHub] = []
        self.knows: tuple[Progress, ...] = ()
        """Leases that its beats tell of."""
        self.client.connect(SECONDS)

    def say(self, message: FromClient, *payloads: Payload) -> None:
        deadline = time.monotonic() + SECONDS
        while self.client.send(message, payloads) is Sent.FULL:
            assert time.monotonic() < deadline
            self.listen(0.01)

    def listen(self, seconds: float) -> None:
        heard = self.client.receive(seconds)
        if isinstance(heard, Received):
            self.said.append((heard.message, heard.payloads))
            self.ever.append(heard.message)

    def hear(self, kind: type[Kind], seconds: float = SECONDS) -> Kind:
        """Wait for a message of a kind that was not looked at yet, and forget those before it."""
        deadline = time.monotonic() + seconds
        while True:
            while self.said:
                message, _ = self.said.pop(0)
                if isinstance(message, kind):
                    return message
            assert time.monotonic() < deadline, f"no {kind.__name__} within {seconds:g} s"
            if self.client.up:
                self.client.send(Beat(None, "training", 100.0, self.knows))
            self.listen(0.1)

    def weights(self, elements: int = LAYOUT.elements) -> Floats:
        """Ask for the weights, and return them."""
        self.say(WeightsWanted(None, "weights", 0))
        return content_of(self.vector(WeightsPiece, elements))

    def update(self, elements: int = LAYOUT.elements) -> Floats:
        return content_of(self.vector(UpdatePiece, elements))

    def vector(self, kind: type[WeightsPiece] | type[UpdatePiece], elements: int = LAYOUT.elements) -> Parcel:
        deadline = time.monotonic() + SECONDS
        while not any(isinstance(said, kind) and said.index == said.count - 1 for said, _ in self.said):
            assert time.monotonic() < deadline
            self.listen(0.1)
        found = parcels_in(self.said, kind, elements)
        last = max(number for number, (message, _) in enumerate(self.said) if isinstance(message, kind))
        self.said = self.said[last + 1 :]
        return found[0][1]

    def join(self, hello: Hello) -> Welcome:
        self.say(hello)
        return self.hear(Welcome)

    def lease(self) -> list[Range]:
        """Ask for work until there is some."""
        while True:
            self.say(Want(1, 1.0))
            leased = self.hear(Leased)
            if leased.leases:
                return [one.range for one in leased.leases]
            self.listen(0.05)

    def bring(self, ranges: list[Range], change: Floats, number: int) -> None:
        parcel = parcel_of(change, CODECS["fp32"])
        cutter = Cutter(parcel.chunks, parcel.payload)
        samples = sum(one.end - one.start for one in ranges)
        for index in range(cutter.count):
            told = DeltaPiece(
                "fp32", index, cutter.count, parcel.chunks.total_bytes, number, 0, samples, tuple(ranges)
            )
            self.say(told, cutter.piece(index))

    def close(self) -> None:
        self.client.close(0)


@pytest.fixture
def play() -> Iterator[Callable[[int, str], Player]]:
    players: list[Player] = []

    def make(port: int, machine: str) -> Player:
        players.append(Player(port, machine))
        return players[-1]

    yield make
    for player in players:
        player.close()


Play = Callable[[int, str], Player]


def order(total: int = 1000) -> Serving:
    return serving(total=total, settings=SOON)


def test_two_machines_train_a_run_to_its_end(tmp_path: Path, start: Start, play: Play) -> None:
    first_weights = prepare(tmp_path, order(total=200))
    hub = start()
    port = hub.await_event("cluster_open")["port"]
    host, joiner = play(port, HOST), play(port, JOINER)
    welcome = joiner.join(hello_of(JOINER))
    assert (welcome.total, welcome.settings) == (200, SOON)
    host.join(hello_of(HOST))
    for player in (host, joiner):
        assert np.array_equal(player.weights(), first_weights)
        assert player.hear(LedgerTold).base.round == 0
    number = 0
    while not any(isinstance(message, Finished) for message in host.ever):
        number += 1
        assert number < 40
        for player in (host, joiner):
            player.say(Want(1, 1.0))
            ranges = [one.range for one in player.hear(Leased).leases]
            if ranges:
                player.bring(ranges, constant(1.0), number)
                assert np.array_equal(host.update(), constant(1.0))
                assert np.array_equal(joiner.update(), constant(1.0))
        host.listen(0.1)
    assert hub.await_event("finished")["accepted"] == 200
    average = dict(LAYOUT.views(constant(7.0)))
    save_file(average, tmp_path / "model.safetensors")
    for player in (host, joiner):
        player.say(WeightsWanted(None, "average", 0))
        assert np.array_equal(content_of(player.vector(WeightsPiece)), constant(7.0))
        player.say(Bye("finished", ""))
    assert hub.stop() == 0
    rounds = [event for event in hub.events if event["event"] == "round"]
    assert sum(event["samples"] for event in rounds) == 200


def test_another_experiment_is_refused_within_seconds_before_there_are_weights(
    tmp_path: Path, start: Start, play: Play
) -> None:
    prepare(tmp_path, order())
    hub = start()
    port = hub.await_event("cluster_open")["port"]
    joiner = play(port, JOINER)
    joiner.say(hello_of(JOINER, experiment="ffffffff"))
    assert joiner.hear(Refused).field == "experiment"
    assert hub.await_event("refused")["field"] == "experiment"


def test_a_port_that_is_taken_and_a_token_that_is_none_end_the_hub(tmp_path: Path) -> None:
    with HubEnd(new_token(), 0, "*") as other:
        prepare(tmp_path, serving(port=other.port))
        for code, exit_code in ((TOKEN.code, ClusterError.exit_code), ("", 2)):
            hub = Process(tmp_path, code)
            assert hub.await_event("error")["exit_code"] == exit_code
            assert hub.process.wait(SECONDS) == exit_code
            hub.close()


def test_a_hub_that_is_stopped_says_so_and_saves(tmp_path: Path, start: Start, play: Play) -> None:
    prepare(tmp_path, order())
    hub = start()
    port = hub.await_event("cluster_open")["port"]
    host = play(port, HOST)
    host.join(hello_of(HOST))
    weights = host.weights()
    joiner = play(port, JOINER)
    joiner.join(hello_of(JOINER))
    joiner.weights()
    joiner.lease()
    held = host.lease()
    assert hub.process.stdin is not None
    hub.process.stdin.write("stop\n")
    hub.process.stdin.flush()
    host.bring(held, constant(1.0), 1)
    assert np.array_equal(host.update(), constant(1.0))  # nobody else is waited for
    host.say(Bye("stopped", ""))
    assert joiner.hear(GoAway).reason == "stopping"
    assert hub.process.wait(SECONDS) == 0
    again = start()
    assert again.await_event("cluster_ready")["round"] == 1
    back = play(again.await_event("cluster_open")["port"], JOINER)
    back.join(hello_of(JOINER))
    assert np.array_equal(back.weights(), weights + 1.0)


def test_a_supervisor_that_died_stops_the_hub(tmp_path: Path, start: Start) -> None:
    prepare(tmp_path, order())
    hub = start()
    hub.await_event("cluster_open")
    assert hub.process.stdin is not None
    hub.process.stdin.close()
    assert hub.process.wait(SECONDS) == 0


def test_a_machine_that_vanishes_is_lost_and_its_work_goes_to_the_other(
    tmp_path: Path, start: Start, play: Play
) -> None:
    prepare(tmp_path, order())
    hub = start()
    port = hub.await_event("cluster_open")["port"]
    host, joiner = play(port, HOST), play(port, JOINER)
    host.join(hello_of(HOST))
    joiner.join(hello_of(JOINER))
    joiner.weights()
    held = joiner.lease()
    host.weights()
    joiner.close()
    while {peer.machine for peer in host.hear(Peers).peers} != {HOST}:
        pass
    assert hub.await_event("peer_lost")["machine"] == JOINER
    assert host.lease()[0].start == held[0].start


def test_a_hub_that_was_killed_goes_on_from_its_machines(tmp_path: Path, start: Start, play: Play) -> None:
    prepare(tmp_path, order())
    hub = start()
    port = hub.await_event("cluster_open")["port"]
    host = play(port, HOST)
    host.join(hello_of(HOST))
    weights = host.weights()
    for number in range(3):
        host.bring(host.lease(), constant(1.0), number + 1)
        weights += host.update()
        told = host.hear(LedgerTold)
        if number == 0:
            deadline = time.monotonic() + SECONDS
            while not list((tmp_path / "cluster" / "rounds").glob("step-00000000/manifest.json")):
                assert time.monotonic() < deadline
                time.sleep(0.05)
    hub.kill()
    again = start()
    assert again.await_event("cluster_ready")["round"] == 0
    back = play(again.await_event("cluster_open")["port"], HOST)
    welcome = back.join(hello_of(HOST, base=told.base))
    assert (welcome.base.branch != told.base.branch, welcome.base.accepted) == (True, 0)
    back.say(told)
    assert back.hear(UploadWanted).base == told.base
    parcel = parcel_of(weights, CODECS["fp32"])
    back.say(UploadPiece("fp32", 0, 1, parcel.chunks.total_bytes, told.base), parcel.payload(0))
    answer = back.hear(LedgerTold)
    assert (answer.base.accepted, answer.base.round) == (told.base.accepted, told.base.round + 1)
    assert again.await_event("reunion")["discarded"] == 0
    joiner = play(back.client._port, JOINER)
    joiner.join(hello_of(JOINER))
    assert np.array_equal(joiner.weights(), weights)


def test_a_reader_that_stands_still_holds_up_no_other(tmp_path: Path, start: Start, play: Play) -> None:
    layout = flat_layout(8_000_000)  # 32 MB: more than the kernels' buffers hold
    first_weights = prepare(tmp_path, order(), layout)
    hub = start()
    port = hub.await_event("cluster_open")["port"]
    host, joiner = play(port, HOST), play(port, JOINER)
    host.join(hello_of(HOST, layout=layout))
    joiner.join(hello_of(JOINER, layout=layout))
    joiner.say(WeightsWanted(None, "weights", 0))  # and it reads nothing of what comes
    host.weights(layout.elements)
    for number in range(2):
        host.bring(host.lease(), constant(1.0, layout), number + 1)
        host.update(layout.elements)
    whole = content_of(joiner.vector(WeightsPiece, layout.elements))
    assert np.array_equal(whole, first_weights)
    for _ in range(2):
        whole += joiner.update(layout.elements)
    assert np.allclose(whole, first_weights + 2.0)


def test_the_connection_may_break_and_come_back(tmp_path: Path, start: Start, play: Play) -> None:
    prepare(tmp_path, order())
    hub = start()
    port = hub.await_event("cluster_open")["port"]
    host = play(port, HOST)
    host.join(hello_of(HOST))
    host.weights()
    base = host.hear(LedgerTold).base
    held = host.lease()
    host.close()
    again = play(port, HOST)
    again.knows = (Progress(0, 0),)
    assert again.join(hello_of(HOST, base=base)).base == base
    assert again.hear(LedgerTold).base == base
    again.bring(held, constant(1.0), 1)
    again.update()
    assert hub.await_event("round")["samples"] == sum(one.end - one.start for one in held)
    assert again.client.receive(0) is not Line.DOWN
