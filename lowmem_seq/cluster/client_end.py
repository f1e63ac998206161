"""A machine's end of its connection to the hub. wire.py says what holds for both ends: one thread owns it.

It dials until the hub answers, and again whenever the connection is lost, each time with a fresh socket: nothing
that was meant for a lost connection reaches the next one. ZeroMQ would dial by itself, but never again once the
other side has sent something strange, and only to the first address that a name has.
"""

from __future__ import annotations

import enum
import random
import socket
import time
from collections.abc import Sequence
from types import TracebackType

import zmq

from lowmem_seq.cluster.frames import CLIENT_CODEC, HUB_CODEC, Payload, Received, WireError
from lowmem_seq.cluster.messages import FromClient, FromHub
from lowmem_seq.cluster.token import Token, how_to_set
from lowmem_seq.cluster.wire import (
    HANDSHAKE_SECONDS,
    LINGER_SECONDS,
    Alarm,
    Sent,
    bytes_of,
    endpoint,
    open_socket,
    post,
    read_event,
    watch,
)

CONNECT_SECONDS = 3.0
"""For the system to reach the other machine, before the name's next address is tried."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 2.0
REFUSALS, REFUSED_SECONDS = 3, 2.0
"""So often, and for so long, a handshake must have been broken off before the token is blamed."""


class Line(enum.Enum):
    """What happened to the connection."""

    UP = "up"
    """It stands, and both sides have proved the token; the hub waits for a hello."""
    DOWN = "down"
    """It is lost, with all that was on its way; this end dials again by itself."""


class ClientEnd:
    """Dials the hub, says what this machine has to say, and hears the hub.

    Args:
        token: the cluster's.
        host: a name, or an IPv4 or IPv6 address; a name's addresses are asked for anew at each dial.
        port: the hub's.
    """

    def __init__(self, token: Token, host: str, port: int) -> None:
        self._token, self._host, self._port = token, host, port
        self._alarm = Alarm()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer: zmq.Socket[bytes] | None = None
        self._events: zmq.Socket[bytes] | None = None
        self._untried: list[str] = []
        self._due = 0.0
        """When to dial, where there is no socket; else when to give it up, unless it is up."""
        self._pauses = 0
        self._answered = self._ending = self._proved = False
        self._refusals = 0
        self._refused_since = 0.0
        self.up = False
        self.trouble = "the hub was not dialled yet"
        """Why there is no connection; empty where there is one."""
        self.bytes_sent = self.bytes_received = 0
        """Of all frames, without what encryption and TCP add."""

    def connect(self, timeout_seconds: float) -> None:
        """Return when the connection is up.

        Raises:
            WireError: it did not come up in time, or the hub does not take this token.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self.up:
            left = deadline - time.monotonic()
            if left <= 0:
                raise WireError(
                    f"no hub answered at {self._host}:{self._port} within {timeout_seconds:g} s: {self.trouble}",
                    "does the host run, in the same network, and does its firewall let the port through?",
                )
            self.receive(left)

    def receive(self, timeout_seconds: float) -> Received[FromHub] | Line | None:
        """Return the hub's next message, or what happened to the connection.

        None after the timeout, or when another thread calls `wake`. Looking up a name may take longer.

        Raises:
            WireError: this end never had a connection, and the handshake was broken off again and again: the token
                is another one.
            FrameError: the hub said what this version does not understand.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            if self._dealer is None and time.monotonic() >= self._due:
                self._dial()
            frames = self._read()
            if frames is not None:
                self.bytes_received += bytes_of(frames)
                return HUB_CODEC.decode(frames)
            line = self._look()
            if line is not None:
                return line
            if self._ending:
                continue  # what came before the end is read first
            left = deadline - time.monotonic()
            ready = self._wait(left if self.up else min(left, self._due - time.monotonic()))
            if self._alarm.reader.fileno() in ready:
                self._alarm.clear()
                return None
            if not ready and left <= 0.001:
                return None

    def send(self, message: FromClient, payloads: Sequence[Payload] = ()) -> Sent:
        """Send a message, or don't: this never waits. The payloads are copied.

        Raises:
            FrameError: the message breaks a limit.
        """
        frames = CLIENT_CODEC.encode(message, payloads)
        if self._dealer is None or not self.up:
            return Sent.GONE
        sent = post(self._dealer, frames)
        if sent is Sent.QUEUED:
            self.bytes_sent += bytes_of(frames)
        return sent

    def wake(self) -> None:
        """Have `receive` return at once. Any thread may call this."""
        self._alarm.ring()

    def close(self, linger_seconds: float = LINGER_SECONDS) -> None:
        """End the connection; what waits to be sent has so long to go out."""
        self._hang_up(linger_seconds)
        self._context.term()
        self._alarm.close()

    def __enter__(self) -> ClientEnd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _dial(self) -> None:
        if not self._untried:
            try:
                found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                self._pause(f"the name {self._host} has no address: {error}")
                return
            self._untried = list(dict.fromkeys(endpoint(str(address[0]), self._port) for *_, address in found))
        dealer = open_socket(self._context, zmq.DEALER)
        dealer.setsockopt(
            zmq.RECONNECT_IVL, -1
        )  # not IMMEDIATE: it drops what came and was not read when a line ends
        dealer.setsockopt(zmq.CURVE_SERVERKEY, self._token.hub_keys.public)
        dealer.setsockopt(zmq.CURVE_PUBLICKEY, self._token.client_keys.public)
        dealer.setsockopt(zmq.CURVE_SECRETKEY, self._token.client_keys.secret)
        self._dealer, self._events = dealer, watch(dealer, self._context)
        self._answered = self._ending = False
        self._due = time.monotonic() + CONNECT_SECONDS
        try:
            dealer.connect(self._untried.pop(0))
        except zmq.ZMQError as error:
            self._hang_up(0)
            self._pause(f"{self._host}:{self._port} is no address: {zmq.strerror(error.errno or 0)}")

    def _read(self) -> list[bytes] | None:
        if self._dealer is None or not self.up:
            return None
        try:
            return self._dealer.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def _look(self) -> Line | None:
        """Follow what happened to the connection."""
        if self._ending:
            return self._lost()
        while self._events is not None and (event := read_event(self._events)) is not None:
            number, _ = event
            if number == zmq.EVENT_CONNECTED:
                self._answered = True
                self._due = time.monotonic() + HANDSHAKE_SECONDS
            elif number == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.up = self._proved = True
                self.trouble, self._pauses, self._refusals, self._untried = "", 0, 0, []
                return Line.UP
            elif number == zmq.EVENT_DISCONNECTED and self.up:
                self._ending = True
                return None
            elif number in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED):
                self._failed(broken_off=self._answered)
                return None
        if self._dealer is not None and not self.up and time.monotonic() >= self._due:
            self._failed(broken_off=False)
        return None

    def _lost(self) -> Line:
        self._hang_up(0)
        self._pause("the connection was lost")
        return Line.DOWN

    def _failed(self, broken_off: bool) -> None:
        """Count a dial that came to nothing.

        Raises:
            WireError: the token is another one.
        """
        self._hang_up(0)
        now = time.monotonic()
        if not broken_off:
            self._pause("it answered, then said nothing" if self._answered else "nobody answers")
            return
        if not self._refusals:
            self._refused_since = now
        self._refusals += 1
        self._pause("what listens there broke off the handshake: its token is another, or it is no hub of ours")
        if not self._proved and self._refusals >= REFUSALS and now - self._refused_since >= REFUSED_SECONDS:
            raise WireError(
                f"{self._host}:{self._port} broke off {self._refusals} handshakes: "
                "its token is another one, or it is no hub of lowmem-seq",
                how_to_set(),
            )

    def _pause(self, trouble: str) -> None:
        self.trouble = trouble
        if self._untried:
            self._due = time.monotonic()
            return
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(self._pauses, 10))
        self._pauses += 1
        self._due = time.monotonic() + pause * random.uniform(0.75, 1.25)

    def _hang_up(self, linger_seconds: float) -> None:
        self.up = False
        self._ending = False
        if self._dealer is not None and self._events is not None:
            self._dealer.monitor(None, 0)
            self._events.close()
            self._dealer.close(linger=round(1000 * linger_seconds))
        self._dealer = self._events = None

    def _wait(self, seconds: float) -> dict[object, int]:
        poller = zmq.Poller()
        poller.register(self._alarm.reader, zmq.POLLIN)
        if self._events is not None:
            poller.register(self._events, zmq.POLLIN)
        if self._dealer is not None and self.up:
            poller.register(self._dealer, zmq.POLLIN)
        return dict(poller.poll(max(0, round(1000 * seconds))))
