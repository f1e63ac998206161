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
from lowmem_seq.cli.screen import SessionScreen
from lowmem_seq.cluster.membership import take_part
from lowmem_seq.cluster.rank import Rank
from lowmem_seq.cluster.surroundings import Surroundings
from lowmem_seq.doctor import card
from lowmem_seq.errors import ClusterError, UsageError
from lowmem_seq.runs.folder import RunFolder
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
    cards: int = 0,
    device: str = "auto",
    run: RunFolder | None = None,
) -> Part | Rank | None:
    """What a command takes itself for, on a machine with so many cards for CUDA."""
    monkeypatch.setattr(module, "look_around", lambda: around)
    monkeypatch.setattr(card, "nvidia_cards", lambda: cards)
    monkeypatch.setattr(card, "cuda_of", lambda _package: "13.0")
    monkeypatch.setattr(os, "environ", {"PATH": "/bin", **around.environment})
    return read_part(False, None, join, console or Console(quiet=True), mode, device, run)[0]


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


ON_TWO = "torchrun --nnodes 2 -m lowmem_seq train tiny"
ALONE = "accelerate launch --num_machines 2 --num_processes 2 --machine_rank 1 -m lowmem_seq train tiny"


@pytest.mark.parametrize(
    ("told", "command", "wanted"),
    [
        (told_by_torchrun(1), ON_TWO, Rank(1, 2, 0, 1, HERE, 29500, store_is_there=True)),
        (told_by_accelerate("192.168.1.7"), ALONE, Rank(1, 2, 0, 1, "192.168.1.7", 29500)),
    ],
    ids=["torchrun", "accelerate"],
)
def test_machines_with_cards_for_cuda_and_without_a_join_code_are_ranks_if_their_network_is_fast(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], command: str, wanted: Rank
) -> None:
    around = surroundings(told, command)
    assert read(around, monkeypatch, cards=1) == replace(wanted, needs_fast_network=True)
    assert read(around, monkeypatch, "engine") == read(around, monkeypatch, "engine", cards=1) == wanted
    with_code = surroundings({**told, "LOWMEM_SEQ_TOKEN": "7K3QF"}, command)
    hidden = surroundings({**told, "CUDA_VISIBLE_DEVICES": "-1"}, command)
    for laptop in (
        read(around, monkeypatch, cards=0),
        read(with_code, monkeypatch, cards=1),
        read(hidden, monkeypatch, cards=1),
        read(around, monkeypatch, cards=1, device="cpu"),
        read(around, monkeypatch, "laptop", cards=1),
    ):
        assert isinstance(laptop, Part)


def test_a_run_of_laptop_mode_is_not_taken_for_one_of_engine_mode(
    monkeypatch: pytest.MonkeyPatch, run: RunFolder
) -> None:
    around = surroundings(told_by_torchrun(1), ON_TWO)
    assert isinstance(read(around, monkeypatch, cards=1, run=run), Rank)
    take_part(run, "member", HERE, 29500, "7K3QF")
    assert isinstance(read(around, monkeypatch, cards=1, run=run), Part)


def test_what_accelerate_starts_on_each_machine_is_a_world_only_if_one_was_asked_for_on_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ALONE.replace("--num_processes 2", "--num_processes 4")
    with pytest.raises(ClusterError, match=r"4 processes were asked for \(--num_processes of accelerate launch\)"):
        read(surroundings(told_by_accelerate("192.168.1.7"), command), monkeypatch, "engine")


@pytest.mark.parametrize(
    ("cards", "shown", "device", "noted"),
    [(4, None, "auto", 4), (4, "0,2", "cuda", 2), (1, None, "auto", 0), (4, "", "auto", 0), (4, None, "cpu", 0)],
)
def test_one_process_on_a_machine_with_several_cards_says_how_all_are_used(
    monkeypatch: pytest.MonkeyPatch, cards: int, shown: str | None, device: str, noted: int
) -> None:
    console = Console(record=True, width=200)
    environment = {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}
    assert read(surroundings(environment), monkeypatch, console=console, cards=cards, device=device) is None
    said = console.export_text()
    assert (f"torchrun --nproc_per_node {noted} -m lowmem_seq" in said) == bool(noted)
    assert ("note" in said) == bool(noted)


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
    with pytest.raises(ClusterError, match="this one was started alone") as told:
        read(surroundings(), monkeypatch, "engine", cards=4)
    assert told.value.hint.startswith("torchrun --nproc_per_node 4")


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


def test_who_is_waited_for_is_shown(run: RunFolder) -> None:
    console = Console(record=True, width=200)
    screen = SessionScreen(console, run, run.config, quiet=False)
    screen.show({"event": "waiting_for_ranks", "ranks": ["rank 1 (mac) prepares its images"]})
    assert console.export_text() == "waiting: rank 1 (mac) prepares its images\n"


@pytest.mark.parametrize("assignment", ["machine.pause_on_battery=true", "machine.only_between=22-7"])
def test_ranks_can_t_pause_one_by_one(assignment: str) -> None:
    refuse_pauses(tiny_config().machine)
    with pytest.raises(UsageError, match="none can pause by itself") as told:
        refuse_pauses(tiny_config(assignment).machine)
    assert told.value.hint == "--no-pause-on-battery --only-between always, or --mode laptop"
