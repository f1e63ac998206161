from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lowmem_seq.cluster import hub_end, wire
from lowmem_seq.cluster.client_end import CONNECT_SECONDS, ClientEnd, Line
from lowmem_seq.cluster.frames import MOST_PAYLOAD_BYTES, FrameError, Received, WireError
from lowmem_seq.cluster.hub_end import Arrived, HubEnd
from lowmem_seq.cluster.messages import Bye, DeltaPiece, GoAway, Leased, Peers, Range, Want
from lowmem_seq.cluster.token import machine_id
from lowmem_seq.cluster.wire import HANDSHAKE_SECONDS, Sent
from tests.cluster.wires import (
    FROM_HUB,
    HEARD_BY_THE_HUB,
    MACHINE,
    SECONDS_TO_ARRIVE,
    TOKEN,
    Relay,
    await_line,
    hear,
    hello,
    introduce,
    weights,
)

OTHER_KEY = "ff" * 16
OTHER = machine_id(OTHER_KEY)
NOTHING_LISTENS = 9


@pytest.fixture
def hub() -> Iterator[HubEnd]:
    with HubEnd(TOKEN, 0, "127.0.0.1") as end:
        yield end


@pytest.fixture
def dial() -> Iterator[Callable[[int], ClientEnd]]:
    """Make clients that are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda port: stack.enter_context(ClientEnd(TOKEN, "127.0.0.1", port))


@pytest.fixture
def relay(hub: HubEnd) -> Iterator[Relay]:
    made = Relay(hub.port)
    yield made
    made.close()


Dial = Callable[[int], ClientEnd]


def test_all_that_can_be_said_arrives_as_it_was_said(hub: HubEnd, dial: Dial) -> None:
    client = dial(hub.port)
    assert introduce(hub, client) == Arrived(MACHINE, hello())
    for said, payloads in HEARD_BY_THE_HUB:
        assert client.send(said, payloads) is Sent.QUEUED
        assert hub.receive(SECONDS_TO_ARRIVE) == Arrived(MACHINE, said, payloads)
    for answer, payloads in FROM_HUB:
        assert hub.send(MACHINE, answer, payloads) is Sent.QUEUED
        assert client.receive(SECONDS_TO_ARRIVE) == Received(answer, payloads)
    assert (hub.receive(0), client.receive(0)) == (None, None)
    assert (hub.strangers, hub.shut_connections, hub.machines) == (0, 0, (MACHINE,))


def test_pieces_arrive_whole_and_in_order(hub: HubEnd, dial: Dial) -> None:
    client = dial(hub.port)
    introduce(hub, client)
    pieces = [os.urandom(MOST_PAYLOAD_BYTES) for _ in range(40)]
    came = []
    for index, piece in enumerate(pieces):
        while hub.send(MACHINE, weights(index, 40, MOST_PAYLOAD_BYTES), [piece]) is Sent.FULL:
            came.append(client.receive(SECONDS_TO_ARRIVE))
    while len(came) < 40:
        came.append(client.receive(SECONDS_TO_ARRIVE))
    assert came == [
        Received(weights(index, 40, MOST_PAYLOAD_BYTES), (piece,)) for index, piece in enumerate(pieces)
    ]


def test_a_buffer_may_be_used_again_once_it_was_sent(hub: HubEnd, dial: Dial) -> None:
    client = dial(hub.port)
    introduce(hub, client)
    buffer = bytearray(b"a" * MOST_PAYLOAD_BYTES)
    assert hub.send(MACHINE, weights(0, 1, len(buffer)), [buffer]) is Sent.QUEUED
    before = bytes(buffer)
    buffer[:] = b"b" * MOST_PAYLOAD_BYTES
    assert client.receive(SECONDS_TO_ARRIVE) == Received(weights(0, 1, len(buffer)), (before,))


@pytest.mark.parametrize(("listening", "dialled"), [("*", "127.0.0.1"), ("*", "::1"), ("::1", "::1")])
def test_both_kinds_of_address_work(listening: str, dialled: str) -> None:
    if dialled == "::1":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this system has no IPv6")
    with HubEnd(TOKEN, 0, listening) as hub, ClientEnd(TOKEN, dialled, hub.port) as client:
        introduce(hub, client)


def test_each_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch, hub: HubEnd) -> None:
    found = [(0, 0, 0, "", ("127.0.0.2", hub.port)), (0, 0, 0, "", ("127.0.0.1", hub.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with ClientEnd(TOKEN, "macbook.local", hub.port) as client:
        introduce(hub, client)


def test_nothing_that_was_meant_for_a_lost_connection_reaches_the_next(hub: HubEnd, dial: Dial) -> None:
    client = dial(hub.port)
    port = hub.port
    introduce(hub, client)
    hub.close()
    client.send(Want(1, 30.0))
    await_line(client, Line.DOWN)
    assert client.send(Want(2, 30.0)) is Sent.GONE
    assert client.trouble == "the connection was lost"
    with HubEnd(TOKEN, port, "127.0.0.1") as again:
        await_line(client, Line.UP)
        assert client.trouble == ""
        client.send(hello())
        assert again.receive(SECONDS_TO_ARRIVE) == Arrived(MACHINE, hello())
        assert again.receive(0.2) is None


def test_a_client_comes_back_after_a_cut_and_its_new_connection_counts(
    hub: HubEnd, relay: Relay, dial: Dial
) -> None:
    client = dial(relay.port)
    introduce(hub, client)
    for number in range(3):
        relay.cut()
        await_line(client, Line.DOWN)
        introduce(hub, client)
        assert hub.send(MACHINE, Leased(number, (), 1.0)) is Sent.QUEUED
        assert hear(client) == Leased(number, (), 1.0)


def test_a_client_comes_back_after_garbage_in_the_hubs_name(hub: HubEnd, relay: Relay, dial: Dial) -> None:
    client = dial(relay.port)
    introduce(hub, client)
    relay.say_to_client(b"\x04\x10" + os.urandom(16))
    await_line(client, Line.DOWN)
    introduce(hub, client)


def test_the_hubs_last_words_are_heard(dial: Dial) -> None:
    hub = HubEnd(TOKEN, 0, "127.0.0.1")
    client = dial(hub.port)
    introduce(hub, client)
    for number in range(5):
        hub.send(MACHINE, Leased(number, (), 1.0))
    hub.send(MACHINE, GoAway("stopping", "the host ends"))
    hub.close()
    heard = [hear(client) for _ in range(6)]
    assert heard == [*(Leased(number, (), 1.0) for number in range(5)), GoAway("stopping", "the host ends")]
    assert client.receive(SECONDS_TO_ARRIVE) is Line.DOWN


def test_a_clients_last_words_are_heard(hub: HubEnd) -> None:
    with ClientEnd(TOKEN, "127.0.0.1", hub.port) as client:
        introduce(hub, client)
        client.send(Bye("finished", ""))
    assert hub.receive(SECONDS_TO_ARRIVE) == Arrived(MACHINE, Bye("finished", ""))


def fill(send: Callable[[], Sent]) -> int:
    """Send until no more is taken for a while; return how many were."""
    taken, refused_since = 0, time.monotonic()
    while time.monotonic() - refused_since < 0.5:
        if send() is Sent.QUEUED:
            taken, refused_since = taken + 1, time.monotonic()
        else:
            time.sleep(0.01)
        assert taken < 400  # the kernel's buffers for a connection hold about 10 MB
    return taken


def test_a_machine_that_does_not_read_fills_no_memory_and_holds_up_no_other(hub: HubEnd, dial: Dial) -> None:
    frozen, other = dial(hub.port), dial(hub.port)
    introduce(hub, frozen)
    introduce(hub, other, OTHER_KEY)
    data = os.urandom(MOST_PAYLOAD_BYTES)
    piece = weights(0, 1, len(data))
    taken = fill(lambda: hub.send(MACHINE, piece, [data]))
    started = time.monotonic()
    assert hub.send(MACHINE, piece, [data]) is Sent.FULL
    assert hub.send(OTHER, piece, [data]) is Sent.QUEUED
    assert hear(other) == piece
    assert time.monotonic() - started < 2
    for _ in range(taken):  # what was taken comes, once it is read
        assert hear(frozen) == piece
    assert frozen.receive(0) is None


def test_a_hub_that_does_not_read_fills_no_memory(hub: HubEnd, dial: Dial) -> None:
    client = dial(hub.port)
    introduce(hub, client)
    data = os.urandom(MOST_PAYLOAD_BYTES)
    piece = DeltaPiece("int8", 0, 1, len(data), 5, 7, 640, (Range(0, 640),))
    taken = fill(lambda: client.send(piece, [data]))
    for _ in range(taken):
        assert hub.receive(SECONDS_TO_ARRIVE) == Arrived(MACHINE, piece, (data,))
    assert hub.receive(0) is None


def test_closing_waits_for_a_frozen_reader_no_longer_than_it_says(dial: Dial) -> None:
    hub = HubEnd(TOKEN, 0, "127.0.0.1")
    client = dial(hub.port)
    introduce(hub, client)
    data = bytes(MOST_PAYLOAD_BYTES)
    fill(lambda: hub.send(MACHINE, weights(0, 1, len(data)), [data]))
    started = time.monotonic()
    hub.close(linger_seconds=0.3)
    assert time.monotonic() - started < 3


def test_any_thread_may_wake_an_end(hub: HubEnd, dial: Dial) -> None:
    client = dial(hub.port)
    introduce(hub, client)
    for end in (hub, client):
        for _ in range(3):
            threading.Timer(0.1, end.wake).start()
            started = time.monotonic()
            assert end.receive(SECONDS_TO_ARRIVE) is None
            assert time.monotonic() - started < SECONDS_TO_ARRIVE / 2
        for _ in range(100_000):
            end.wake()
        assert end.receive(SECONDS_TO_ARRIVE) is None
        assert end.receive(0.01) is None


def test_an_end_that_is_closed_can_be_woken(hub: HubEnd) -> None:
    client = ClientEnd(TOKEN, "127.0.0.1", hub.port)
    client.close()
    client.wake()


def test_a_link_on_which_nothing_comes_is_given_up_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PING_SECONDS", 0.2)
    monkeypatch.setattr(wire, "LINK_DEAD_SECONDS", 1.0)
    with HubEnd(TOKEN, 0, "127.0.0.1") as hub:
        relay = Relay(hub.port)
        with ClientEnd(TOKEN, "127.0.0.1", relay.port) as client:
            introduce(hub, client)
            assert client.receive(2.0) is None  # pings alone keep it
            relay.silent = True
            await_line(client, Line.DOWN)
            deadline = time.monotonic() + SECONDS_TO_ARRIVE
            while hub.send(MACHINE, Peers(1, 1, ())) is not Sent.GONE:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            relay.silent = False
            introduce(hub, client)
        relay.close()


def test_an_address_where_nobody_listens_is_named() -> None:
    with ClientEnd(TOKEN, "127.0.0.1", NOTHING_LISTENS) as client:
        with pytest.raises(WireError) as caught:
            client.connect(0.5)
        assert caught.value.message == "no hub answered at 127.0.0.1:9 within 0.5 s: nobody answers"
        assert caught.value.hint.startswith("does the host run, ")
        assert client.send(Want(1, 1.0)) is Sent.GONE


def test_a_name_that_has_no_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with (
        ClientEnd(TOKEN, "macbook.local", 1) as client,
        pytest.raises(WireError, match=r"the name macbook\.local has no address"),
    ):
        client.connect(0.3)


def test_one_who_answers_and_then_says_nothing_is_not_blamed_for_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen host: its kernel answers."""
    assert HANDSHAKE_SECONDS > CONNECT_SECONDS
    monkeypatch.setattr(wire, "HANDSHAKE_SECONDS", 0.3)
    monkeypatch.setattr("lowmem_seq.cluster.client_end.HANDSHAKE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        port = frozen.getsockname()[1]
        with (
            ClientEnd(TOKEN, "127.0.0.1", port) as client,
            pytest.raises(WireError, match=r"within 4 s: it answered, then said nothing$"),
        ):
            client.connect(4)


def test_a_port_that_is_taken_is_named(hub: HubEnd) -> None:
    with pytest.raises(WireError, match=rf"^can't listen on 127\.0\.0\.1:{hub.port}: Address (already )?in use$"):
        HubEnd(TOKEN, hub.port, "127.0.0.1")


def test_a_machine_that_is_dropped_is_unheard_until_it_says_hello(hub: HubEnd, dial: Dial) -> None:
    client = dial(hub.port)
    introduce(hub, client)
    hub.drop(MACHINE, text="silent for 5 s")
    assert hear(client) == GoAway("dropped", "silent for 5 s")
    assert hub.machines == ()
    assert hub.send(MACHINE, Peers(1, 1, ())) is Sent.GONE
    client.send(Want(1, 30.0))
    assert hub.receive(0.3) is None
    assert hear(client) == GoAway("hello_first", "")
    client.send(hello())
    assert hub.receive(SECONDS_TO_ARRIVE) == Arrived(MACHINE, hello())
    assert hub.send(MACHINE, Peers(1, 1, ())) is Sent.QUEUED
    hub.drop("0" * 16)


def test_a_machine_too_many_is_turned_away(monkeypatch: pytest.MonkeyPatch, hub: HubEnd, dial: Dial) -> None:
    monkeypatch.setattr(hub_end, "MOST_MACHINES", 1)
    first, second = dial(hub.port), dial(hub.port)
    introduce(hub, first)
    second.connect(SECONDS_TO_ARRIVE)
    second.send(hello(OTHER_KEY))
    assert hub.receive(0.3) is None
    assert hear(second) == GoAway("full", "there are 1 machines already")
    assert hub.machines == (MACHINE,)


def test_bytes_that_the_hub_can_not_read_are_answered(hub: HubEnd, dial: Dial) -> None:
    client = dial(hub.port)
    introduce(hub, client)
    for frames, words in [
        ([b"{}"], "the header can't be read: Object missing required field `format`"),
        ([b""] * 9, "a message has 1 to 5 frames, not 9"),
        ([b'{"format":2}'], "the other side speaks format 2 of the wire, this one format 1"),
    ]:
        assert client._dealer is not None
        client._dealer.send_multipart(frames)
        assert hub.receive(0.2) is None
        assert hear(client) == GoAway("format", words)
    client.send(Want(1, 30.0))
    assert hub.receive(SECONDS_TO_ARRIVE) == Arrived(MACHINE, Want(1, 30.0))


def test_a_hub_of_another_format_is_an_error_at_the_client(hub: HubEnd, dial: Dial) -> None:
    client = dial(hub.port)
    introduce(hub, client)
    hub._router.send_multipart([hub._routes[MACHINE], b'{"format":2,"words":[]}'])
    with pytest.raises(FrameError, match="speaks format 2"):
        client.receive(SECONDS_TO_ARRIVE)
