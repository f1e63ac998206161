"""Who has no token gets nothing, reads nothing, and disturbs nobody; who has one can't pass for another machine."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
import zmq

from lowmem_seq.cluster import doorman, wire
from lowmem_seq.cluster.client_end import REFUSED_SECONDS, ClientEnd
from lowmem_seq.cluster.frames import CLIENT_CODEC, MOST_PAYLOAD_BYTES, WireError
from lowmem_seq.cluster.hub_end import Arrived, HubEnd
from lowmem_seq.cluster.messages import FromClient, GoAway, Leased, Want
from lowmem_seq.cluster.token import Token, how_to_set, machine_id, new_token
from lowmem_seq.cluster.wire import CURVE_BYTES, Sent, open_socket
from tests.builders import end, read_line, start_python
from tests.cluster.wires import (
    BASE,
    FROM_CLIENT,
    FROM_HUB,
    HEARD_BY_THE_HUB,
    KEY,
    MACHINE,
    SECONDS_TO_ARRIVE,
    TOKEN,
    Relay,
    hear,
    hello,
    introduce,
    weights,
)

MB = 10**6
MOST_GROWTH_BYTES = 64 * MB
"""Of the hub, whatever strangers do: 235 MB without a doorman. With one it was 13 to 28 MB on two busy cores: the
doorman.MOST_YOUNG longest frames are 8.4 MB, and some more come before he looks."""
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
"""ZMTP 3.0, for CURVE: what any stranger can say."""
LONG_FRAME = b"\x06" + MOST_PAYLOAD_BYTES.to_bytes(8, "big")
ENDLESS_FRAME = b"\x06" + (2**63 - 1).to_bytes(8, "big")

HUB = """
import sys
from lowmem_seq.cluster.hub_end import HubEnd
from lowmem_seq.cluster.messages import Leased, Want
from lowmem_seq.cluster.token import parse_token

hub = HubEnd(parse_token(sys.argv[1]), 0, "127.0.0.1")
print(hub.port, flush=True)
said = []
while True:
    arrived = hub.receive(0.2)
    if arrived is None:
        continue
    said.append(type(arrived.message).__name__)
    if isinstance(arrived.message, Want):
        hub.send(arrived.machine, Leased(arrived.message.request, (), 1.0))
        if arrived.message.seconds == 0:
            break
