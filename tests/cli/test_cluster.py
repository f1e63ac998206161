from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lowmem_seq.cli import cluster as module
from lowmem_seq.cli.cluster import Part, have_token, join_command, read_part
from lowmem_seq.cli.engine import LOOPBACK
from lowmem_seq.cli.screen import describe_peers
from lowmem_seq.cluster.rank import Rank
from lowmem_seq.cluster.surroundings import Surroundings
from lowmem_seq.cluster.token import new_token
from tests.cli.conftest import CommandLine
from tests.cluster.builders import ELSEWHERE, HERE, surroundings, told_by_accelerate

OF_TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": HERE,
    "MASTER_PORT": "4000",
    "OMP_NUM_THREADS": "1",
}
ON_TWO = "accelerate launch --num_machines 2 --num_processes 2 --machine_rank 1 train.py"


def part_in(around: Surroundings, monkeypatch: pytest.MonkeyPatch) -> Part | Rank | None:
    monkeypatch.setattr(module, "look_around", lambda: around)
    monkeypatch.setattr(os, "environ", {"PATH": "/bin", **around.environment})
    return read_part(False, None, None, Console(quiet=True))[0]


def test_a_launch_of_two_machines_gives_each_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    assert part_in(surroundings(told_by_accelerate(HERE)), monkeypatch) == Part(True, LOOPBACK, 29500)
    there = surroundings(told_by_accelerate(ELSEWHERE, 4000), ON_TWO)
    assert part_in(there, monkeypatch) == Part(False, ELSEWHERE, 4000)


@pytest.mark.parametrize(
    ("rank", "part"), [("0", Part(True, LOOPBACK, 4001)), ("1", Part(False, HERE, 4001))], ids=["host", "joiner"]
)
def test_the_hub_takes_the_next_port_where_the_launcher_itself_listens(
    monkeypatch: pytest.MonkeyPatch, rank: str, part: Part
) -> None:
    around = surroundings({**OF_TORCHRUN, "RANK": rank, "GROUP_RANK": rank})
    assert part_in(around, monkeypatch) == part


def test_nothing_of_a_launcher_is_left_for_children(monkeypatch: pytest.MonkeyPatch) -> None:
    around = surroundings({**told_by_accelerate(HERE), "HOME": "/home/me"})
    part_in(around, monkeypatch)
    assert os.environ == {"HOME": "/home/me"}


def test_a_process_beside_the_first_one_says_so_and_ends(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {**OF_TORCHRUN, "GROUP_WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    for name, value in {**told, "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    ended = command_line("train", "tiny", "--mode", "laptop")
    assert ended.code == 0
    assert "process 1 of this machine ends here" in ended.out
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("train small --host", "lowmem-seq train small --join 10.0.0.7:4000"),
        ("train small --host --port 4000 --max-ram 6GB --run-dir x", "lowmem-seq train small --join 10.0.0.7:4000"),
        ("train small --host --port=4000 --max-ram=6GB", "lowmem-seq train small --join 10.0.0.7:4000"),
        ("--debug train small --seed 3 --host", "lowmem-seq --debug train small --seed 3 --join 10.0.0.7:4000"),
        ("train small --data mnist --host", "lowmem-seq train small --join 10.0.0.7:4000"),
        ("train small --data=here.zip --host", "lowmem-seq train small --join 10.0.0.7:4000"),
        (
            "train small --set recipe.beta1=0.8 --set machine.threads=1 --set=cluster.round=9s --host",
            "lowmem-seq train small --set recipe.beta1=0.8 --join 10.0.0.7:4000",
        ),
        (
            "train small --pause-on-battery --only-between 22-7 --background --no-keep-awake --host",
            "lowmem-seq train small --join 10.0.0.7:4000",
        ),
        ("resume runs/x --host --max-ram 6GB", "lowmem-seq resume ITS_RUN_DIR --join 10.0.0.7:4000"),
    ],
)
def test_the_other_machine_is_told_what_to_type(words: str, command: str) -> None:
    assert join_command(words.split(), "10.0.0.7", 4000) == command


def peer(name: str, rate: float) -> dict[str, Any]:
    return {"machine": name, "name": name, "device": "cpu", "precision": "fp32", "samples_per_second": rate}


def test_the_machines_are_shown_with_their_shares_of_the_work() -> None:
    assert describe_peers([peer("macbook", 300.0), peer("hp", 100.0)]).splitlines() == [
        "with    macbook  cpu, fp32, 300 images/s, 75% of the work",
        "        hp       cpu, fp32, 100 images/s, 25% of the work",
    ]
    assert "speed not known yet" in describe_peers([peer("macbook", 300.0), peer("hp", 0.0)])


@pytest.mark.parametrize("is_given", [True, False])
def test_others_are_told_how_to_join_once_they_can(monkeypatch: pytest.MonkeyPatch, is_given: bool) -> None:
    code = new_token().code
    monkeypatch.setenv("LOWMEM_SEQ_TOKEN", code if is_given else "")
    monkeypatch.setattr("sys.argv", ["lowmem-seq", "train", "small", "--host"])
    told = have_token(Part(True, LOOPBACK, 4000))
    assert "lowmem-seq train small --join " in told
    assert ":4000" in told
    assert (f"export LOWMEM_SEQ_TOKEN={os.environ['LOWMEM_SEQ_TOKEN']}" in told) == (not is_given)
