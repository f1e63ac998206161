from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lowmem_seq.cli import cluster as module
from lowmem_seq.cli.cluster import Part, read_part
from lowmem_seq.cli.engine import make_run_of_rank, open_run_of_rank, refuse_pauses, run_path_of
from lowmem_seq.cluster.rank import Rank
from lowmem_seq.cluster.surroundings import Surroundings
from lowmem_seq.errors import ClusterError, UsageError
from tests.builders import names, tiny_config
from tests.cluster.builders import HERE, surroundings, told_by_accelerate, told_by_torchrun

TORCHRUN = "torchrun --nproc_per_node 2 -m lowmem_seq train tiny"
FIRST = Rank(0, 2, 0, 2, "127.0.0.1", 29500)
SECOND = Rank(1, 2, 1, 2, "127.0.0.1", 29500)


def read(
    around: Surroundings,
    monkeypatch: pytest.MonkeyPatch,
    mode: str = "auto",
    join: str | None = None,
    console: Console | None = None,
) -> Part | Rank | None:
    monkeypatch.setattr(module, "look_around", lambda: around)
    monkeypatch.setattr(os, "environ", {"PATH": "/bin", **around.environment})
    return read_part(False, None, join, console or Console(quiet=True), mode)[0]


def on_one(rank: int, **more: str) -> Surroundings:
    told = told_by_torchrun(0, machines=1, local_rank=rank, local=2, address="127.0.0.1", port=4000)
    return surroundings({**told, **more}, TORCHRUN)


@pytest.mark.parametrize("mode", ["auto", "engine"])
def test_several_processes_of_one_machine_are_ranks(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    wanted = Rank(1, 2, 1, 2, "127.0.0.1", 4000, attempt=3, store_is_there=True)
    around = on_one(1, TORCHELASTIC_RESTART_COUNT="3", TORCHELASTIC_USE_AGENT_STORE="True")
    assert read(around, monkeypatch, mode) == wanted
    assert "RANK" not in os.environ  # of the planner's and the packer's worlds of one
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_in_laptop_mode_the_first_process_trains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(on_one(0), monkeypatch, "laptop") is None


@pytest.mark.parametrize(("mode", "kind"), [("auto", Part), ("laptop", Part), ("engine", Rank)])
def test_one_process_on_each_of_two_machines_is_a_laptop_unless_asked_otherwise(
    monkeypatch: pytest.MonkeyPatch, mode: str, kind: type
) -> None:
    around = surroundings(told_by_torchrun(1), "torchrun --nnodes 2 -m lowmem_seq train tiny")
    assert isinstance(read(around, monkeypatch, mode), kind)


def test_two_processes_on_each_of_two_machines_are_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    around = surroundings(told_by_torchrun(1, local_rank=1, local=2), "torchrun --nnodes 2 --nproc_per_node 2 x.py")
    rank = read(around, monkeypatch)
    assert isinstance(rank, Rank)
    assert (rank.number, rank.of, rank.local, rank.local_of, rank.address) == (3, 4, 1, 2, HERE)


def test_a_world_that_was_asked_for_and_not_formed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "accelerate launch --cpu --num_processes 2 -m lowmem_seq train tiny"
    around = surroundings(told_by_accelerate("127.0.0.1"), command)
    console = Console(record=True, width=200)
    assert read(around, monkeypatch, console=console) is None
    assert "note: 2 processes were asked for (--num_processes of accelerate launch)" in console.export_text()
    with pytest.raises(
        ClusterError, match=r"2 processes were asked for \(--num_processes of accelerate launch\)"
    ) as told:
        read(around, monkeypatch, "engine")
    assert "torchrun --nproc_per_node 2" in told.value.hint
    with pytest.raises(ClusterError, match="this one was started alone"):
        read(surroundings(), monkeypatch, "engine")


def test_modes_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no mode 'engin'") as told:
        read(on_one(0), monkeypatch, "engin")
    assert told.value.hint == "did you mean 'engine'?"
    with pytest.raises(UsageError, match="--host and --join are of laptop mode"):
        read(on_one(0), monkeypatch, "engine", join="10.0.0.7")


def test_all_processes_of_a_launch_name_its_run_alike() -> None:
    around = on_one(0)
    with pytest.raises(UsageError, match="can't be seen") as told:
        run_path_of("tiny", around)
    assert "--run-dir" in told.value.hint
    assert around.starter is not None
    seen = replace(around, starter=replace(around.starter, began_unix_seconds=1.8e9))
    assert re.fullmatch(r"tiny-20270115-\d{6}", run_path_of("tiny", seen).name)


@pytest.mark.parametrize("order", [(FIRST, SECOND), (SECOND, FIRST)], ids=["first", "second"])
def test_each_rank_has_a_folder_whoever_comes_first(tmp_path: Path, order: tuple[Rank, Rank]) -> None:
    path, config = tmp_path / "run", tiny_config()
    for rank in order:
        assert make_run_of_rank(path, rank, config)[1].config == config
    assert names(path) == ["config.yaml", "environment.json", "lock", "ranks"]
    assert names(path / "ranks" / "rank-1") == ["config.yaml", "environment.json"]


def test_a_launcher_that_starts_all_again_finds_the_run_it_had(tmp_path: Path) -> None:
    path, config = tmp_path / "run", tiny_config()
    make_run_of_rank(path, FIRST, config)
    with pytest.raises(UsageError, match="is not empty"):
        make_run_of_rank(path, FIRST, config)
    again = make_run_of_rank(path, replace(FIRST, attempt=1), config)
    assert [run.path for run in again] == [path, path]
    assert make_run_of_rank(path, replace(SECOND, attempt=1), config)[0].path == path


def test_a_rank_s_plan_for_other_settings_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "run"
    own = make_run_of_rank(path, SECOND, tiny_config())[1]
    own.plan_file.write_text("{}", encoding="utf-8")
    assert make_run_of_rank(path, SECOND, tiny_config())[1].plan_file.exists()
    changed = make_run_of_rank(path, SECOND, tiny_config("machine.threads=2"))[1]
    assert not changed.plan_file.exists()
    assert changed.config.machine.threads == 2


def test_a_run_goes_on_with_a_rank_that_had_no_part_in_it(tmp_path: Path) -> None:
    path = tmp_path / "run"
    make_run_of_rank(path, FIRST, tiny_config("seed=5"))
    whole, own = open_run_of_rank(path, SECOND)
    assert (whole.path, own.path) == (path, path / "ranks" / "rank-1")
    assert own.config.seed == 5
    assert [run.path for run in open_run_of_rank(path, FIRST)] == [path, path]


def test_on_another_machine_a_rank_goes_on_with_what_it_kept(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(UsageError, match="rank 1 of 2 finds nothing of the run"):
        open_run_of_rank(path, SECOND)
    made = make_run_of_rank(path, SECOND, tiny_config("seed=5"))[1]
    assert [run.path for run in open_run_of_rank(path, SECOND)] == [made.path, made.path]


@pytest.mark.parametrize("assignment", ["machine.pause_on_battery=true", "machine.only_between=22-7"])
def test_ranks_can_t_pause_one_by_one(assignment: str) -> None:
    refuse_pauses(tiny_config().machine)
    with pytest.raises(UsageError, match="none can pause by itself") as told:
        refuse_pauses(tiny_config(assignment).machine)
    assert told.value.hint == "--no-pause-on-battery --only-between always, or --mode laptop"