print(hub.strangers, hub.shut_connections, len(hub.machines), *sorted(set(said)), flush=True)
hub.close()
"""


@dataclass
class Talk:
    """A machine that asks the hub all the time, in a thread of its own."""

    client: ClientEnd
    answers: int = 0
    slowest_seconds: float = 0.0
    trouble: str = ""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    def _talk(self) -> None:
        while not self._stop.is_set() and not self.trouble:
            started = time.monotonic()
            self.client.send(Want(self.answers, 1.0))
            heard = self.client.receive(SECONDS_TO_ARRIVE)
            if getattr(heard, "message", None) != Leased(self.answers, (), 1.0):
                self.trouble = f"after {self.answers} answers: {heard}"
            self.answers += 1
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - started)
            time.sleep(0.005)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@dataclass
class Besieged:
    """A hub in a process of its own, and a machine that goes on talking to it."""

    port: int
    process: subprocess.Popen[str]
    talk: Talk

    def __post_init__(self) -> None:
        self._process = psutil.Process(self.process.pid)
        self.before_bytes = self.most_bytes = self._process.memory_info().rss
        self.most_handles = 0

    def look(self) -> None:
        self.most_bytes = max(self.most_bytes, self._process.memory_info().rss)
        count = getattr(self._process, "num_handles" if sys.platform == "win32" else "num_fds")
        self.most_handles = max(self.most_handles, count())

    def watch(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.look()
            time.sleep(0.01)

    def finish(self) -> tuple[int, int]:
        """Check that memory within limits is all they had; return how many strangers came, and were shut out."""
        self.look()
        deadline = time.monotonic() + SECONDS_TO_ARRIVE
        while self.talk.answers < 50 and time.monotonic() < deadline:
            time.sleep(0.01)
        self.talk.stop()
        assert (self.talk.trouble, self.talk.answers >= 50) == ("", True)
        assert self.talk.slowest_seconds < 5
        self.talk.client.send(Want(0, 0.0))
        code, out, err = end(self.process)
        assert (code, err) == (0, "")
        strangers, shut, machines, *kinds = out.split()
        assert (machines, kinds) == ("1", ["Hello", "Want"])
        growth = self.most_bytes - self.before_bytes
        print(
            f"{strangers} strangers, {shut} shut, {growth / MB:.1f} MB more, {self.most_handles} handles, ", end=""
        )
        print(f"{self.talk.answers} answers, the slowest in {self.talk.slowest_seconds:.3f} s")
        assert growth < MOST_GROWTH_BYTES
        return int(strangers), int(shut)


@pytest.fixture
def besieged() -> Iterator[Besieged]:
    process = start_python(HUB, TOKEN.code)
    try:
        port = int(read_line(process))
        with ClientEnd(TOKEN, "127.0.0.1", port) as client:
            client.connect(SECONDS_TO_ARRIVE)
            client.send(hello())
            talk = Talk(client)
            time.sleep(0.3)
            yield Besieged(port, process, talk)
            talk.stop()
    finally:
        process.kill()
        process.communicate()


def knock(port: int, *said: bytes) -> socket.socket:
    """Open a connection and say something; a hub that has hung up is no reason to stop."""
    stranger = socket.create_connection(("127.0.0.1", port), timeout=SECONDS_TO_ARRIVE)
    stranger.settimeout(1)
    with contextlib.suppress(OSError):
        for data in said:
            stranger.sendall(data)
    return stranger


def is_hung_up(stranger: socket.socket, seconds: float) -> bool:
    stranger.settimeout(seconds)
    try:
        while stranger.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


# Without the token


def refusal(token: Token, port: int) -> WireError:
    started = time.monotonic()
    with ClientEnd(token, "127.0.0.1", port) as client, pytest.raises(WireError) as caught:
        client.connect(60)
    assert REFUSED_SECONDS <= time.monotonic() - started < 15
    return caught.value


def test_a_wrong_token_is_an_error_within_seconds_that_says_how_to_set_it(besieged: Besieged) -> None:
    error = refusal(new_token(), besieged.port)
    assert error.message.startswith(f"127.0.0.1:{besieged.port} broke off ")
    assert error.message.endswith(" handshakes: its token is another one, or it is no hub of lowmem-seq")
    assert error.hint == how_to_set()
    strangers, shut = besieged.finish()
    assert 3 <= strangers <= 12
    assert shut == 0


def test_a_program_that_is_no_hub_is_an_error_within_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        error = refusal(TOKEN, listener.getsockname()[1])
        assert "it is no hub of lowmem-seq" in error.message
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def test_a_client_without_any_key_says_nothing_to_the_hub() -> None:
    with HubEnd(TOKEN, 0, "127.0.0.1") as hub, zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.setsockopt(zmq.LINGER, 0)
        plain.connect(f"tcp://127.0.0.1:{hub.port}")
        plain.send_multipart([bytes(frame) for frame in CLIENT_CODEC.encode(hello())])
        assert hub.receive(1) is None
        assert hub.strangers >= 1
        assert plain.poll(0) == 0


def test_the_hubs_key_alone_opens_nothing() -> None:
    """Both halves are asked for: who learned the hub's public key has no client's key yet."""
    public, secret = zmq.curve_keypair()
    with HubEnd(TOKEN, 0, "127.0.0.1") as hub, zmq.Context() as context:
        for keys, known in [
            ((public, secret), False),
            ((TOKEN.client_keys.public, TOKEN.client_keys.secret), True),
        ]:
            with open_socket(context, zmq.DEALER) as dealer:
                dealer.setsockopt(zmq.CURVE_SERVERKEY, TOKEN.hub_keys.public)
                dealer.setsockopt(zmq.CURVE_PUBLICKEY, keys[0])
                dealer.setsockopt(zmq.CURVE_SECRETKEY, keys[1])
                dealer.connect(f"tcp://127.0.0.1:{hub.port}")
                dealer.send_multipart([bytes(frame) for frame in CLIENT_CODEC.encode(hello())])
                assert (hub.receive(SECONDS_TO_ARRIVE if known else 1) is not None) is known


def test_who_lacks_the_token_can_not_stand_in_for_the_hub() -> None:
    with HubEnd(new_token(), 0, "127.0.0.1") as impostor:
        refusal(TOKEN, impostor.port)
        assert impostor.receive(0) is None


# Strangers at the port


def test_garbage_is_hung_up_on_and_disturbs_nobody(besieged: Besieged) -> None:
    draws = np.random.default_rng(7)
    garbage = [
        b"GET / HTTP/1.1\r\nHost: laptop\r\n\r\n" + bytes(200),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        bytes(1000),
        b"\xff" * 1000,
        GREETING + b"\x04\xff" + b"\x05HELLO" + bytes(400),
        GREETING + ENDLESS_FRAME + bytes(1000),
        GREETING + b"\x00\x00" * 500,
        GREETING.replace(b"CURVE", b"PLAIN") + bytes(100),
        GREETING.replace(b"CURVE", b"NULL\0") + bytes(100),
        *(draws.bytes(1000) for _ in range(20)),
        *(GREETING + draws.bytes(1000) for _ in range(20)),
    ]
    for data in garbage:
        with knock(besieged.port, data) as stranger:
            besieged.look()
            with contextlib.suppress(OSError):
                stranger.shutdown(socket.SHUT_WR)
            assert is_hung_up(stranger, SECONDS_TO_ARRIVE), data[:80]
    assert besieged.finish() == (len(garbage), 0)


def test_a_length_that_is_too_long_is_refused_before_anything_is_held(besieged: Besieged) -> None:
    too_long = b"\x06" + (MOST_PAYLOAD_BYTES + CURVE_BYTES + 1).to_bytes(8, "big")
    for frame in (too_long, ENDLESS_FRAME):
        with knock(besieged.port, GREETING + frame) as stranger:
            assert is_hung_up(stranger, 3)  # without any of the frame's bytes
    assert besieged.finish() == (2, 0)


def test_a_slow_sender_is_hung_up_on_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HANDSHAKE_SECONDS", 1.0)
    with HubEnd(TOKEN, 0, "127.0.0.1") as hub, ClientEnd(TOKEN, "127.0.0.1", hub.port) as client:
        introduce(hub, client)
        with knock(hub.port) as stranger:
            started = time.monotonic()
            with contextlib.suppress(OSError):
                for byte in GREETING + LONG_FRAME + bytes(1000):
                    stranger.sendall(bytes([byte]))
                    client.send(Want(1, 1.0))
                    assert hub.receive(SECONDS_TO_ARRIVE) == Arrived(MACHINE, Want(1, 1.0))
                    time.sleep(0.05)
            assert 0.5 < time.monotonic() - started < 5
        assert hub.shut_connections == 0


def siege(besieged: Besieged, *said: bytes) -> int:
    """Open 1,000 connections and keep them; return how many of them the hub still holds."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2000 if hard == resource.RLIM_INFINITY else min(hard, 2000)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    with contextlib.ExitStack() as stack:
        for number in range(1000):
            stack.enter_context(knock(besieged.port, *said))
            if number % 20 == 0:
                besieged.look()
        besieged.watch(0.5)
        return besieged.most_handles


