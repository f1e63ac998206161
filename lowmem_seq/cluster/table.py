"""What the processes of a world share before any of them holds torch: a small table, in rank 0's memory.

A line is one call as JSON, and its answer is a line. That is as much of torch's TCPStore as supervisors need, which
hold no torch. Like that one it neither encrypts nor asks who calls: it is for a trusted network.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
import time
from typing import Any, cast

from lowmem_seq.cluster.pulse import Store
from lowmem_seq.cluster.surroundings import is_loopback

LONGEST_LINE_BYTES = 2**16
LARGEST_LOAD_BYTES = 2**26
LOAD_PIECE_BYTES = 2**20
LONG_ENOUGH_SECONDS = 0.2
"""A load that takes so long tells the speed of the line; a shorter one may be all in buffers."""


class TableGone(RuntimeError):  # noqa: N818 (what happened, and what torch raises of a store that is gone)
    """The table does not answer."""


class NoTable(TableGone):
    """What answers is something else."""


class Table:
    """Texts and counts by name, for many threads at once; see `pulse.Store`."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._mutex = threading.Lock()

    def set(self, key: str, value: str) -> None:
        """Write a text down."""
        with self._mutex:
            self._texts[key] = value

    def get(self, key: str) -> bytes:
        """Return the text of a key that is there."""
        with self._mutex:
            return self._texts[key].encode()

    def add(self, key: str, amount: int) -> int:
        """Add to a count, 0 before, and return it."""
        with self._mutex:
            self._counts[key] = self._counts.get(key, 0) + amount
            return self._counts[key]

    def check(self, keys: list[str]) -> bool:
        """Whether all of these keys are there."""
        with self._mutex:
            return all(key in self._texts or key in self._counts for key in keys)


class Section:
    """A part of a store, whose keys name nothing outside of it; see `pulse.Store`."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    def set(self, key: str, value: str) -> None:
        """Write a text down."""
        self._store.set(self._prefix + key, value)

    def get(self, key: str) -> bytes:
        """Return the text of a key that is there."""
        return self._store.get(self._prefix + key)

    def add(self, key: str, amount: int) -> int:
        """Add to a count, 0 before, and return it."""
        return self._store.add(self._prefix + key, amount)

    def check(self, keys: list[str]) -> bool:
        """Whether all of these keys are there."""
        return self._store.check([self._prefix + key for key in keys])


class TableServer:
    """Has a table answer at a port, until it is closed.

    Args:
        table: what is shared.
        address: by which others dial this machine.
        port: where to listen.

    Raises:
        OSError: it can't listen there.
    """

    def __init__(self, table: Table, address: str, port: int) -> None:
        self.table, self.port = table, port
        self._server = _Server(table, _listen(address, port))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="table", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more, and hang up on all who called."""
        self._server.shutdown()
        self._server.server_close()
        for caller in list(self._server.callers):
            with contextlib.suppress(OSError):
                caller.shutdown(socket.SHUT_RDWR)


def _listen(address: str, port: int) -> socket.socket:
    """Return a socket that listens: on this machine alone where rank 0 is dialled by loopback, else everywhere."""
    kinds = {found[0] for found in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)}
    family = socket.AF_INET if socket.AF_INET in kinds else socket.AF_INET6
    loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
    place = loopback if is_loopback(address) else ""
    return socket.create_server((place, port), family=family, backlog=128)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads, block_on_close = True, False

    def __init__(self, table: Table, listener: socket.socket) -> None:
        super().__init__(listener.getsockname(), _Conversation, bind_and_activate=False)
        self.socket.close()
        self.socket, self.table = listener, table
        self.callers: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a caller by a thread of its own."""
        self.callers.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Part from a caller."""
        self.callers.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that breaks off, or talks of something else, is no news."""


class _Conversation(socketserver.StreamRequestHandler):
    """Answers one caller, call by call; whoever makes no sense is hung up on."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        table = cast("_Server", self.server).table
        while line := self.rfile.readline(LONGEST_LINE_BYTES):
            call, *arguments = json.loads(line)
            if call == "load":
                self._take_load(int(arguments[0]))
                answer = None
            else:
                answer = _answer(table, call, arguments)
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    def _take_load(self, size: int) -> None:
        left = min(size, LARGEST_LOAD_BYTES)
        while left and (piece := self.rfile.read1(min(left, LOAD_PIECE_BYTES))):
            left -= len(piece)


def _answer(table: Table, call: str, arguments: list[Any]) -> Any:
    match call, arguments:
        case "set", [str(key), str(value)]:
            return table.set(key, value)
        case "get", [str(key)]:
            return table.get(key).decode()
        case "add", [str(key), int(amount)]:
            return table.add(key, amount)
        case "check", [list(keys)]:
            return table.check([str(key) for key in keys])
    raise ValueError(f"there is no call {call!r}")


class TableLine:
    """A line to a table elsewhere; see `pulse.Store`. Several threads may call, one at a time.

    Args:
        address: where rank 0 is.
        port: where its table answers.
        patience_seconds: how long an answer may take.

    Raises:
        TableGone: nobody answers.
        NoTable: something else does.
    """

    def __init__(self, address: str, port: int, patience_seconds: float) -> None:
        self._mutex = threading.Lock()
        self._stream = _dial(address, port, patience_seconds)
        self._answers = self._stream.makefile("rb")
        self.check([])

    def set(self, key: str, value: str) -> None:
        """Write a text down."""
        self._call("set", key, value)

    def get(self, key: str) -> bytes:
        """Return the text of a key that is there."""
        return str(self._call("get", key)).encode()

    def add(self, key: str, amount: int) -> int:
        """Add to a count, 0 before, and return it."""
        return int(self._call("add", key, amount))

    def check(self, keys: list[str]) -> bool:
        """Whether all of these keys are there."""
        return bool(self._call("check", keys))

    def bytes_per_second(self, largest_bytes: int = LARGEST_LOAD_BYTES) -> float:
        """Return how fast this line carries, measured by ever larger loads until one takes long enough."""
        size = LONGEST_LINE_BYTES
        while True:
            began = time.perf_counter()
            self._call("load", size, load=bytes(size))
            seconds = time.perf_counter() - began
            if seconds >= LONG_ENOUGH_SECONDS or size >= largest_bytes:
                return size / seconds
            size *= 2

    def _call(self, *words: Any, load: bytes = b"") -> Any:
        """Return the answer to a call; a line that broke stays broken, for a late answer would be another call's.

        Raises:
            TableGone: there is none.
        """
        with self._mutex:
            try:
                self._stream.sendall(json.dumps(words).encode() + b"\n" + load)
                answer = self._answers.readline(LONGEST_LINE_BYTES)
            except (OSError, ValueError) as error:
                self.close()
                raise TableGone(str(error)) from error
            if not answer.endswith(b"\n"):
                self.close()
                raise NoTable("what answers is no table") if answer else TableGone("the line was closed")
            try:
                return json.loads(answer)
            except ValueError as error:
                self.close()
                raise NoTable("what answers is no table") from error

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)  # another thread may wait for an answer
        self._answers.close()
        self._stream.close()


def _dial(address: str, port: int, patience_seconds: float) -> socket.socket:
    try:
        stream = socket.create_connection((address, port), timeout=patience_seconds)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, UnicodeError) as error:
        raise TableGone(str(error)) from error
    return stream
