"""The hub's end of all connections. wire.py says what holds for both ends: one thread owns it, `wake` excepted.

A machine's name can't be taken by another: its first message, hello, shows a key that only it and the hub know, and
whose hash is its id. From then on the connection is that machine, and no message names its sender. A probe needs
no name: this end answers it by itself, within bounds (probes.py), and nobody behind it hears of it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import zmq

from lowmem_seq.cluster.doorman import Doorman
from lowmem_seq.cluster.frames import CLIENT_CODEC, HUB_CODEC, FrameError, Payload, WireError
from lowmem_seq.cluster.messages import MOST_MACHINES, FromClient, FromHub, GoAway, Hello, Probe, Reason
from lowmem_seq.cluster.probes import ProbeAnswers
from lowmem_seq.cluster.token import Token, machine_id
from lowmem_seq.cluster.wire import LINGER_SECONDS, Alarm, Sent, bytes_of, endpoint, open_socket, post


@dataclass(frozen=True)
class Arrived:
    """A message, and the machine that sent it. A hello starts a connection anew, whatever was there before."""

    machine: str
    message: FromClient
    payloads: tuple[bytes, ...] = ()


class HubEnd:
    """Listens on a port, hears machines that have the token, and answers each.

    Args:
        token: the cluster's.
        port: 0 takes any that is free; `port` tells which.
        host: the address to listen on; `*` is every one, IPv4 and IPv6.

    Raises:
        WireError: the port is taken, or the address is not this machine's.
    """

    def __init__(self, token: Token, port: int, host: str = "*") -> None:
        self._alarm = Alarm()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = open_socket(self._context, zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # or what is too much for a reader would vanish
        self._router.setsockopt(zmq.CURVE_SERVER, 1)
        self._router.setsockopt(zmq.CURVE_SECRETKEY, token.hub_keys.secret)
        self._router.setsockopt(zmq.ZAP_DOMAIN, b"lowmem-seq")
        self._doorman = Doorman(self._context, self._router, token.client_keys.public)
        self._routes: dict[str, bytes] = {}
        self._machines: dict[bytes, str] = {}
        self._probe_answers = ProbeAnswers()
        self.bytes_sent: Counter[str] = Counter()
        """By machine, of all frames, without what encryption and TCP add."""
        self.bytes_received: Counter[str] = Counter()
        try:
            self._router.bind(endpoint(host, port))
        except zmq.ZMQError as error:
            self.close()
            raise WireError(
                f"can't listen on {host}:{port}: {zmq.strerror(error.errno or 0)}",
                "choose another port, or end what listens there",
            ) from error
        self.port = int(self._router.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").rpartition(b":")[2])  # type: ignore[union-attr]
        self._doorman.port = self.port
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._alarm.reader, zmq.POLLIN)

    @property
    def strangers(self) -> int:
        """How many connections did not prove the token, those included that still may."""
        return self._doorman.accepted - self._doorman.proved

    @property
    def shut_connections(self) -> int:
        """How many were ended because too many strangers were at the door."""
        return self._doorman.shut

    @property
    def machines(self) -> tuple[str, ...]:
        """The machines that said hello and were not dropped; one that was cut off is still among them."""
        return tuple(self._routes)

    def receive(self, timeout_seconds: float) -> Arrived | None:
        """Return the next message; None after the timeout, or when another thread calls `wake`.

        What no program of ours would send is answered with `go_away`, and not returned.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                route, *frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                left = deadline - time.monotonic()
                ready = dict(self._poller.poll(max(0, round(1000 * left))))
                if self._alarm.reader.fileno() in ready:
                    self._alarm.clear()
                    return None
                if not ready and left <= 0.001:
                    return None
                continue
            arrived = self._admit(route, frames)
            if arrived is not None:
                return arrived
            if time.monotonic() > deadline:
                return None

    def send(self, machine: str, message: FromHub, payloads: Sequence[Payload] = ()) -> Sent:
        """Send a message, or don't: this never waits. The payloads are copied.

        Raises:
            FrameError: the message breaks a limit.
        """
        route = self._routes.get(machine)
        if route is None:
            return Sent.GONE
        frames = HUB_CODEC.encode(message, payloads)
        sent = post(self._router, [route, *frames])
        if sent is Sent.QUEUED:
            self.bytes_sent[machine] += bytes_of(frames)
        if sent is Sent.GONE:
            self._forget(machine)
        return sent

    def drop(self, machine: str, reason: Reason = "dropped", text: str = "") -> None:
        """Forget a machine: what it says is unheard until it says hello."""
        route = self._routes.get(machine)
        if route is not None:
            self._forget(machine)
            self._post(route, GoAway(reason, text))

    def wake(self) -> None:
        """Have `receive` return at once. Any thread may call this."""
        self._alarm.ring()

    def close(self, linger_seconds: float = LINGER_SECONDS) -> None:
        """End all connections; what waits to be sent has so long to go out."""
        if self._router.closed:
            return
        self._router.monitor(None, 0)
        self._doorman.join()
        self._router.close(linger=round(1000 * linger_seconds))
        self._context.term()
        self._alarm.close()

    def __enter__(self) -> HubEnd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _admit(self, route: bytes, frames: list[bytes]) -> Arrived | None:
        try:
            received = CLIENT_CODEC.decode(frames)
        except FrameError as error:
            self._post(route, GoAway("format", error.message))
            return None
        message = received.message
        if isinstance(message, Probe):
            self._post(route, *self._probe_answers.answer(message, received.payloads))
            return None
        if isinstance(message, Hello) and not self._bind(route, message):
            return None
        machine = self._machines.get(route)
        if machine is None:
            self._post(route, GoAway("hello_first", ""))
            return None
        self.bytes_received[machine] += bytes_of(frames)
        return Arrived(machine, message, received.payloads)

    def _bind(self, route: bytes, hello: Hello) -> bool:
        """Make this connection the machine's; false, and it hears why, where it is not that machine."""
        if (
            machine_id(hello.machine_key) != hello.machine
            or self._machines.get(route, hello.machine) != hello.machine
        ):
            self._post(route, GoAway("identity", f"this connection is not the machine {hello.machine}"))
            return False
        before = self._routes.get(hello.machine)
        if before is None and len(self._routes) >= MOST_MACHINES:
            self._post(route, GoAway("full", f"there are {MOST_MACHINES} machines already"))
            return False
        if before is not None and before != route:
            del self._machines[before]
            self._post(before, GoAway("replaced", "another connection showed the same machine key"))
        self._routes[hello.machine] = route
        self._machines[route] = hello.machine
        return True

    def _forget(self, machine: str) -> None:
        del self._machines[self._routes.pop(machine)]

    def _post(self, route: bytes, message: FromHub, payloads: Sequence[Payload] = ()) -> Sent:
        return post(self._router, [route, *HUB_CODEC.encode(message, payloads)])