LONG = (GREETING, LONG_FRAME, bytes(MOST_PAYLOAD_BYTES - 1))


@pytest.mark.parametrize(
    ("said", "least_shut"),
    [((), 500), ((GREETING,), 500), (LONG, 500), ((b"GET / HTTP/1.1\r\n\r\n" + bytes(99),), 0)],
    ids=["silent", "polite", "with a long frame each", "of garbage, which ZeroMQ hangs up on by itself"],
)
def test_a_thousand_connections_disturb_nobody(
    besieged: Besieged, said: tuple[bytes, ...], least_shut: int
) -> None:
    most_handles = siege(besieged, *said)
    strangers, shut = besieged.finish()
    assert strangers == 1000
    assert shut >= least_shut
    assert most_handles < 300


def test_a_machine_still_gets_in_while_strangers_of_another_address_crowd_the_door() -> None:
    with HubEnd(TOKEN, 0, "0.0.0.0") as hub, contextlib.ExitStack() as stack:
        try:
            for _ in range(3 * doorman.MOST_YOUNG):
                source = ("127.0.0.2", 0)
                stack.enter_context(socket.create_connection(("127.0.0.1", hub.port), source_address=source))
        except OSError:
            pytest.skip("this system has no second loopback address")
        with ClientEnd(TOKEN, "127.0.0.1", hub.port) as client:
            introduce(hub, client)
            assert hub.shut_connections >= 2 * doorman.MOST_YOUNG


# Listening in


@pytest.fixture
def hub() -> Iterator[HubEnd]:
    with HubEnd(TOKEN, 0, "127.0.0.1") as made:
        yield made


@pytest.fixture
def relay(hub: HubEnd) -> Iterator[Relay]:
    made = Relay(hub.port)
    yield made
    made.close()


