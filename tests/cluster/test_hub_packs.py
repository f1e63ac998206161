"""What a hub sends of its packed images: to whom it may, what there is, in turn, no faster than the host bears."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lowmem_seq.cluster import hub_packs
from lowmem_seq.cluster.frames import MOST_PAYLOAD_BYTES
from lowmem_seq.cluster.hub_packs import AT_ONCE_BYTES, MOST_ASKED, Packs
from lowmem_seq.cluster.messages import MOST_MACHINES, GoAway, Hello, PackPiece, PackWanted
from lowmem_seq.cluster.pack_told import tell
from lowmem_seq.cluster.wire import PACK_BYTES_A_SECOND
from lowmem_seq.data.pack import Pack
from tests.cluster.clocks import Clock
from tests.cluster.hubs import HOST, JOINER, THIRD, FakeEnd, Stage, hello_of, prepare, serving
from tests.data.builders import write_pack

FIRST = PackWanted(None, "description", 0)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """1.2 MB: train.images in five pieces."""
    return write_pack(tmp_path_factory.mktemp("packs") / "p", {"train": [0] * 100, "test": [1]}, image_size=64)


class Counter:
    """The packs of a hub, an end, and what is said."""

    def __init__(self, pack: Pack) -> None:
        self.clock, self.end, self.events = Clock(), FakeEnd(), []  # type: ignore[var-annotated]
        what = serving(data=pack.fingerprint, pack=str(pack.folder))
        self.packs = Packs(what, self.end.send, self.events.append, self.clock)

    def pump(self, seconds: float = 1.0) -> bool:
        self.clock.go_on(seconds)
        return self.packs.pump()

    def sent(self, machine: str) -> list[tuple[Any, bytes]]:
        return [(message, b"".join(payloads)) for message, payloads in self.end.said.get(machine, [])]


@pytest.fixture
def counter(pack: Pack) -> Counter:
    return Counter(pack)


def want(pack: Pack, part: Any, index: int) -> PackWanted:
    return PackWanted(pack.fingerprint, part, index)


def test_who_was_let_in_gets_what_there_is(counter: Counter, pack: Pack) -> None:
    counter.packs.let_in(JOINER, "hp")
    counter.packs.ask(JOINER, FIRST)
    assert not counter.pump()
    told = tell(pack.description)
    assert counter.sent(JOINER) == [(PackPiece(pack.fingerprint, "description", 0, len(told)), told)]
    assert counter.events == []  # so far it only looks
    content = (pack.folder / "train.images").read_bytes()
    for index in range(5):
        counter.packs.ask(JOINER, want(pack, "train.images", index))
        counter.pump()
    assert b"".join(payload for _, payload in counter.sent(JOINER)[1:]) == content
    size = sum(file.bytes for file in pack.description.files.values())
    assert counter.events == [{"event": "pack_wanted", "machine": JOINER, "name": "hp", "bytes": size}]


def test_who_was_not_let_in_gets_nothing(counter: Counter, pack: Pack) -> None:
    counter.packs.ask(JOINER, FIRST)
    assert not counter.pump()
    counter.packs.let_in(JOINER, "hp")
    counter.packs.ask(JOINER, FIRST)
    counter.packs.shut_out(JOINER)
    assert not counter.pump()
    assert counter.end.said == {}


@pytest.mark.parametrize(
    "wanted",
    [
        PackWanted("ab" * 32, "train.images", 0),
        PackWanted(None, "train.images", 5),
        PackWanted(None, "train.images", 2**31 - 1),
        PackWanted(None, "description", 1),
    ],
)
def test_what_there_is_not_is_said(counter: Counter, wanted: PackWanted) -> None:
    counter.packs.let_in(JOINER, "hp")
    counter.packs.ask(JOINER, wanted)
    assert not counter.pump()
    ((answer, _),) = counter.sent(JOINER)
    assert isinstance(answer, GoAway)
    assert answer.reason == "no_pack"
    assert counter.events[0]["event"] == "pack_not_sent"


def test_a_pack_that_is_another_one_or_torn_is_not_sent(pack: Pack, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(pack.folder, place)
    counter = Counter(Pack.open(place))
    counter.packs.let_in(JOINER, "hp")
    counter.packs.ask(JOINER, FIRST)
    counter.pump()
    (place / "train.images").write_bytes(b"short")
    counter.packs.ask(JOINER, want(pack, "train.images", 4))
    counter.pump()
    other = Counter(pack)
    other.packs._serving = msgspec.structs.replace(other.packs._serving, data="ab" * 32)
    other.packs.let_in(JOINER, "hp")
    other.packs.ask(JOINER, FIRST)
    other.pump()
    for one in (counter, other):
        answer, _ = one.sent(JOINER)[-1]
        assert isinstance(answer, GoAway)
        assert str(tmp_path) not in answer.text
    assert "ends early" in counter.events[-1]["message"]
    assert "other images" in other.events[-1]["message"]


def test_all_together_get_so_many_bytes_a_second_and_each_its_turn(
    counter: Counter, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_packs, "PACK_BYTES_A_SECOND", 4 * MOST_PAYLOAD_BYTES)
    for machine in (HOST, JOINER, THIRD):
        counter.packs.let_in(machine, machine)
        for _ in range(MOST_ASKED):
            counter.packs.ask(machine, want(pack, "train.images", 0))
    for _ in range(12):
        assert counter.pump(0.25)  # room for one piece each time
    assert [len(counter.sent(machine)) for machine in (HOST, JOINER, THIRD)] == [4, 4, 4]


def test_what_was_not_sent_for_long_is_not_sent_all_at_once(counter: Counter, pack: Pack) -> None:
    for machine in (HOST, JOINER, THIRD):
        counter.packs.let_in(machine, machine)
        for _ in range(MOST_ASKED):
            counter.packs.ask(machine, want(pack, "train.images", 0))
    assert counter.pump(3600.0)
    sent = sum(len(payload) for machine in (HOST, JOINER, THIRD) for _, payload in counter.sent(machine))
    assert sent == AT_ONCE_BYTES < PACK_BYTES_A_SECOND / 20


def test_what_is_asked_for_beyond_what_one_may_is_unheard(counter: Counter, pack: Pack) -> None:
    counter.packs.let_in(JOINER, "hp")
    for _ in range(1000):
        counter.packs.ask(JOINER, want(pack, "test.labels", 0))
    while counter.pump():
        pass
    assert len(counter.sent(JOINER)) == MOST_ASKED


def test_who_reads_slowly_holds_up_no_other(counter: Counter, pack: Pack) -> None:
    counter.end.room[JOINER] = 1
    for machine in (JOINER, THIRD):
        counter.packs.let_in(machine, machine)
        for index in range(4):
            counter.packs.ask(machine, want(pack, "train.images", index))
    for _ in range(10):
        assert counter.pump()
    assert (len(counter.sent(JOINER)), len(counter.sent(THIRD))) == (1, 4)
    counter.end.room[JOINER] = 10
    counter.pump()
    assert [message.index for message, _ in counter.sent(JOINER)] == [0, 1, 2, 3]


def test_who_is_gone_is_forgotten_and_so_are_the_oldest_of_too_many(counter: Counter, pack: Pack) -> None:
    counter.end.gone.add(JOINER)
    counter.packs.let_in(JOINER, "hp")
    counter.packs.ask(JOINER, FIRST)
    assert not counter.pump()
    for number in range(MOST_MACHINES + 1):
        counter.packs.let_in(f"{number:016x}", "x")
    for number in range(MOST_MACHINES + 1):
        counter.packs.ask(f"{number:016x}", want(pack, "test.labels", 0))
    while counter.pump():
        pass
    assert set(counter.end.said) == {f"{number:016x}" for number in range(1, MOST_MACHINES + 1)}


# At the hub


@pytest.fixture
def stage(tmp_path: Path, pack: Pack) -> Stage:
    what = serving(data=pack.fingerprint, pack=str(pack.folder))
    prepare(tmp_path, what)
    return Stage(tmp_path, what)


def newcomer(**changes: Any) -> Hello:
    return msgspec.structs.replace(hello_of(JOINER), **{"data": None, "layout": None, **changes})


def test_a_machine_without_images_is_welcome_and_gets_them(stage: Stage, pack: Pack) -> None:
    stage.say(JOINER, newcomer())
    stage.say(JOINER, want(pack, "test.labels", 0))
    stage.step(1.0)
    assert stage.last(JOINER, PackPiece).total_bytes == 4
    assert stage.hub.desk.roster.machines == {}  # it is no machine of the run yet


@pytest.mark.parametrize("changes", [{"experiment": "ffffffff"}, {"program": "0.0.1"}, {"data": "ffffffff"}])
def test_a_machine_that_is_refused_gets_none(stage: Stage, pack: Pack, changes: dict[str, Any]) -> None:
    stage.say(JOINER, newcomer())  # it was let in before
    stage.say(JOINER, newcomer(**changes))
    stage.say(JOINER, want(pack, "test.labels", 0))
    stage.step(1.0)
    assert stage.heard(JOINER, PackPiece) == []
