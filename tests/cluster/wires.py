"""What tests of the wire are made of: a message of each kind, a relay that records, and an end that is at hand."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Literal

from lowmem_seq.cluster.client_end import ClientEnd, Line
from lowmem_seq.cluster.frames import Received
from lowmem_seq.cluster.hub_end import Arrived, HubEnd
from lowmem_seq.cluster.messages import (
    Base,
    Beat,
    Bye,
    DeltaPiece,
    Finished,
    FromClient,
    FromHub,
    GoAway,
    Hello,
    Lease,
    Leased,
    LedgerTold,
    Merged,
    PackPiece,
    PackWanted,
    Peer,
    Peers,
    Probe,
    Probed,
    Progress,
    Range,
    Refused,
    Settings,
    UpdatePiece,
    UploadPiece,
    UploadWanted,
    Want,
    WeightsPiece,
    WeightsWanted,
    Welcome,
)
from lowmem_seq.cluster.token import Token, machine_id

SECONDS_TO_ARRIVE = 20.0
TOKEN = Token(0x2_0123_4567_89AB_CDEF_0123_4567_89AB_CDEF)
KEY = "00112233445566778899aabbccddeeff"
MACHINE = machine_id(KEY)
PACK = "0f" * 32
BASE = Base("00c1a5be", "b4a2c400", 7, 4480)
PEER = Peer(MACHINE, "MacBook Büro", "mps", "fp32", 128, 812.5, 2560, "training")


def hello(key: str = KEY, machine: str = "") -> Hello:
    return Hello(
        machine=machine or machine_id(key),
        machine_key=key,
        name="MacBook Büro",
        program="0.1.0",
        torch="2.13.0",
        python="3.12.1",
        system="Darwin arm64",
        experiment="e0e0e0e0e0e0e0e0",
        data="d0d0d0d0d0d0d0d0",
        layout="10a70a70a70a70a7",
        device="mps",
        precision="fp32",
        effective_batch=128,
        samples_per_second=812.5,
        base=BASE,
    )


def weights(index: int, count: int, size: int) -> WeightsPiece:
    return WeightsPiece("fp32", index, count, count * size, "weights", BASE)


FROM_CLIENT: list[tuple[FromClient, tuple[bytes, ...]]] = [
    (hello(), ()),
    (Beat(7, "training", 812.5, (Progress(3, 640),)), ()),
    (Want(12, 30.0), ()),
    (DeltaPiece("int8", 1, 2, 7, 5, 7, 1280, (Range(4480, 5120), Range(6400, 7040))), (b"\x00\x7f\x80",)),
    (WeightsWanted(BASE, "weights", 0), ()),
    (WeightsWanted(None, "average", 29), ()),
    (LedgerTold(BASE, '{"format_version":1}'), ()),
    (UploadPiece("fp32", 0, 1, 4, BASE), (b"\x00\x00\x80\x3f",)),
    (PackWanted(None, "description", 0), ()),
    (PackWanted(PACK, "train.images", 701), ()),
    (Bye("stopped", "Ctrl+C"), ()),
    (Probe(3, 262_144), ()),
    (Probe(4, 0), (b"\x00\x00\x80\x3f",)),
]
HEARD_BY_THE_HUB = [said for said in FROM_CLIENT if not isinstance(said[0], Probe)]
"""What its end hands on; it answers probes by itself."""
FROM_HUB: list[tuple[FromHub, tuple[bytes, ...]]] = [
    (
        Welcome(BASE, 1_800_000, Settings(30.0, 1.0, 5.0, "int8", 4, "momentum", 0.5, 0.9), (PEER,)),
        (),
    ),
    (Refused("data", "d0d0d0d0", "d1d1d1d1", "lowmem-seq data list"), ()),
    (Leased(12, (Lease(3, Range(5120, 6400), 60.0),), None), ()),
    (Leased(13, (), 2.5), ()),
    (weights(0, 2, 4), (b"\x00\x00\x80\x3f",)),
    (UpdatePiece("bf16", 0, 1, 2, 6, BASE, (Merged(MACHINE, 5, 1280),)), (b"\x80\x3f",)),
    (LedgerTold(BASE, '{"format_version":1}'), ()),
    (PackPiece(PACK, "test.labels", 0, 4), (b"\x03\x00\x00\x00",)),
    (UploadWanted(BASE), ()),
    (Peers(7, 4480, (PEER,)), ()),
    (Finished(BASE), ()),
    (Probed(3, 1_795_000_000.5, "0.1.0", "2.13.0", "3.12.1", "Darwin arm64"), (b"\x00\x00\x80\x3f",)),
    (GoAway("stopping", "the host ends"), ()),
]


def hear(client: ClientEnd, seconds: float = SECONDS_TO_ARRIVE) -> FromHub:
    """The next message, whatever happens to the line meanwhile."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        heard = client.receive(deadline - time.monotonic())
        if isinstance(heard, Received):
            return heard.message
    raise AssertionError(f"nothing came in {seconds} s: {client.trouble}")


def await_line(client: ClientEnd, wanted: Line, seconds: float = SECONDS_TO_ARRIVE) -> None:
    deadline = time.monotonic() + seconds
    while client.receive(max(0.0, deadline - time.monotonic())) is not wanted:
        assert time.monotonic() < deadline, f"not {wanted} within {seconds} s: {client.trouble}"


def introduce(hub: HubEnd, client: ClientEnd, key: str = KEY) -> Arrived:
    """Have the client connect and say hello, and the hub hear it."""
    client.connect(SECONDS_TO_ARRIVE)
    client.send(hello(key))
    arrived = hub.receive(SECONDS_TO_ARRIVE)
    assert arrived is not None
    assert arrived.message == hello(key)
    return arrived


Way = Literal["up", "down"]


class Relay:
    """A TCP relay to the hub that records what passes, up (to the hub) and down, and fails as one wishes."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.recorded: dict[Way, bytearray] = {"up": bytearray(), "down": bytearray()}
        self.silent = False
        """Whether what comes is swallowed, while both connections stay open."""
        self._open: list[socket.socket] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.create_connection(("127.0.0.1", self._target))
                self._open += [ours, theirs]
                threading.Thread(target=self._pass_on, args=(ours, theirs, "up"), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(theirs, ours, "down"), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, way: Way) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self.silent:
                    self.recorded[way] += data
                    target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Break all connections."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def say_to_client(self, data: bytes) -> None:
        """Put bytes into the newest connection, between what the hub says."""
        self._open[-2].sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