@pytest.fixture
def converse(hub: HubEnd, relay: Relay) -> Callable[[], bytes]:
    """Say all kinds of things over the relay, with weights of a pattern; return the weights."""

    def whole() -> bytes:
        pattern = struct.pack("<8f", *(0.5**power for power in range(8))) * (MOST_PAYLOAD_BYTES // 32)
        with ClientEnd(TOKEN, "127.0.0.1", relay.port) as client:
            introduce(hub, client)
            for said, payloads in HEARD_BY_THE_HUB[1:]:
                client.send(said, payloads)
                assert hub.receive(SECONDS_TO_ARRIVE) == Arrived(MACHINE, said, payloads)
            for answer, payloads in FROM_HUB:
                assert hub.send(MACHINE, answer, payloads) is Sent.QUEUED
                assert hear(client) == answer
            hub.send(MACHINE, weights(0, 1, len(pattern)), [pattern])
            assert hear(client) == weights(0, 1, len(pattern))
        return pattern

    return whole


def test_nothing_on_the_wire_can_be_read(relay: Relay, converse: Callable[[], bytes]) -> None:
    pattern = converse()
    up, down = bytes(relay.recorded["up"]), bytes(relay.recorded["down"])
    assert len(down) > MOST_PAYLOAD_BYTES
    secrets = [
        TOKEN.code.encode(), TOKEN.hub_keys.public, TOKEN.client_keys.public, KEY.encode(), MACHINE.encode(),
        zmq.utils.z85.decode(TOKEN.hub_keys.public), zmq.utils.z85.decode(TOKEN.client_keys.public),
        BASE.cluster.encode(), b"MacBook", b"format", b"payloads", b"DEALER", b"ROUTER", pattern[:32],
    ]  # fmt: skip
    for said, _ in [*FROM_CLIENT, *FROM_HUB]:
        secrets.append(json.dumps(type(said).__struct_config__.tag).encode())
    for secret in secrets:
        assert secret not in up + down
    assert len(zlib.compress(down, 9)) > 0.99 * len(down)


def test_a_recording_opens_nothing_at_the_hub(hub: HubEnd, relay: Relay, converse: Callable[[], bytes]) -> None:
    converse()
    recorded = bytes(relay.recorded["up"])
    before = hub.strangers
    for step in (len(recorded), 64, 1):
        with knock(hub.port) as stranger:
            with contextlib.suppress(OSError):
                for start in range(0, len(recorded), step):
                    stranger.sendall(recorded[start : start + step])
            assert hub.receive(0.3) is None
            assert is_hung_up(stranger, SECONDS_TO_ARRIVE)
    assert hub.strangers >= before + 3


def test_a_recording_of_the_hub_deceives_no_machine(relay: Relay, converse: Callable[[], bytes]) -> None:
    converse()
    recorded = bytes(relay.recorded["down"])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def replay() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.sendall(recorded)

        threading.Thread(target=replay, daemon=True).start()
        refusal(TOKEN, listener.getsockname()[1])
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


# With the token, but under another name

OTHER_KEY = os.urandom(16).hex()
OTHER = machine_id(OTHER_KEY)


@pytest.fixture
def liar(hub: HubEnd) -> Iterator[ClientEnd]:
    with ClientEnd(TOKEN, "127.0.0.1", hub.port) as client:
        client.connect(SECONDS_TO_ARRIVE)
        yield client


def say_in_vain(hub: HubEnd, client: ClientEnd, message: FromClient) -> GoAway:
    client.send(message)
    assert hub.receive(0.3) is None
    answer = hear(client)
    assert isinstance(answer, GoAway)
    return answer


def test_a_machine_can_not_say_that_it_is_another(hub: HubEnd, liar: ClientEnd) -> None:
    with ClientEnd(TOKEN, "127.0.0.1", hub.port) as honest:
        introduce(hub, honest)
        assert say_in_vain(hub, liar, hello(OTHER_KEY, MACHINE)).reason == "identity"
        liar.send(hello(OTHER_KEY))
        assert hub.receive(SECONDS_TO_ARRIVE) == Arrived(OTHER, hello(OTHER_KEY))
        assert say_in_vain(hub, liar, hello(KEY)).reason == "identity"  # one connection is one machine
        liar.send(Want(1, 1.0))
        assert hub.receive(SECONDS_TO_ARRIVE) == Arrived(OTHER, Want(1, 1.0))
        hub.send(MACHINE, Leased(2, (), 1.0))
        assert hear(honest) == Leased(2, (), 1.0)
        assert hub.machines == (MACHINE, OTHER)


def test_who_has_not_said_hello_is_not_heard(hub: HubEnd, liar: ClientEnd) -> None:
    assert say_in_vain(hub, liar, Want(1, 1.0)).reason == "hello_first"
    assert hub.machines == ()


def test_a_second_connection_of_a_machine_takes_the_place_of_its_first(hub: HubEnd, liar: ClientEnd) -> None:
    with ClientEnd(TOKEN, "127.0.0.1", hub.port) as later:
        liar.send(hello())
        assert hub.receive(SECONDS_TO_ARRIVE) == Arrived(MACHINE, hello())
        introduce(hub, later)
        answer = hear(liar)
        assert isinstance(answer, GoAway)
        assert answer.reason == "replaced"
        assert say_in_vain(hub, liar, Want(1, 1.0)).reason == "hello_first"
        hub.send(MACHINE, Leased(1, (), 1.0))
        assert hear(later) == Leased(1, (), 1.0)
        assert hub.machines == (MACHINE,)
