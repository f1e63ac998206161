"""A table that ranks share, by real lines on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lowmem_seq.cluster.table import NoTable, Section, Table, TableGone, TableLine, TableServer
from tests.builders import free_port

PATIENCE_SECONDS = 5.0


@pytest.fixture
def server() -> Iterator[TableServer]:
    server = TableServer(Table(), "127.0.0.1", free_port())
    yield server
    server.close()


def dial(server: TableServer) -> TableLine:
    return TableLine("127.0.0.1", server.port, PATIENCE_SECONDS)


def test_all_lines_see_one_table(server: TableServer) -> None:
    one, other = dial(server), dial(server)
    one.set("name", "hp é")
    assert (other.get("name"), server.table.get("name")) == ("hp é".encode(),) * 2
    assert (one.add("count", 2), other.add("count", 3), server.table.add("count", 0)) == (2, 5, 5)
    assert one.check(["name", "count"])
    assert not one.check(["name", "nobody's"])
    for line in (one, other):
        line.close()


def test_a_line_can_be_shared_by_threads(server: TableServer) -> None:
    line = dial(server)
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda _: line.add("count", 1), range(200)))
    assert sorted(counts) == list(range(1, 201))
    line.close()


def test_a_section_names_nothing_of_another_one() -> None:
    table = Table()
    first, second = Section(table, "0/"), Section(table, "1/")
    first.set("name", "hp")
    assert first.add("came", 1) == second.add("came", 1) == 1
    assert first.get("name") == b"hp"
    assert not second.check(["name"])


@pytest.mark.parametrize(
    "garbage", [b"\n", b"5\n", b'["drop"]\n', b'["add", "x", "y"]\n', b"GET / HTTP/1.1\r\n\r\n", b"x" * 10**6]
)
def test_a_caller_that_makes_no_sense_is_hung_up_on_and_the_others_are_served(
    server: TableServer, garbage: bytes
) -> None:
    line = dial(server)
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as stranger:
        try:
            stranger.sendall(garbage)
            assert stranger.recv(1) == b""
        except ConnectionError:
            pass
    assert line.add("count", 1) == 1
    line.close()


def test_where_nobody_listens_there_is_no_line() -> None:
    with pytest.raises(TableGone, match="refused"):
        TableLine("127.0.0.1", free_port(), PATIENCE_SECONDS)


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff\x00\x00\x00\x01\x7f"])
def test_something_else_that_answers_is_no_table(says: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            caller = listener.accept()[0]
            with caller:
                caller.recv(100)
                caller.sendall(says)

        stranger = threading.Thread(target=serve)
        stranger.start()
        with pytest.raises(NoTable):
            TableLine("127.0.0.1", listener.getsockname()[1], PATIENCE_SECONDS)
        stranger.join()


def test_a_table_that_ended_or_is_silent_is_gone_and_stays_so(server: TableServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen, pytest.raises(TableGone, match="timed out"):
        TableLine("127.0.0.1", frozen.getsockname()[1], 0.2)  # the system takes the call, and nobody answers
    line = dial(server)
    line.close()
    for _ in range(2):
        with pytest.raises(TableGone):
            line.add("count", 1)


def test_a_port_that_is_taken_is_told(server: TableServer) -> None:
    with pytest.raises(OSError, match="in use"):
        TableServer(Table(), "127.0.0.1", server.port)


def test_the_speed_of_a_line_is_that_of_a_load_that_takes_long_enough(
    server: TableServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = dial(server)
    assert line.bytes_per_second(largest_bytes=2**22) > 10**6
    times = iter([0.0, 0.01, 1.0, 1.05, 2.0, 2.4])  # 64, 128 and 256 KiB
    monkeypatch.setattr("lowmem_seq.cluster.table.time.perf_counter", lambda: next(times))
    assert line.bytes_per_second() == pytest.approx(2**18 / 0.4)
    assert line.add("count", 1) == 1
    line.close()


def test_only_this_machine_reaches_a_table_that_is_dialled_by_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[tuple[str, int]] = []

    def create_server(place: tuple[str, int], **_settings: object) -> socket.socket:
        places.append(place)
        raise OSError("not here")

    monkeypatch.setattr("lowmem_seq.cluster.table.socket.create_server", create_server)
    for address in ("127.0.0.1", "localhost", "0.0.0.0"):
        with pytest.raises(OSError, match="not here"):
            TableServer(Table(), address, 4000)
    assert places == [("127.0.0.1", 4000), ("127.0.0.1", 4000), ("", 4000)]
