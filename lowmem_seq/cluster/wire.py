"""What both ends of a connection share: the sockets' limits, and how other threads wake the one that owns an end.

An end belongs to one thread, which alone calls it: ZeroMQ's sockets are not thread-safe. Other threads put what
they have into a `queue.Queue` of the owner's and call `wake`, the one method that any thread may call at any time;
the owner's `receive` then returns at once, and the owner looks into its queue.

Nothing grows without bound: an end holds at most MESSAGES_WAITING messages a connection in each direction. When so
many wait to be sent, `send` says FULL and takes nothing: drop what will be out of date, or try again after the next
`receive`. When so many wait to be read, the other side's kernel has to wait, and then its `send` says FULL.

A connection on which nothing comes for LINK_DEAD_SECONDS, not even ZeroMQ's own pings, is given up by both ends; so
is one whose owner reads nothing for so long while more than MESSAGES_WAITING wait. That finds links that were cut,
not programs that hang: beats do.
"""

from __future__ import annotations

import contextlib
import enum
import secrets
import socket
import struct
from collections.abc import Sequence

import zmq

from lowmem_seq.cluster.frames import MOST_PAYLOAD_BYTES, Payload

MESSAGES_WAITING = 8
PACK_BYTES_A_SECOND = 25 * 10**6
"""At the most, of packed images, for all machines together: more than most Wi-Fis carry. At that rate the hub takes
a sixth of a core (docs/log.md)."""
CURVE_BYTES = 64
"""More than the 33 that encryption adds to a frame."""
HANDSHAKE_SECONDS = 5.0
LINK_DEAD_SECONDS = 10.0
PING_SECONDS = 2.0
LINGER_SECONDS = 1.0


class Sent(enum.Enum):
    """What became of a message."""

    QUEUED = "queued"
    """It will go out, unless the connection breaks before."""
    FULL = "full"
    """The other side reads too slowly; nothing was taken."""
    GONE = "gone"
    """There is no connection to it."""


def open_socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    """Return a socket with the limits that both ends share."""
    made = context.socket(kind)
    made.setsockopt(zmq.SNDHWM, MESSAGES_WAITING)
    made.setsockopt(zmq.RCVHWM, MESSAGES_WAITING)
    made.setsockopt(zmq.MAXMSGSIZE, MOST_PAYLOAD_BYTES + CURVE_BYTES)
    made.setsockopt(zmq.HANDSHAKE_IVL, round(1000 * HANDSHAKE_SECONDS))
    made.setsockopt(zmq.HEARTBEAT_IVL, round(1000 * PING_SECONDS))
    made.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(1000 * LINK_DEAD_SECONDS))
    made.setsockopt(zmq.HEARTBEAT_TTL, round(1000 * LINK_DEAD_SECONDS))
    made.setsockopt(zmq.IPV6, 1)
    made.setsockopt(zmq.LINGER, 0)
    return made


def post(sender: zmq.Socket[bytes], frames: Sequence[Payload]) -> Sent:
    """Send frames, or don't; this never waits."""
    sender.getsockopt(
        zmq.EVENTS
    )  # or it may not know yet that there is room again: sending asks once a millisecond
    try:
        sender.send_multipart(frames, zmq.NOBLOCK)
    except zmq.Again:
        return Sent.FULL
    except zmq.ZMQError as error:
        if error.errno != zmq.EHOSTUNREACH:
            raise
        return Sent.GONE
    return Sent.QUEUED


def bytes_of(frames: Sequence[Payload]) -> int:
    """Return how long frames are together, without what encryption and TCP add."""
    return sum(memoryview(frame).nbytes for frame in frames)


class Alarm:
    """Wakes a poller from any thread.

    It is a pair of the system's sockets: ZeroMQ's are not thread-safe, and Windows polls no pipes.
    """

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)

    def ring(self) -> None:
        """Make the reader readable; one that is closed stays silent."""
        with contextlib.suppress(OSError):  # full: it rings already
            self._writer.send(b"!")

    def clear(self) -> None:
        """Make the reader silent again."""
        with contextlib.suppress(OSError):
            while self.reader.recv(4096):
                pass

    def close(self) -> None:
        """Give both sockets back."""
        self.reader.close()
        self._writer.close()


Event = tuple[int, int]
"""One of ZeroMQ's EVENT_ numbers, and its value: for most a file descriptor."""


def watch(watched: zmq.Socket[bytes], context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """Return a socket that tells what happens to another one's connections, for `read_event`.

    It must be read all the time: after 2,000 events unread ZeroMQ's own thread stands still, and every connection
    with it. Its address is random, since pyzmq's own choice collides once a file descriptor is used again.
    """
    address = f"inproc://{secrets.token_hex(8)}"
    watched.monitor(address, zmq.EVENT_ALL)
    watcher = context.socket(zmq.PAIR)
    watcher.setsockopt(zmq.LINGER, 0)
    watcher.connect(address)
    return watcher


def read_event(watcher: zmq.Socket[bytes]) -> Event | None:
    """Return the next event, or None where there is none yet."""
    try:  # not with zmq.utils.monitor, which imports asyncio: 5 MB
        head, *_ = watcher.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None
    number, value = struct.unpack("=Hi", head)
    return number, value


def endpoint(host: str, port: int) -> str:
    """Return the address as ZeroMQ writes it."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
