from __future__ import annotations

import signal
import sys

import pytest

from lowmem_seq.errors import DiskError, LowmemSeqError, RestartsExhaustedError
from lowmem_seq.supervisor.child import Message
from tests.builders import tiny_plan
from tests.supervisor.lives import CHECKPOINT, CRASHED, KILLED, Life, Supervise

if sys.platform == "win32":
    pytest.skip("the exit codes here are those of POSIX", allow_module_level=True)


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
