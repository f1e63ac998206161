from __future__ import annotations

import signal
import sys
from dataclasses import replace

import pytest

from lowmem_seq.errors import CapTooSmallError, LowmemSeqError
from lowmem_seq.files import write_json
from lowmem_seq.memory.readings import MachineMemory
from lowmem_seq.supervisor import trainer
from tests.builders import tiny_plan
from tests.memory.builders import FakeReader
from tests.supervisor.lives import CHECKPOINT, CRASHED, KILLED, Life, Supervise, leaving

if sys.platform == "win32":
    pytest.skip("the exit codes here are those of POSIX", allow_module_level=True)

GB = 10**9


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


def test_what_a_trainer_saw_itself_hold_is_in_the_peak_of_the_tree(supervise: Supervise) -> None:
    one = supervise(Life(0, says=({"event": "peak", "bytes": 3 * 10**12},)))
    assert one.train() == 0
    assert one.events("memory")[-1]["peak_tree_bytes"] > 3 * 10**12


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


def test_a_run_that_moves_on_is_not_given_up_where_the_smallest_setting_met_its_limit(supervise: Supervise) -> None:
    said = leaving("the trainer ran out of memory", for_want_of_memory=True)
    one = supervise(*[Life(75, says=(CHECKPOINT, said))] * 8, Life(0))
    assert one.train(max_restarts=1) == 0
    assert [event["micro_batch"] for event in one.events("setting_changed")] == [4, 2, 1]
    assert [event["deaths_in_a_row"] for event in one.events("trainer_restarted")] == [1] * 8


@pytest.mark.parametrize(("available", "micro_batch"), [(GB, 8), (350_000_000, 2), (100_000_000, 1)])
def test_a_trainer_begins_with_what_the_machine_has_memory_for_and_may_grow_back(
    supervise: Supervise, monkeypatch: pytest.MonkeyPatch, available: int, micro_batch: int
) -> None:
    memory = MachineMemory(total_bytes=GB, available_bytes=available)  # of which 60 MB are to stay free
    monkeypatch.setattr(trainer, "system_reader", lambda: FakeReader(memory=memory))
    one = supervise(Life(0))
    measured = [(8, 300, 9.0), (4, 295, 8.0), (2, 280, 6.0), (1, 270, 3.0)]
    point = tiny_plan().measurements[0]
    plan = replace(
        tiny_plan(),
        measurements=tuple(
            replace(point, micro_batch=size, peak_bytes=peak * 10**6, images_per_second=rate)
            for size, peak, rate in measured
        ),
    )
    write_json(one.run.plan_file, plan.to_json())
    assert one.train() == 0
    stored = one.run.read_json(one.run.plan_file)
    assert stored is not None
    assert (stored["micro_batch"], stored["chosen"]["micro_batch"]) == (micro_batch, 8)
    changes = one.events("setting_changed")
    assert [change["cause"] for change in changes] == [
        f"only {available // 10**6} MB are left on this machine" for _ in range(micro_batch < 8)
    ]
    assert one.screen.shown == changes


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
