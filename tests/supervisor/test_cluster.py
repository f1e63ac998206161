"""A session's part in a cluster, with children that live given lives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lowmem_seq.cluster.membership import take_part
from lowmem_seq.errors import ClusterError
from lowmem_seq.runs.folder import RunFolder, create_run
from lowmem_seq.supervisor import cluster as module
from lowmem_seq.supervisor.child import Child, Message
from lowmem_seq.supervisor.cluster import MOST_DEATHS, Cluster
from lowmem_seq.supervisor.signals import StopSignals
from tests.builders import tiny_config

OPENING, HUB, KNOCK = (f"lowmem_seq.cluster.{name}" for name in ("opening", "hub", "knock"))
OPEN: Message = {"event": "cluster_open", "port": 4000}


@dataclass
class Life:
    """What a child says, and how it ends; None: not by itself."""

    says: list[Message] = field(default_factory=list)
    code: int | None = 0


class FakeChild(Child):
    """A child that lives a given life, in no process."""

    lives: dict[str, list[Life]]
    started: list[str]

    def __init__(self, module: str, *_arguments: str, log: Path | None = None) -> None:
        del log
        FakeChild.started.append(module)
        self.life = FakeChild.lives[module].pop(0)
        self.told: list[str] = []
        self._error = next((said for said in self.life.says if said.get("event") == "error"), None)
        self._last_lines = []  # type: ignore[assignment]
        self._told_traceback = False

    def messages(self, _wait_seconds: float) -> Iterator[Message | None]:
        yield from self.said()[0]

    def said(self) -> tuple[list[Message], bool]:
        said, self.life.says = self.life.says, []
        return said, self.life.code is not None

    def wait(self) -> int:
        return self.life.code or 0

    def tell(self, word: str) -> None:
        self.told.append(word)
        self.life.code = 0

    def kill(self) -> None:
        self.life.code = -9


class Shown:
    """A screen that keeps what it is shown."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def show(self, message: Message) -> None:
        self.messages.append(message)

    def show_memory(self, tree: int, peak: int, cap: int) -> None:
        raise AssertionError

    def show_stopping(self) -> None:
        raise AssertionError


@dataclass
class World:
    """A run, and the lives of the children that its cluster starts."""

    run: RunFolder
    lives: dict[str, list[Life]]
    screen: Shown = field(default_factory=Shown)
    stops: StopSignals = field(default_factory=StopSignals)

    def cluster(self, hosts: bool = True) -> Cluster:
        part = take_part(self.run, "host" if hosts else "member", "10.0.0.7", 4000)
        return Cluster(self.run, part, self.screen, self.stops)

    def recorded(self) -> list[str]:
        return [event["event"] for event in self.run.events]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    FakeChild.lives, FakeChild.started = {OPENING: [Life()], HUB: [], KNOCK: []}, []
    monkeypatch.setattr(module, "Child", FakeChild)
    return World(create_run(tmp_path / "run", tiny_config()), FakeChild.lives)


def test_a_host_opens_its_hub_once_the_data_is_there(world: World) -> None:
    world.lives[HUB] = [Life([OPEN], code=None)]
    with world.cluster() as cluster:
        cluster.knock()
        assert FakeChild.started == []
        cluster.open()
        assert FakeChild.started == [OPENING, HUB]
    assert world.recorded() == ["cluster_open"]


def test_a_member_asks_before_the_data_and_after_it(world: World) -> None:
    world.lives[KNOCK] = [Life(), Life()]
    with world.cluster(hosts=False) as cluster:
        cluster.knock()
        cluster.open()
    assert FakeChild.started == [KNOCK, KNOCK]


def test_what_the_hub_says_of_it_is_raised(world: World) -> None:
    error: Message = {"event": "error", "exit_code": 7, "message": "another experiment", "hint": "the same preset"}
    world.lives[KNOCK] = [Life([error], code=7)]
    with pytest.raises(ClusterError, match="another experiment") as caught:
        world.cluster(hosts=False).knock()
    assert caught.value.hint == "the same preset"


def test_figures_of_the_moment_are_shown_and_not_recorded(world: World) -> None:
    peers: Message = {"event": "peers", "peers": []}
    lost: Message = {"event": "peer_lost", "machine": "a", "name": "hp", "cause": "silent"}
    world.lives[HUB] = [Life([OPEN, peers, lost], code=None)]
    with world.cluster() as cluster:
        cluster.open()
    assert world.recorded() == ["cluster_open", "peer_lost"]
    assert world.screen.messages[-2:] == [peers, lost]


def test_a_hub_that_dies_is_started_again_and_again_but_not_for_ever(world: World) -> None:
    world.lives[HUB] = [Life([OPEN], code=None), *(Life([OPEN], code=-9) for _ in range(MOST_DEATHS))]
    cluster = world.cluster()
    cluster.open()
    first = cluster._hub
    assert isinstance(first, FakeChild)
    first.life.code = -11
    for _ in range(MOST_DEATHS + 1):
        cluster.hear()
    assert world.recorded().count("hub_restarted") == MOST_DEATHS
    assert world.recorded()[-1] == "hub_failed"
    assert world.screen.messages[-1]["cause"] == "the hub was ended by SIGKILL"
    cluster.hear()  # and the training goes on


def test_a_hub_that_says_what_is_wrong_is_not_started_again(world: World) -> None:
    error: Message = {"event": "error", "exit_code": 7, "message": "can't listen on *:4000", "hint": "another port"}
    world.lives[HUB] = [Life([error], code=7)]
    with pytest.raises(ClusterError, match="can't listen"):
        world.cluster().open()
    assert FakeChild.started == [OPENING, HUB]


def test_a_hub_is_told_to_stop_and_one_that_does_not_is_recorded(world: World) -> None:
    world.lives[HUB] = [Life([OPEN], code=None)]
    with world.cluster() as cluster:
        cluster.open()
        hub = cluster._hub
    assert isinstance(hub, FakeChild)
    assert hub.told == ["stop"]
    assert "hub_failed" not in world.recorded()


def test_a_hub_that_ends_unasked_is_started_again(world: World) -> None:
    world.lives[HUB] = [Life([OPEN], code=None), Life([OPEN], code=None)]
    cluster = world.cluster()
    cluster.open()
    hub = cluster._hub
    assert isinstance(hub, FakeChild)
    hub.life.code = 0
    cluster.hear()
    assert FakeChild.started == [OPENING, HUB, HUB]


def test_a_stop_while_it_opens_is_heard(world: World) -> None:
    world.lives[HUB] = [Life([], code=None)]
    world.stops.count = 1
    with pytest.raises(KeyboardInterrupt), world.cluster() as cluster:
        cluster.open()
