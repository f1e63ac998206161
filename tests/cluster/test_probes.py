"""Who measures the line to the hub is answered within bounds, and the run behind that end hears nothing of it."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version

import pytest

from lowmem_seq import __version__
from lowmem_seq.cluster.client_end import ClientEnd
from lowmem_seq.cluster.frames import MOST_PAYLOAD_BYTES, Received
from lowmem_seq.cluster.hub_end import Arrived, HubEnd
from lowmem_seq.cluster.messages import FromHub, Probe, Probed, Want
from lowmem_seq.cluster.probes import MOST_BYTES, SECONDS, ProbeAnswers
from tests.cluster.clocks import Clock
from tests.cluster.wires import MACHINE, SECONDS_TO_ARRIVE, TOKEN, hello, introduce

LONGEST = bytes(MOST_PAYLOAD_BYTES)


@pytest.fixture
def hub() -> Iterator[HubEnd]:
    with HubEnd(TOKEN, 0, "127.0.0.1") as end:
        yield end


def ask(hub: HubEnd, client: ClientEnd, probe: Probe, payload: bytes = b"") -> Received[FromHub]:
    """Send a probe, have the hub's end answer it, and return what comes."""
    client.send(probe, [payload] if payload else [])
    assert hub.receive(0.2) is None
    received = client.receive(SECONDS_TO_ARRIVE)
    assert isinstance(received, Received)
    return received


def connected(hub: HubEnd) -> ClientEnd:
    client = ClientEnd(TOKEN, "127.0.0.1", hub.port)
    client.connect(SECONDS_TO_ARRIVE)
    return client


def test_one_that_never_said_hello_is_answered_and_is_no_machine(hub: HubEnd) -> None:
    with connected(hub) as client:
        began = time.time()
        message = ask(hub, client, Probe(7, 0)).message
        assert isinstance(message, Probed)
        assert began <= message.unix_seconds <= time.time()
        assert (message.request, message.program, message.torch) == (7, __version__, version("torch"))
        assert message.python == platform.python_version()
        assert hub.machines == ()


def test_an_answer_carries_what_was_wanted(hub: HubEnd) -> None:
    with connected(hub) as client:
        assert ask(hub, client, Probe(1, MOST_PAYLOAD_BYTES)).payloads == (LONGEST,)
        assert ask(hub, client, Probe(2, 0), LONGEST).payloads == ()


def test_a_machine_of_the_run_goes_on_while_another_probes(hub: HubEnd) -> None:
    with ClientEnd(TOKEN, "127.0.0.1", hub.port) as member, connected(hub) as stranger:
        introduce(hub, member)
        over = threading.Event()

        def flood() -> None:
            while not over.is_set():
                stranger.send(Probe(1, 1000))
                stranger.receive(0.001)

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            for request in range(20):
                member.send(Want(request, 1.0))
                assert next_arrived(hub) == Arrived(MACHINE, Want(request, 1.0))
        finally:
            over.set()
            flooding.join()
        assert hub.machines == (MACHINE,)


def next_arrived(hub: HubEnd) -> Arrived | None:
    deadline = time.monotonic() + SECONDS_TO_ARRIVE
    while time.monotonic() < deadline:
        arrived = hub.receive(0.2)
        if arrived is not None:
            return arrived
    return None


def test_a_machine_may_probe_and_stays_what_it_is(hub: HubEnd) -> None:
    with ClientEnd(TOKEN, "127.0.0.1", hub.port) as member:
        introduce(hub, member)
        assert isinstance(ask(hub, member, Probe(1, 10)).message, Probed)
        member.send(hello())
        assert next_arrived(hub) == Arrived(MACHINE, hello())


@pytest.mark.parametrize("carry", ["up", "down"])
def test_no_more_than_a_share_of_the_line_is_taken_in_a_minute(carry: str) -> None:
    clock = Clock()
    answers = ProbeAnswers(clock)
    probe, came = (Probe(1, 0), (LONGEST,)) if carry == "up" else (Probe(1, MOST_PAYLOAD_BYTES), ())
    for _ in range(MOST_BYTES // MOST_PAYLOAD_BYTES):
        answers.answer(probe, came)
    clock.go_on(SECONDS - 1)
    said, carried = answers.answer(Probe(9, MOST_PAYLOAD_BYTES), ())
    assert (said.request, carried) == (9, ())
    clock.go_on(1)
    assert answers.answer(Probe(9, MOST_PAYLOAD_BYTES), ())[1] == (LONGEST,)


def test_a_clock_from_before_the_epoch_is_no_reason_to_fail() -> None:
    assert ProbeAnswers(now=lambda: -5.0).answer(Probe(1, 0), ())[0].unix_seconds == 0.0
