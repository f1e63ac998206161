from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import pytest

from lowmem_seq.errors import CapTooSmallError, DiskError, LowmemSeqError, RestartsExhaustedError
from lowmem_seq.files import write_json
from lowmem_seq.memory.plan import plan_from_json
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor import trainer
from lowmem_seq.supervisor.child import Child, Message
from lowmem_seq.supervisor.signals import StopSignals
from lowmem_seq.supervisor.watch import MemoryWatch
from tests.builders import tiny_plan

if sys.platform == "win32":
    pytest.skip("the exit codes here are those of POSIX", allow_module_level=True)

KILLED, CRASHED = -signal.SIGKILL, -signal.SIGSEGV
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
        self.comes_while_waiting = False

    def hear(self) -> None:
        self._hear(signal.SIGINT, None)

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
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

    def start(
        self, module: str, *arguments: str, environment: dict[str, str], log: object, limited: bool
    ) -> FakeChild:
        assert (module, arguments, log) == ("lowmem_seq.training", (str(self.run.path),), self.run.log_file)
        assert limited is (self.data_limit_bytes is not None)
        self.children.append(FakeChild(self.lives[len(self.children)], self.stops, environment, limited))
        return self.children[-1]

    def train(self, max_restarts: int = 10) -> int:
        plan = replace(tiny_plan(self.micro_batch), data_limit_bytes=self.data_limit_bytes)
        stored = self.run.read_json(self.run.plan_file)
        assert stored is not None
        write_json(self.run.plan_file, stored | {"data_limit_bytes": self.data_limit_bytes})
        return trainer.train(self.run, plan, self.screen, self.stops, max_restarts)

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
            def sample(self) -> None:
                super().sample()
                self.machine_is_short = self.life.machine_is_short

            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                self.life = next(watches)

        self._monkeypatch.setattr(trainer, "MemoryWatch", Watch)
        return supervised


@pytest.fixture
def supervise(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Supervise:
    return Supervise(run, monkeypatch)


def test_a_trainer_that_finishes_is_the_only_one(supervise: Supervise) -> None:
    one = supervise(Life(0, says=(CHECKPOINT,)))
    assert one.train() == 0
    assert one.stops.waits == []
    assert one.screen.shown == [CHECKPOINT]
    assert one.events("session_ended") == one.events("trainer_restarted") == []
    assert one.children[0].environment == tiny_plan().environment


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (KILLED, "was ended by SIGKILL"),
        (CRASHED, "was ended by SIGSEGV"),
        (-signal.SIGABRT, "was ended by SIGABRT"),
        (-99, "was ended by signal 99"),
        (1, "ended with code 1"),
        (0xC0000005, "ended with code 0xc0000005"),  # Windows: access violation
    ],
)
def test_a_trainer_that_was_ended_is_replaced_and_the_cause_is_recorded(
    supervise: Supervise, code: int, cause: str
) -> None:
    one = supervise(Life(code), Life(0))
    assert one.train() == 0
    assert one.stops.waits == [1.0]
    (ended,), (restarted,) = one.events("session_ended"), one.events("trainer_restarted")
    assert (ended["state"], ended["cause"]) == ("crashed", f"the trainer {cause}")
    del restarted["time_unix_seconds"]
    told = {"event": "trainer_restarted", "cause": f"the trainer {cause}", "deaths_in_a_row": 1, "max_restarts": 10}
    assert restarted == {**told, "wait_seconds": 1.0}
    assert one.screen.shown[-1]["event"] == "trainer_restarted"
    assert one.stored_micro_batch == 8


def test_a_trainer_that_somebody_else_stopped_is_replaced(supervise: Supervise) -> None:
    one = supervise(Life(4, says=(CHECKPOINT,)), Life(0))
    assert one.train() == 0
    assert one.stops.waits == [1.0]
    assert "somebody else" in one.events("trainer_restarted")[0]["cause"]


def test_the_wait_doubles_up_to_a_minute(supervise: Supervise) -> None:
    one = supervise(*[Life(KILLED)] * 8, Life(0))
    assert one.train() == 0
    assert one.stops.waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert [event["deaths_in_a_row"] for event in one.events("trainer_restarted")] == list(range(1, 9))


def test_a_run_that_saves_between_its_deaths_goes_on_for_ever(supervise: Supervise) -> None:
    one = supervise(*[Life(KILLED, says=(CHECKPOINT,))] * 20, Life(0))
    assert one.train(max_restarts=1) == 0
    assert one.stops.waits == [1.0] * 20


def test_a_save_makes_the_next_wait_short_again(supervise: Supervise) -> None:
    one = supervise(*[Life(KILLED)] * 3, Life(KILLED, says=(CHECKPOINT,)), Life(KILLED), Life(0))
    assert one.train() == 0
    assert one.stops.waits == [1, 2, 4, 1, 2]


