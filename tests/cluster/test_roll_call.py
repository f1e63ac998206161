from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from lowmem_seq.cluster.pulse import tell_leaving
from lowmem_seq.cluster.rank import Rank
from lowmem_seq.cluster.roll_call import COMPARED, Hello, call_roll, hello_of
from lowmem_seq.cluster.table import Table
from lowmem_seq.errors import ClusterError, StoppedError
from tests.builders import tiny_config

HELLO = Hello("hp", "0.1", "2.13.0", "ab" * 32, "60 steps", "cd" * 32, "cpu", "fp32", 100.0)


def rank(number: int, of: int = 2) -> Rank:
    return Rank(number, of, number, of, "127.0.0.1", 4000)


def called(store: Table, hellos: list[Hello]) -> list[Any]:
    """What each rank gets, or what it raises, all of them at once."""

    def call(number: int) -> Any:
        try:
            return call_roll(rank(number, len(hellos)), hellos[number], store, 5.0, lambda: False)
        except ClusterError as error:
            return error

    with ThreadPoolExecutor(len(hellos)) as pool:
        return list(pool.map(call, range(len(hellos))))


def test_all_ranks_hear_all() -> None:
    hellos = [HELLO, replace(HELLO, machine="mac", precision="bf16", images_per_second=300.0), HELLO]
    assert called(Table(), hellos) == [hellos] * 3
    assert hellos[1].name(1) == "rank 1 (mac)"


@pytest.mark.parametrize("field", COMPARED)
def test_a_rank_that_would_train_something_else_is_named_on_all(field: str) -> None:
    changed: dict[str, Any] = {"machine": "mac", field: "another"}
    other = replace(HELLO, **changed)
    for error in called(Table(), [HELLO, other]):
        assert isinstance(error, ClusterError)
        assert f"rank 1 (mac) has another {field} than rank 0 (hp): another, and not " in error.message
        assert error.hint == COMPARED[field]


def test_what_is_not_known_yet_is_not_compared() -> None:
    early = replace(HELLO, data=None, device=None, precision=None)
    assert called(Table(), [HELLO, early]) == [[HELLO, early]] * 2


def test_what_is_said_of_a_run_before_its_images_are_known() -> None:
    config = tiny_config("steps=7")
    hello = hello_of(config)
    assert (hello.experiment, hello.length, hello.data, hello.device) == (
        config.experiment_hash(),
        "7 steps",
        None,
        None,
    )
    assert hello_of(tiny_config("recipe.epochs=3")).length == "3 epochs"


def test_two_processes_with_one_number_are_told() -> None:
    store = Table()
    with pytest.raises(ClusterError, match="did not come"):
        call_roll(rank(1), HELLO, store, 0.1, lambda: False)
    with pytest.raises(ClusterError, match=r"two processes say that they are rank 1 of 2\.") as told:
        call_roll(rank(1), HELLO, store, 0.1, lambda: False)
    assert "--machine_rank" in told.value.hint


def test_a_rank_that_does_not_come_is_named() -> None:
    with pytest.raises(ClusterError, match=r"3 processes were asked for, and rank 1, 2 did not come within 0 s"):
        call_roll(rank(0, of=3), HELLO, Table(), 0.2, lambda: False)


@pytest.mark.parametrize("came", [False, True])
def test_where_a_rank_has_ended_nobody_is_waited_for(came: bool) -> None:
    store = Table()
    if came:
        with pytest.raises(ClusterError, match="did not come"):
            call_roll(rank(1, of=3), HELLO, store, 0.1, lambda: False)
    tell_leaving(store, 1, "its disk is full")
    with pytest.raises(ClusterError, match="rank 1 has ended: its disk is full"):
        call_roll(rank(0, of=3), HELLO, store, 60.0, lambda: False)


def test_a_stop_is_heard_while_others_are_waited_for() -> None:
    with pytest.raises(StoppedError):
        call_roll(rank(0), HELLO, Table(), 60.0, lambda: True)
