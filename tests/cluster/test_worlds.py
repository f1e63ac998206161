from __future__ import annotations

import pytest

from lowmem_seq.cluster.worlds import environment_of_one, threads_asked
from tests.cluster.builders import surroundings, told_by_accelerate, told_by_torchrun

USERS = {"PATH": "/bin", "LOWMEM_SEQ_TOKEN": "x", "HF_HOME": "/h", "RANKING": "1", "NCCL_DEBUG": "INFO"}
SET_BY_CPU = {"KMP_AFFINITY": "granularity=fine,compact,1,0", "KMP_BLOCKTIME": "1"}


def test_nothing_of_a_launcher_reaches_the_children_of_a_world_of_one() -> None:
    others = {
        "PMI_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "PET_NNODES": "2",
        "FSDP_VERSION": "2",
        "NODE_RANK": "1",
    }
    added = {**told_by_accelerate(), **told_by_torchrun(1), **SET_BY_CPU, **others}
    around = surroundings({**USERS, **added}, "accelerate launch run.py", starter_environment=USERS)
    assert environment_of_one(around) == USERS


def test_without_a_launcher_the_children_get_the_environment_as_it_is() -> None:
    environment = {**USERS, **SET_BY_CPU, "OMP_NUM_THREADS": "1", "ACCELERATE_TORCH_DEVICE": "cpu"}
    assert environment_of_one(surroundings(environment)) == environment


def test_what_the_user_set_for_intel_s_openmp_stays() -> None:
    words = "accelerate launch --cpu run.py"
    theirs = {"KMP_AFFINITY": "disabled", "KMP_BLOCKTIME": "1"}
    around = surroundings({**told_by_accelerate(), **theirs}, words, starter_environment=theirs)
    assert environment_of_one(around) == theirs


ACCELERATE = "accelerate launch run.py"
TORCHRUN = "torchrun --nproc_per_node 2 run.py"


@pytest.mark.parametrize(
    ("value", "command", "before", "threads"),
    [
        ("3", "", None, 3),
        ("1", "", None, 1),
        (None, ACCELERATE, {}, None),
        ("0", "", None, None),
        ("4,2", "", None, None),
        ("1", ACCELERATE, {"PATH": "/bin"}, None),
        ("1", ACCELERATE, {"OMP_NUM_THREADS": "1"}, 1),
        ("4", "accelerate launch --cpu run.py", {"PATH": "/bin"}, None),
        ("4", "accelerate launch --cpu run.py", {"OMP_NUM_THREADS": "4"}, 4),
        ("4", "accelerate launch --cpu run.py", {"OMP_NUM_THREADS": "0"}, None),
        ("1", "accelerate launch --num-cpu-threads-per-process 1 run.py", {"PATH": "/bin"}, 1),
        ("1", TORCHRUN, {"PATH": "/bin"}, None),
        ("1", TORCHRUN, {"OMP_NUM_THREADS": "1"}, 1),
        # where the launcher's own environment is not shown
        ("1", ACCELERATE, None, None),
        ("4", ACCELERATE, None, None),
        ("3", ACCELERATE, None, 3),
        ("1", TORCHRUN, None, None),
        ("4", TORCHRUN, None, 4),
    ],
)
def test_threads_that_a_launcher_set_are_told_from_those_that_the_user_set(
    value: str | None, command: str, before: dict[str, str] | None, threads: int | None
) -> None:
    environment = {} if value is None else {"OMP_NUM_THREADS": value}
    around = surroundings(environment, command, starter_environment=before, cores=4)
    assert threads_asked(around) == threads
    kept = environment_of_one(around).get("OMP_NUM_THREADS")
    assert kept == (value if not command or threads is not None else None)


def test_a_launcher_that_can_t_be_seen_is_known_by_what_it_left() -> None:
    assert threads_asked(surroundings(told_by_accelerate())) is None
    assert threads_asked(surroundings({**told_by_torchrun(0), "OMP_NUM_THREADS": "1"})) is None
    assert threads_asked(surroundings({**told_by_torchrun(0), "OMP_NUM_THREADS": "2"})) == 2