def test_a_run_ends_when_too_many_trainers_died_in_a_row(supervise: Supervise) -> None:
    one = supervise(*[Life(CRASHED)] * 3)
    with pytest.raises(
        RestartsExhaustedError, match=r"^the trainer was ended by SIGSEGV; that happened 3 times in a row"
    ) as told:
        one.train(max_restarts=2)
    assert told.value.exit_code == 10
    assert (
        told.value.hint == f"{one.run.resume_command}   tries again; the trainer's words are in {one.run.log_file}"
    )
    assert one.stops.waits == [1.0, 2.0]
    assert len(one.events("trainer_restarted")) == 2
    assert len(one.events("session_ended")) == 3


def test_no_restart_is_allowed_where_none_is_wanted(supervise: Supervise) -> None:
    one = supervise(Life(KILLED, says=(CHECKPOINT,)))
    with pytest.raises(
        RestartsExhaustedError,
        match=r"^the trainer was ended by SIGKILL; that happened once, and --max-restarts is 0",
    ):
        one.train(max_restarts=0)
    assert one.stops.waits == []


def test_what_a_trainer_says_is_wrong_is_raised_and_not_tried_again(supervise: Supervise) -> None:
    said: Message = {"event": "error", "exit_code": 8, "message": "the disk is full.", "hint": "make room"}
    one = supervise(Life(8, says=(CHECKPOINT, said)))
    with pytest.raises(DiskError, match=r"^the disk is full\.$") as told:
        one.train()
    assert told.value.hint == "make room"
    assert one.stops.waits == []
    (ended,) = one.events("session_ended")
    assert (ended["state"], ended["cause"]) == ("crashed", "the trainer said: the disk is full.")


def test_a_defect_of_the_trainer_is_told_with_its_last_words_and_not_tried_again(supervise: Supervise) -> None:
    one = supervise(Life(1, logs=("Traceback (most recent call last):", "ZeroDivisionError: division by zero")))
    with pytest.raises(
        LowmemSeqError, match=r"^the trainer ended with code 1\. Its last words:\nTraceback"
    ) as told:
        one.train()
    assert told.value.message.endswith("ZeroDivisionError: division by zero")
    assert told.value.exit_code == 1
    assert told.value.hint == f"{one.run.resume_command}   goes on from the newest checkpoint"
    assert one.stops.waits == []


def test_a_trainer_that_is_killed_after_it_logged_a_traceback_is_replaced(supervise: Supervise) -> None:
    one = supervise(Life(KILLED, logs=("Traceback (most recent call last):", "OSError: a thread's")), Life(0))
    assert one.train() == 0


@pytest.mark.parametrize(
    "words",
    [
        "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
        "RuntimeError: DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
        "RuntimeError: MPS backend out of memory (MPS allocated: 8.00 GB)",
        "torch.cuda.OutOfMemoryError: CUDA out of memory.",
        "MemoryError",
        "terminate called after throwing an instance of 'std::bad_alloc'",
    ],
)
def test_a_trainer_that_ran_out_of_memory_is_replaced_by_a_smaller_one(supervise: Supervise, words: str) -> None:
    one = supervise(Life(1, logs=("Traceback (most recent call last):", words)), Life(0))
    assert one.train() == 0
    assert one.stored_micro_batch == 4
    (changed,), (restarted,) = one.events("setting_changed"), one.events("trainer_restarted")
    assert (changed["micro_batch_before"], changed["micro_batch"]) == (8, 4)
    assert restarted["cause"] == "the trainer ended with code 1, for want of memory"


@pytest.mark.parametrize(("short", "micro_batch"), [(True, 4), (False, 8)])
def test_a_kill_means_want_of_memory_only_where_the_machine_had_little(
    supervise: Supervise, short: bool, micro_batch: int
) -> None:
    one = supervise(Life(KILLED, says=(CHECKPOINT,), machine_is_short=short), Life(0))
    assert one.train() == 0
    assert one.stored_micro_batch == micro_batch
    assert one.events("trainer_restarted")[0]["cause"].endswith(", for want of memory") is short


def test_each_want_of_memory_halves_again_down_to_one_image_and_then_the_cap_is_too_small(
    supervise: Supervise,
) -> None:
    one = supervise(*[Life(1, logs=("MemoryError",))] * 4)
    with pytest.raises(CapTooSmallError) as caught:
        one.train()
    assert caught.value.exit_code == 3
    assert caught.value.message == (
        "the trainer ended with code 1, for want of memory; that was with the smallest setting there is, under a "
        "cap of 2.00 GB."
    )
    assert caught.value.hint == f"{one.run.resume_command} --max-ram MORE"
    assert [event["micro_batch"] for event in one.events("setting_changed")] == [4, 2, 1]
    assert one.stored_micro_batch == 1


def test_where_the_machine_is_short_the_smallest_setting_is_tried_again(supervise: Supervise) -> None:
    lives = [Life(KILLED, says=(CHECKPOINT,), machine_is_short=True)] * 4
    one = supervise(*lives, Life(0))
    assert one.train() == 0
    assert [event["micro_batch"] for event in one.events("setting_changed")] == [4, 2, 1]


