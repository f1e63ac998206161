from __future__ import annotations

import signal
import sys
from typing import Any

import pytest

from lowmem_seq.channel import START_ANEW
from lowmem_seq.cluster.rank import Rank
from lowmem_seq.errors import ClusterError, DiskError
from lowmem_seq.supervisor.rank import train_rank
from tests.builders import tiny_plan
from tests.supervisor.lives import CHECKPOINT, KILLED, Life, Supervise, Supervised, leaving

if sys.platform == "win32":
    pytest.skip("the exit codes here are those of POSIX", allow_module_level=True)

RANK = Rank(1, 2, 1, 2, "127.0.0.1", 4000)


def train(one: Supervised) -> int:
    with one.laptop() as laptop:
        return train_rank(one.run, RANK, tiny_plan(), one.screen, one.stops, laptop)


def causes(one: Supervised) -> list[Any]:
    return [event["cause"] for event in one.events("session_ended")]


def test_a_trainer_that_finishes(supervise: Supervise) -> None:
    one = supervise(Life(0, says=(CHECKPOINT,)))
    assert train(one) == 0
    assert one.screen.shown == [CHECKPOINT]


def test_a_stop_of_any_rank_is_a_stop(supervise: Supervise) -> None:
    assert train(supervise(Life(4))) == 4
    asked = supervise(Life(4, signals=1))
    assert train(asked) == 4
    assert asked.children[0].words == ["stop"]


def test_a_trainer_that_died_is_left_to_the_launcher(supervise: Supervise) -> None:
    one = supervise(Life(KILLED))
    with pytest.raises(ClusterError, match="rank 1 of 2: the trainer was ended by SIGKILL") as told:
        train(one)
    assert "--max-restarts" in told.value.hint
    assert causes(one) == ["the trainer was ended by SIGKILL"]
    assert one.stops.waits == []


def test_what_a_trainer_said_itself_is_told(supervise: Supervise) -> None:
    error = {"event": "error", "exit_code": 8, "message": "the disk is full", "hint": "make room"}
    with pytest.raises(DiskError, match="the disk is full"):
        train(supervise(Life(8, says=(error,))))


def test_a_trainer_that_ran_out_of_memory_has_a_smaller_plan_when_it_is_launched_again(
    supervise: Supervise,
) -> None:
    one = supervise(Life(START_ANEW, says=(leaving("the trainer ran out of memory", for_want_of_memory=True),)))
    with pytest.raises(ClusterError, match="ran out of memory"):
        train(one)
    assert one.stored_micro_batch == 4


def test_a_second_signal_leaves_at_once(supervise: Supervise) -> None:
    assert train(supervise(Life(KILLED, signals=2))) == 130


def test_a_signal_before_the_trainer_listens_is_a_stop(supervise: Supervise) -> None:
    assert train(supervise(Life(-signal.SIGINT, signals=1))) == 4
