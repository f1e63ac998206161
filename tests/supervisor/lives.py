"""Trainers that live given lives, in no process, one after the other under a real supervisor."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import pytest

from lowmem_seq.config import MachineConfig
from lowmem_seq.files import write_json
from lowmem_seq.memory.plan import plan_from_json
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor import trainer
from lowmem_seq.supervisor.child import Child, Message
from lowmem_seq.supervisor.laptop import Laptop
from lowmem_seq.supervisor.signals import StopSignals
from lowmem_seq.supervisor.watch import MemoryWatch
from tests.builders import tiny_plan
from tests.supervisor.machines import FakeMachine

KILLED, CRASHED = -9, -11
"""As SIGKILL and SIGSEGV end a process."""
CHECKPOINT: Message = {"event": "checkpoint", "step": 5}


def leaving(cause: str, for_want_of_memory: bool, machine_is_short: bool = False) -> Message:
    """What a trainer says that ends so that another one may go on."""
    return {
        "event": "leaving",
        "cause": cause,
        "for_want_of_memory": for_want_of_memory,
        "machine_is_short": machine_is_short,
    }


@dataclass
class Life:
    """What one trainer does: what it says, what its log ends with, how it ends."""

    code: int
    says: tuple[Message, ...] = ()
    logs: tuple[str, ...] = ()
    signals: int = 0
    """How many stop signals come while it trains."""
    machine_is_short: bool = False
    seconds: int = 0
    """How long it trains after that."""


class FakeChild(Child):
    """A trainer that lives a given life, in no process; it judges its end as a real one does."""

    def __init__(self, life: Life, stops: Stops, environment: dict[str, str], limited: bool) -> None:
        self.life, self.environment, self._limited = life, environment, limited
        self.process = psutil.Process()
        self.words: list[str] = []
        self.killed = False
        self._stops = stops
        self._error = next((said for said in life.says if said.get("event") == "error"), None)
        self._last_lines = list(life.logs)  # type: ignore[assignment]
        self._told_traceback = any(line.startswith("Traceback (most") for line in life.logs)

    def messages(self, wait_seconds: float) -> Iterator[Message | None]:
        yield from self.life.says
        for _ in range(self.life.signals):
            self._stops.hear()
            yield None
        for _ in range(self.life.seconds):
            self._stops.machine.go_on(1.0)
            yield None

    def tell(self, word: str) -> None:
        self.words.append(word)

    def kill(self) -> None:
        self.killed = True

    def wait(self) -> int:
        return self.life.code


class Stops(StopSignals):
    """Signals that the test sends; waiting takes no time, and is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []
        self.machine = FakeMachine()
        self.comes_while_waiting = False

    def hear(self) -> None:
        self._hear(signal.SIGINT, None)

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.machine.go_on(seconds)
        if self.comes_while_waiting:
            self.hear()


@dataclass
class Screen:
    """Keeps what it is shown."""

    shown: list[Message] = field(default_factory=list)
    stopping: int = 0

    def show(self, message: Message) -> None:
        self.shown.append(message)

    def show_memory(self, tree: int, peak: int, cap: int) -> None:
        assert 0 < tree <= peak

    def show_stopping(self) -> None:
        self.stopping += 1


@dataclass
class Supervised:
    """A run whose trainers live these lives, one after the other."""

    run: RunFolder
    lives: list[Life]
    stops: Stops = field(default_factory=Stops)
    screen: Screen = field(default_factory=Screen)
    children: list[FakeChild] = field(default_factory=list)
    micro_batch: int = 8
    data_limit_bytes: int | None = None
    machine: FakeMachine = field(default_factory=FakeMachine)
    settings: MachineConfig = field(default_factory=lambda: MachineConfig(keep_awake=False))

    def __post_init__(self) -> None:
        self.stops.machine = self.machine

    def start(
        self, module: str, *arguments: str, environment: dict[str, str], log: object, limit_bytes: int | None
    ) -> FakeChild:
        assert (module, arguments, log) == ("lowmem_seq.training", (str(self.run.path),), self.run.log_file)
        assert limit_bytes == self.data_limit_bytes
        limited = limit_bytes is not None
        self.children.append(FakeChild(self.lives[len(self.children)], self.stops, environment, limited))
        return self.children[-1]

    def train(self, max_restarts: int = 10) -> int:
        plan = replace(tiny_plan(self.micro_batch), data_limit_bytes=self.data_limit_bytes)
        stored = self.run.read_json(self.run.plan_file)
        assert stored is not None
        write_json(self.run.plan_file, stored | {"data_limit_bytes": self.data_limit_bytes})
        with self.laptop() as laptop:
            return trainer.train(self.run, plan, self.screen, self.stops, max_restarts, laptop)

    def laptop(self) -> Laptop:
        machine = self.machine
        return Laptop(
            self.run,
            self.settings,
            self.screen,
            self.stops,
            power=machine,
            wakefulness=machine,
            now=machine.now,
            clock=machine.clock,
            slept=machine.slept,
        )

    def events(self, kind: str) -> list[Event]:
        return [event for event in self.run.events if event["event"] == kind]

    @property
    def stored_micro_batch(self) -> int:
        stored = self.run.read_json(self.run.plan_file)
        assert stored is not None
        return plan_from_json(stored).micro_batch


class Supervise:
    """Makes supervised runs."""

    def __init__(self, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        self._run, self._monkeypatch = run, monkeypatch

    def __call__(self, *lives: Life, **settings: Any) -> Supervised:
        supervised = Supervised(self._run, list(lives), **settings)
        self._monkeypatch.setattr(trainer, "Child", supervised.start)
        watches = iter(lives)

        class Watch(MemoryWatch):
            def sample(self, records: bool = True) -> None:
                super().sample(records)
                self.machine_is_short = self.life.machine_is_short

            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                self.life = next(watches)

        self._monkeypatch.setattr(trainer, "MemoryWatch", Watch)
        return supervised
