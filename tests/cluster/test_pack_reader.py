"""A machine that reads a pack from a hub: it believes what is due, and holds nothing for what is only claimed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from lowmem_seq.cluster import pack_reader as module
from lowmem_seq.cluster.client_end import ClientEnd
from lowmem_seq.cluster.frames import MOST_PAYLOAD_BYTES, FrameError
from lowmem_seq.cluster.hub_end import Arrived, HubEnd
from lowmem_seq.cluster.messages import (
    FromHub,
    GoAway,
    Hello,
    PackPiece,
    PackWanted,
    Peers,
    Reason,
    Refused,
    Settings,
    Welcome,
)
from lowmem_seq.cluster.pack_reader import PackReader
from lowmem_seq.cluster.pack_told import MOST_TOLD_BYTES, believe, tell
from lowmem_seq.cluster.wire import Sent
from lowmem_seq.data.pack import Pack
from lowmem_seq.errors import ClusterError
from tests.cluster.wires import BASE, MACHINE, PEER, TOKEN, hello
from tests.data.builders import write_pack

SIDE = 64
Answer = tuple[FromHub, tuple[bytes, ...]] | bytes
Script = Callable[[PackWanted], list[Answer]]
WELCOME = Welcome(BASE, 1000, Settings(30.0, 1.0, 5.0, "int8", 4, "plain", 1.0, 0.0), (PEER,))
SECONDS = 20.0


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """train.images has five pieces."""
    return write_pack(tmp_path_factory.mktemp("packs") / "p", {"train": [0] * 100, "test": [1]}, image_size=SIDE)


class Scripted:
    """A hub that says to each question what a script has; to hello `greeting`."""

    def __init__(self, script: Script, greeting: FromHub = WELCOME) -> None:
        self.asked: list[PackWanted] = []
        self.hellos = 0
        self._script, self._greeting = script, greeting
        self._end = HubEnd(TOKEN, 0, "127.0.0.1")
        self.port = self._end.port
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over:
            arrived = self._end.receive(0.05)
            if arrived is not None:
                self._answer(arrived)

    def _answer(self, arrived: Arrived) -> None:
        answers: list[Answer] = []
        if isinstance(arrived.message, Hello):
            self.hellos += 1
            answers = [(self._greeting, ())]
        elif isinstance(arrived.message, PackWanted):
            self.asked.append(arrived.message)
            answers = self._script(arrived.message)
        for answer in answers:
            if isinstance(answer, bytes):
                self._end._router.send_multipart([self._end._routes[MACHINE], answer])
                continue
            while self._end.send(MACHINE, *answer) is Sent.FULL and not self._over:
                self._end.receive(0.01)

    def close(self) -> None:
        self._over = True
        self._end.wake()
        self._thread.join()
        self._end.close()


@contextmanager
def reading(
    script: Script, greeting: FromHub = WELCOME, patience: float = SECONDS
) -> Iterator[tuple[PackReader, Scripted]]:
    hub = Scripted(script, greeting)
    try:
        with ClientEnd(TOKEN, "127.0.0.1", hub.port) as end:
            end.connect(SECONDS)
            yield PackReader(end, hello(), again="again", patience_seconds=patience), hub
    finally:
        hub.close()


def piece(pack: Pack, wanted: PackWanted) -> tuple[PackPiece, tuple[bytes]]:
    """What an honest hub says."""
    told = tell(pack.description)
    content = told if wanted.part == "description" else (pack.folder / wanted.part).read_bytes()
    start = wanted.index * MOST_PAYLOAD_BYTES
    message = PackPiece(pack.fingerprint, wanted.part, wanted.index, len(content))
    return message, (content[start : start + MOST_PAYLOAD_BYTES],)


def test_what_is_read_is_what_there_is(pack: Pack) -> None:
    peers: Answer = (Peers(7, 4480, (PEER,)), ())
    with reading(lambda wanted: [peers, piece(pack, wanted)]) as (reader, hub):
        assert reader.describe(SIDE) == believe(tell(pack.description))
        content = (pack.folder / "train.images").read_bytes()
        assert b"".join(reader.read("train.images", 0, len(content))) == content
        rest = b"".join(reader.read("train.images", 2 * MOST_PAYLOAD_BYTES, len(content)))
        assert rest == content[2 * MOST_PAYLOAD_BYTES :]
    assert [one.index for one in hub.asked] == [0, 0, 1, 2, 3, 4, 2, 3, 4]
    assert {one.data for one in hub.asked[1:]} == {pack.fingerprint}
    assert hub.asked[0].data is None


def test_only_a_few_pieces_are_asked_for_ahead(pack: Pack) -> None:
    with reading(lambda wanted: [piece(pack, wanted)]) as (reader, hub):
        reader.describe(SIDE)
        content = (pack.folder / "train.images").read_bytes()
        pieces = reader.read("train.images", 0, len(content))
        next(pieces)
        deadline = time.monotonic() + SECONDS
        while len(hub.asked) < 1 + module.AHEAD and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(hub.asked) == 1 + module.AHEAD < 1 + 5
        list(pieces)


def test_a_piece_that_is_lost_or_comes_twice_is_no_trouble(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    lost: list[int] = []

    def script(wanted: PackWanted) -> list[Answer]:
        if wanted.part == "train.images" and wanted.index in (1, 3) and lost.count(wanted.index) < 2:
            lost.append(wanted.index)
            return []
        return [piece(pack, wanted)] * 2

    with reading(script) as (reader, _):
        reader.describe(SIDE)
        content = (pack.folder / "train.images").read_bytes()
        assert b"".join(reader.read("train.images", 0, len(content))) == content
    assert lost == [1, 3, 1, 3]


def test_a_hub_that_has_forgotten_this_machine_is_told_of_it_again(pack: Pack) -> None:
    said: list[int] = []

    def script(wanted: PackWanted) -> list[Answer]:
        said.append(wanted.index)
        return [(GoAway("hello_first", ""), ())] if len(said) == 1 else [piece(pack, wanted)]

    with reading(script) as (reader, hub):
        reader.describe(SIDE)
        assert hub.hellos == 2


# Hubs that lie


def lie(pack: Pack, **changes: object) -> Script:
    def script(wanted: PackWanted) -> list[Answer]:
        message, payloads = piece(pack, wanted)
        return [(msgspec.structs.replace(message, **changes), payloads)]

    return script


@pytest.mark.parametrize("size", [MOST_TOLD_BYTES + 1, 2**50])
def test_a_description_without_end_is_not_waited_for(pack: Pack, size: int) -> None:
    with reading(lie(pack, total_bytes=size)) as (reader, hub):
        with pytest.raises(ClusterError, match=f"{size:,} bytes would tell of it"):
            reader.describe(SIDE)
        assert len(hub.asked) == 1


def test_a_description_of_another_pack_or_size_is_refused(pack: Pack) -> None:
    with reading(lie(pack, data="ab" * 32)) as (reader, _), pytest.raises(ClusterError, match="of another pack"):
        reader.describe(SIDE)
    with reading(lie(pack)) as (reader, _), pytest.raises(ClusterError, match="its pictures have 64 px"):
        reader.describe(32)


def test_a_description_that_is_none_is_refused(pack: Pack) -> None:
    def script(wanted: PackWanted) -> list[Answer]:
        told = b'{"files":{"../../.bashrc":{}}}'
        return [(PackPiece(pack.fingerprint, "description", 0, len(told)), (told,))]

    with reading(script) as (reader, _), pytest.raises(ClusterError, match="it can't be read"):
        reader.describe(SIDE)


@pytest.mark.parametrize(
    ("total", "length"),
    [(2**50, MOST_PAYLOAD_BYTES), (1_228_800, 100), (MOST_PAYLOAD_BYTES, MOST_PAYLOAD_BYTES)],
    ids=["a larger file", "a shorter piece", "a smaller file"],
)
def test_a_piece_that_is_not_as_it_must_be_is_refused(pack: Pack, total: int, length: int) -> None:
    def script(wanted: PackWanted) -> list[Answer]:
        if wanted.part == "description":
            return [piece(pack, wanted)]
        return [(PackPiece(pack.fingerprint, wanted.part, wanted.index, total), (bytes(length),))]

    with reading(script) as (reader, _):
        reader.describe(SIDE)
        with pytest.raises(ClusterError, match="piece 0 of train"):
            list(reader.read("train.images", 0, 1_228_800))


def test_pieces_that_nobody_asked_for_are_thrown_away(pack: Pack) -> None:
    stray = PackPiece(pack.fingerprint, "test.images", 0, 4)

    def script(wanted: PackWanted) -> list[Answer]:
        return [*[(stray, (b"evil",))] * 200, piece(pack, wanted)]

    with reading(script) as (reader, _):
        reader.describe(SIDE)
        content = (pack.folder / "test.labels").read_bytes()
        assert b"".join(reader.read("test.labels", 0, len(content))) == content


@pytest.mark.parametrize("said", [b"", b"\xff" * 1000, b"[" * 60_000, bytes(MOST_PAYLOAD_BYTES)])
def test_garbage_is_refused(said: bytes) -> None:
    with reading(lambda _: [said]) as (reader, _), pytest.raises(FrameError):
        reader.describe(SIDE)


# Hubs that want nothing of this machine


def test_a_refusal_is_told(pack: Pack) -> None:
    no = Refused("experiment", "a", "b", "the same preset")
    with (
        reading(lambda _: [], no) as (reader, _),
        pytest.raises(ClusterError, match="its experiment is b") as caught,
    ):
        reader.describe(SIDE)
    assert caught.value.hint == "the same preset"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("no_pack", "the images could not be fetched: x"),
        ("full", "the cluster is full: x"),
        ("replaced", "another process joined"),
        ("format", "the hub did not understand this machine: x"),
    ],
)
def test_a_hub_that_sends_this_machine_away_is_told_of(reason: Reason, words: str) -> None:
    with reading(lambda _: [(GoAway(reason, "x"), ())]) as (reader, _), pytest.raises(ClusterError, match=words):
        reader.describe(SIDE)


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    with (
        reading(lambda _: [], patience=0.5) as (reader, _),
        pytest.raises(ClusterError, match="nothing came") as caught,
    ):
        reader.describe(SIDE)
    assert caught.value.hint == "once it is there again: again   goes on where this ended"
