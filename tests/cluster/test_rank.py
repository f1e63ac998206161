from __future__ import annotations

from pathlib import Path

import pytest

from lowmem_seq.cluster.rank import Rank, folder_of, planned_config, read_rank, take_no_rank, take_rank
from lowmem_seq.errors import UsageError
from lowmem_seq.files import read_json, write_json
from lowmem_seq.runs.folder import RunFolder
from tests.builders import tiny_config

ONE = Rank(number=1, of=3, local=1, local_of=2, address="10.0.0.7", port=4000, attempt=2)


def test_a_place_is_written_down_and_read(run: RunFolder) -> None:
    assert read_rank(run) is None
    take_rank(run, ONE)
    assert read_rank(run) == ONE
    take_no_rank(run)
    assert read_rank(run) is None
    take_no_rank(run)


@pytest.mark.parametrize(
    "changed",
    [{"number": 3}, {"of": 10**6}, {"local": 2}, {"port": -1}, {"address": "a b"}, {"port": "4000"}, {"extra": 1}],
    ids=str,
)
def test_a_place_that_there_is_not_is_refused(run: RunFolder, changed: dict[str, object]) -> None:
    take_rank(run, ONE)
    file = run.path / "cluster" / "rank.json"
    write_json(file, {**read_json(file), **changed})
    with pytest.raises(UsageError, match=r"rank\.json is damaged"):
        read_rank(run)


def test_ranks_share_a_step_and_those_of_a_machine_its_cores_and_the_cap() -> None:
    config = tiny_config("machine.threads=5", "machine.max_ram_bytes=3GB", "recipe.effective_batch=100")
    own = ONE.own_part(config)
    assert own.machine.threads == 2
    assert own.machine.max_ram_bytes == 1_500_000_000
    assert own.recipe.effective_batch == 34
    for batch, part in ((1, 1), (2, 2), (32, 12), (128, 44)):
        assert ONE.own_part(tiny_config(f"recipe.effective_batch={batch}")).recipe.effective_batch == part
    assert ONE.own_part(tiny_config("machine.threads=1")).machine.threads == 1
    assert ONE.own_part(tiny_config()).machine.max_ram_bytes is None


def test_what_a_run_is_planned_by_is_a_rank_s_part_only_where_there_is_one(run: RunFolder) -> None:
    assert planned_config(run) == run.config
    take_rank(run, ONE)
    assert planned_config(run) == ONE.own_part(run.config)


def test_the_first_rank_s_folder_is_the_run() -> None:
    first = Rank(0, 2, 0, 1, "10.0.0.7", 4000)
    assert folder_of(Path("runs/x"), first) == Path("runs/x")
    assert folder_of(Path("runs/x"), ONE) == Path("runs/x/ranks/rank-1")


@pytest.mark.parametrize(
    ("shown", "gpu"), [(None, "1"), ("", ""), ("4,7", "7"), ("4", "")], ids=["all", "none", "two", "too few"]
)
def test_each_rank_of_a_machine_has_a_gpu_of_its_own(shown: str | None, gpu: str) -> None:
    assert ONE.gpu({} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}) == gpu


def test_accelerate_is_told_the_place() -> None:
    told = ONE.variables()
    assert (told["RANK"], told["WORLD_SIZE"], told["LOCAL_RANK"], told["LOCAL_WORLD_SIZE"]) == ("1", "3", "1", "2")
    assert (told["MASTER_ADDR"], told["MASTER_PORT"]) == ("10.0.0.7", "4000")
    assert str(ONE) == "rank 1 of 3"