@pytest.mark.parametrize(
    ("life", "chosen"),
    [
        (Life(KILLED, says=(CHECKPOINT,), machine_is_short=True), 8),
        (Life(1, logs=("MemoryError",)), 4),
        (Life(75, says=(leaving("it ran out", True, machine_is_short=False),)), 4),
        (Life(75, says=(leaving("it ran out", True, machine_is_short=True),)), 8),
    ],
)
def test_a_run_grows_back_only_where_the_plan_was_not_at_fault(
    supervise: Supervise, life: Life, chosen: int
) -> None:
    one = supervise(life, Life(0))
    assert one.train() == 0
    stored = one.run.read_json(one.run.plan_file)
    assert stored is not None
    assert (stored["micro_batch"], stored["chosen"]["micro_batch"]) == (4, chosen)


def test_a_trainer_that_leaves_because_memory_ran_out_is_replaced_by_a_smaller_one(supervise: Supervise) -> None:
    cause = "the trainer ran out of memory: DefaultCPUAllocator: can't allocate memory"
    one = supervise(Life(75, says=(CHECKPOINT, leaving(cause, for_want_of_memory=True))), Life(0))
    assert one.train() == 0
    assert one.stored_micro_batch == 4
    (restarted,) = one.events("trainer_restarted")
    assert (restarted["cause"], restarted["deaths_in_a_row"]) == (cause, 1)


def test_a_trainer_that_leaves_for_a_leak_is_replaced_as_it_was(supervise: Supervise) -> None:
    said = leaving("memory grows by 1.00 MB a step", for_want_of_memory=False)
    one = supervise(Life(75, says=(CHECKPOINT, said)), Life(0))
    assert one.train() == 0
    assert one.stored_micro_batch == 8
    assert one.events("setting_changed") == []
    assert one.events("trainer_restarted")[0]["cause"] == "memory grows by 1.00 MB a step"


@pytest.mark.parametrize("code", [CRASHED, -signal.SIGABRT])
@pytest.mark.parametrize(("limit", "micro_batch"), [(10**9, 4), (None, 8)])
def test_under_a_limit_a_crash_of_a_library_counts_as_want_of_memory(
    supervise: Supervise, code: int, limit: int | None, micro_batch: int
) -> None:
    one = supervise(Life(code), Life(0), data_limit_bytes=limit)
    assert one.train() == 0
    assert one.stored_micro_batch == micro_batch


@pytest.mark.parametrize(("limit", "micro_batch"), [(10**9, 4), (None, None)])
def test_under_a_limit_words_that_may_mean_anything_mean_memory(
    supervise: Supervise, limit: int | None, micro_batch: int | None
) -> None:
    logs = ("Traceback (most recent call last):", "RuntimeError: could not create a primitive")
    one = supervise(Life(1, logs=logs), Life(0), data_limit_bytes=limit)
    if micro_batch is None:
        with pytest.raises(LowmemSeqError, match="could not create a primitive"):
            one.train()
    else:
        assert one.train() == 0
        assert one.stored_micro_batch == micro_batch


def test_a_trainer_that_had_made_itself_smaller_is_halved_from_there(supervise: Supervise) -> None:
    one = supervise(Life(1, logs=("MemoryError",)), Life(0), micro_batch=64)  # plan.json has 8
    assert one.train() == 0
    assert one.stored_micro_batch == 4


def test_a_stop_is_told_once_and_its_end_returned(supervise: Supervise) -> None:
    one = supervise(Life(4, says=(CHECKPOINT,), signals=1))
    assert one.train() == 4
    assert one.children[0].words == ["stop"]
    assert one.screen.stopping == 1
    assert not one.children[0].killed
    assert one.events("session_ended") == []  # the trainer has told it itself


def test_a_second_signal_kills_the_trainer(supervise: Supervise) -> None:
    one = supervise(Life(KILLED, signals=2))
    assert one.train() == 130
    assert one.children[0].killed
    (ended,) = one.events("session_ended")
    assert (ended["state"], ended["cause"]) == ("crashed", "left at once on a second signal")


@pytest.mark.parametrize("code", [0, 4])
def test_a_second_signal_that_comes_too_late_changes_nothing(supervise: Supervise, code: int) -> None:
    assert supervise(Life(code, signals=2)).train() == code


def test_a_stop_while_the_next_trainer_is_waited_for_ends_the_run_as_stopped(supervise: Supervise) -> None:
    one = supervise(Life(KILLED))
    one.stops.comes_while_waiting = True
    assert one.train() == 4
    assert [event["state"] for event in one.events("session_ended")] == ["crashed", "stopped"]


def test_a_trainer_that_dies_while_it_is_stopped_is_told_and_not_replaced(supervise: Supervise) -> None:
    one = supervise(Life(CRASHED, signals=1))
    with pytest.raises(LowmemSeqError, match=r"^the trainer was ended by SIGSEGV") as told:
        one.train()
    assert told.value.hint == f"{one.run.resume_command}   goes on from the newest checkpoint"
    assert one.stops.waits == []


def test_a_signal_to_all_that_a_starting_trainer_did_not_hear_is_a_stop(supervise: Supervise) -> None:
    one = supervise(Life(-signal.SIGTERM, signals=1))
    assert one.train() == 4
    assert [event["state"] for event in one.events("session_ended")] == ["stopped"]
