"""Who stands at the hub's door: a thread that lets in whoever has the token, and keeps strangers few.

ZeroMQ limits neither how many connections a stranger opens nor what it holds for each: a whole frame, before any
handshake (1,000 of them took 235 MB). When the process has no file descriptor left it turns in circles, and takes
half a core. So of connections that are too young to have been thrown out by the handshake's own time limit, only a
few may be there; the newest one of the address that has most of them goes. Whoever is older has proved the token.

So the hub held 13 to 28 MB more for 1,000 strangers on two busy cores (tests/cluster/test_strangers.py), and they
crowd out only newcomers of their own address. The doorman is a thread of its own because ZeroMQ's own thread waits
for it, and must not wait for the hub.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator

import zmq
from zmq.utils import z85

from lowmem_seq.cluster.wire import HANDSHAKE_SECONDS, read_event, watch

MOST_YOUNG = 32
YOUNG_SECONDS = HANDSHAKE_SECONDS + 1.0
AUTHENTICATION = "inproc://zeromq.zap.01"
"""Where ZeroMQ asks (RFC 27, ZAP) whether a key is known."""


class Doorman:
    """Answers ZeroMQ's questions and counts connections until `router.monitor(None, 0)` ends it.

    Args:
        context: the hub's; nothing else in it may authenticate.
        router: the hub's socket, not bound yet.
        client_public: the one key that opens, in Z85.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes], client_public: bytes
    ) -> None:
        self._client_public = z85.decode(client_public)
        self._questions = context.socket(zmq.REP)
        self._questions.setsockopt(zmq.LINGER, 0)
        self._questions.bind(AUTHENTICATION)
        self._events = watch(router, context)
        self._young: dict[int, tuple[float, str]] = {}
        self.port = 0
        """The hub's, once it is bound: nothing but a connection to it is ever shut."""
        self.accepted = self.proved = self.shut = 0
        self._thread = threading.Thread(target=self._stand, name="doorman", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Return when the thread has given back its sockets."""
        self._thread.join()

    def _stand(self) -> None:
        poller = zmq.Poller()
        poller.register(self._questions, zmq.POLLIN)
        poller.register(self._events, zmq.POLLIN)
        with self._questions, self._events:
            while True:
                ready = dict(poller.poll())
                if self._questions in ready:
                    self._answer()
                if self._events in ready and not self._note_events():
                    return
                self._make_room()

    def _answer(self) -> None:
        version, request, _domain, _address, _identity, mechanism, *credentials = self._questions.recv_multipart()
        known = mechanism == b"CURVE" and credentials == [self._client_public]
        verdict = [b"200", b"OK", b"client"] if known else [b"400", b"unknown key", b""]
        self._questions.send_multipart([version, request, *verdict, b""])

    def _note_events(self) -> bool:
        """Note all that has happened; false where the hub's socket closes."""
        while (event := read_event(self._events)) is not None:
            number, value = event
            if number == zmq.EVENT_MONITOR_STOPPED:
                return False
            if number == zmq.EVENT_ACCEPTED:
                self.accepted += 1
                self._young[value] = (time.monotonic(), _address_of(value, self.port))
            elif number == zmq.EVENT_DISCONNECTED:
                self._young.pop(value, None)
            elif number == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.proved += 1
        return True

    def _make_room(self) -> None:
        born_before = time.monotonic() - YOUNG_SECONDS
        self._young = {number: known for number, known in self._young.items() if known[0] >= born_before}
        while len(self._young) > MOST_YOUNG:
            crowd, _ = Counter(address for _, address in self._young.values()).most_common(1)[0]
            newest = [number for number, (_, address) in self._young.items() if address == crowd][-1]
            del self._young[newest]
            self.shut += _shut(newest, self.port)


def _address_of(descriptor: int, port: int) -> str:
    """The address at the other end, or nothing, where that connection is gone already."""
    with contextlib.suppress(OSError), _borrowed(descriptor) as ours:
        if _is_of(ours, port):
            return str(ours.getpeername()[0])
    return ""


def _shut(descriptor: int, port: int) -> bool:
    """End a connection; ZeroMQ's thread sees the end of its input, and closes it.

    Its number may be another connection's by now, which then dials again; what is no connection is never shut.
    """
    with contextlib.suppress(OSError), _borrowed(descriptor) as ours:
        if _is_of(ours, port):
            ours.shutdown(socket.SHUT_RDWR)
            return True
    return False


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """A socket that is ZeroMQ's to close."""
    borrowed = socket.socket(fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def _is_of(ours: socket.socket, port: int) -> bool:
    return ours.family in (socket.AF_INET, socket.AF_INET6) and ours.getsockname()[1] == port
