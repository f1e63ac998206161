"""The launchers themselves: what reaches a process of theirs is read as it was asked for.

Each starts two interpreters that import torch, 3 to 4 s a form: the two that most users type are in `make test`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq.cluster.worlds import OF_A_WORLD, PREFIXES_OF_A_WORLD
from tests.builders import free_port
from tests.cluster.testbed import Network, network

SECONDS = 120.0
SHOWS = """
import dataclasses, json, os, sys
from lowmem_seq.cluster.launch import read_launch
from lowmem_seq.cluster.surroundings import look_around
from lowmem_seq.cluster.worlds import environment_of_one, threads_asked
from lowmem_seq.errors import UsageError

around = look_around()
try:
    told = dataclasses.asdict(read_launch(around))
except UsageError as error:
    told = {"error": error.message, "hint": error.hint}
told["torch"] = "torch" in sys.modules
told["threads"], told["kept"], told["arguments"] = threads_asked(around), environment_of_one(around), sys.argv[1:]
os.write(1, b"\\nSHOWN " + json.dumps(told).encode() + b"\\n")  # at once, or two processes mix their lines
"""
ACCELERATE = ("accelerate", "launch")
IP, PORT = "--main_process_ip=127.0.0.1", "--main_process_port=PORT"
CONFIG = """compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
machine_rank: RANK
main_process_ip: 127.0.0.1
main_process_port: PORT
num_machines: 2
num_processes: 2
use_cpu: true
"""


def start_here(*words: str, **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(words, text=True, **settings)


def launch(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, rank: int, port: int, words: tuple[str, ...]
) -> subprocess.Popen[str]:
    """Starts a launcher as machine `rank`; RANK, PORT and CONFIG in its words are filled in."""
    home = tmp_path / f"home{rank}"
    (home / "accelerate").mkdir(parents=True)
    (tmp_path / "shows.py").write_text(SHOWS, encoding="utf-8")
    config = home / "accelerate" / ("default_config.yaml" if "CONFIG" not in " ".join(words) else "two.yaml")
    config.write_text(CONFIG.replace("RANK", str(rank)).replace("PORT", str(port)), encoding="utf-8")
    if "USUAL" not in words and "CONFIG" not in " ".join(words):
        config.unlink()
    filled = [
        word.replace("RANK", str(rank)).replace("PORT", str(port)).replace("CONFIG", str(config))
        for word in words
        if word != "USUAL"
    ]
    if filled[0] != sys.executable:
        filled = [sys.executable, str(Path(sys.executable).parent / filled[0]), *filled[1:]]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in OF_A_WORLD and not name.startswith(PREFIXES_OF_A_WORLD) and name != "OMP_NUM_THREADS"
    }
    search = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    return start(
        *(*filled, "-m", "shows", "train", "small"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "PYTHONPATH": search, "HF_HOME": str(home)},
    )


def launched(tmp_path: Path, *words: str, machines: int = 2, net: Network | None = None) -> list[dict[str, Any]]:
    """What the processes of all machines found, in the order of machines and of processes on each."""
    port = free_port()
    starts = [start_here] * machines if net is None else [machine.start for machine in net.machines]
    started = [launch(start, tmp_path, rank, port, words) for rank, start in enumerate(starts)]
    try:
        ended = [process.communicate(timeout=SECONDS) for process in started]
    finally:
        for process in started:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0] * machines, ended
    shown: list[dict[str, Any]] = []
    for out, _ in ended:
        lines = [line.partition("SHOWN ")[2] for line in out.splitlines() if "SHOWN " in line]
        shown.extend(sorted((json.loads(line) for line in lines), key=lambda told: int(told.get("local_rank", 0))))
    for told in shown:
        assert told["arguments"] == ["train", "small"]
        assert not told["torch"]
        assert told["threads"] is None
        assert not [name for name in told["kept"] if name in OF_A_WORLD or name.startswith(PREFIXES_OF_A_WORLD)]
        assert "OMP_NUM_THREADS" not in told["kept"]
        assert "KMP_AFFINITY" not in told["kept"]
        if "port" in told and told["machines"] == 2 and "c10d" not in words:
            address = "127.0.0.1" if net is None else net.machines[0].address
            assert (told["address"], told["port"]) == (address, port)
    return shown


NUMBERS = ("--num_machines", "2", "--num_processes", "2", "--machine_rank", "RANK")
FORMS: list[tuple[str, tuple[str, ...], str, int, str | None]] = [
    ("as it is", (*ACCELERATE, *NUMBERS, IP, PORT), "accelerate", 1, None),
    ("torchrun", ("torchrun", "--nnodes=2", "--node-rank=RANK", "--master_port=PORT"), "torchrun", 2, None),
]
SLOW_FORMS: list[tuple[str, tuple[str, ...], str, int, str | None]] = [
    ("with --cpu", (*ACCELERATE, "--cpu", *NUMBERS, IP, PORT), "accelerate", 1, "cpu"),
    ("with --multi_gpu", (*ACCELERATE, "--multi-gpu", *NUMBERS, IP, PORT), "accelerate", 2, "multi_gpu"),
    (
        "with --multi_gpu --same_network",
        (*ACCELERATE, "--multi_gpu", "--same_network", *NUMBERS, IP, PORT),
        "accelerate",
        2,
        "multi_gpu",
    ),
    ("by --config_file", (*ACCELERATE, "--config_file", "CONFIG"), "accelerate", 1, "cpu"),
    ("by --config_file and --cpu", (*ACCELERATE, "--cpu", "--config-file=CONFIG"), "accelerate", 1, "cpu"),
    ("by the usual config file", (*ACCELERATE, "USUAL"), "accelerate", 1, "cpu"),
    ("by the usual config file and --cpu", (*ACCELERATE, "--cpu", "USUAL"), "accelerate", 1, "cpu"),
    (
        "by the module",
        (sys.executable, "-u", "-m", "accelerate.commands.launch", *NUMBERS, IP, PORT),
        "accelerate",
        1,
        None,
    ),
    (
        "torchrun by the module",
        (sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--node_rank", "RANK", "--master_port=PORT"),
        "torchrun",
        2,
        None,
    ),
    (
        "torchrun by an endpoint",
        ("torchrun", "--nnodes", "2", "--node_rank", "RANK", "--rdzv_endpoint=127.0.0.1:PORT"),
        "torchrun",
        2,
        None,
    ),
]


@pytest.mark.parametrize(
    ("words", "launcher", "formed", "hardware"),
    [pytest.param(*form[1:], id=form[0]) for form in FORMS]
    + [pytest.param(*form[1:], id=form[0], marks=pytest.mark.slow) for form in SLOW_FORMS],
)
def test_every_form_of_launch_is_read_as_it_was_asked_for(
    tmp_path: Path, words: tuple[str, ...], launcher: str, formed: int, hardware: str | None
) -> None:
    shown = launched(tmp_path, *words)
    assert len(shown) == 2
    for rank, told in enumerate(shown):
        assert told["launcher"] == launcher
        assert (told["machines"], told["processes"], told["machine_rank"]) == (2, 2, rank)
        assert told["hosts"] == (rank == 0)
        assert (told["formed"], told["process_rank"]) == (formed, rank if formed == 2 else 0)
        assert told["hardware"] == hardware
        assert told["port_taken"] == (formed == 2)


@pytest.mark.slow
def test_torchrun_s_rendezvous_numbers_whoever_comes(tmp_path: Path) -> None:
    words = ("torchrun", "--nnodes", "1:2", "--nproc_per_node", "2", "--rdzv_backend", "c10d")
    shown = launched(tmp_path, *words, "--rdzv_endpoint", "127.0.0.1:PORT", "--rdzv_conf", "last_call_timeout=20")
    assert {(told["machines"], told["processes"], told["formed"]) for told in shown} == {(2, 4, 4)}
    assert sorted((told["machine_rank"], told["local_rank"], told["process_rank"]) for told in shown) == [
        (0, 0, 0),
        (0, 1, 1),
        (1, 0, 2),
        (1, 1, 3),
    ]
    assert [told["hosts"] for told in shown] == [told["machine_rank"] == 0 for told in shown]


@pytest.mark.slow
@pytest.mark.parametrize("words", [ACCELERATE, (*ACCELERATE, "--cpu", "--num_processes", "2")], ids=" ".join)
def test_accelerate_for_one_machine_is_a_plain_run(tmp_path: Path, words: tuple[str, ...]) -> None:
    (told,) = launched(tmp_path, *words, machines=1)
    assert (told["launcher"], told["machines"], told["hosts"], told["formed"]) == ("accelerate", 1, True, 1)


@pytest.mark.slow
def test_torchrun_for_one_machine_starts_a_process_beside_the_first(tmp_path: Path) -> None:
    shown = launched(tmp_path, "torchrun", "--nproc_per_node", "2", "--master_port=PORT", machines=1)
    assert [(told["machines"], told["processes"], told["local_rank"]) for told in shown] == [(1, 2, 0), (1, 2, 1)]


WORLD = "from accelerate import PartialState; print(PartialState(cpu=True).num_processes)"


@pytest.mark.slow
def test_a_child_with_the_cleared_environment_is_a_world_of_one(tmp_path: Path) -> None:
    for told in launched(tmp_path, "torchrun", "--nnodes=2", "--node_rank=RANK", "--master_port=PORT"):
        child = [sys.executable, "-c", WORLD]
        ended = subprocess.run(child, env=told["kept"], capture_output=True, text=True, timeout=SECONDS, check=True)
        assert ended.stdout == "1\n"


@pytest.mark.slow
def test_a_launch_that_tells_no_rank_on_loopback_is_refused(tmp_path: Path) -> None:
    words = (*ACCELERATE, "--num_machines", "2", "--num_processes=2", IP, PORT)
    for told in launched(tmp_path, *words):
        assert told["error"].startswith("nothing says which machine this is, and 127.0.0.1 (MASTER_ADDR")
        assert "--host" in told["hint"]
        assert "--join" in told["hint"]


@pytest.mark.slow
@pytest.mark.cluster
def test_where_no_rank_is_told_the_machine_that_has_the_address_hosts(tmp_path: Path) -> None:
    with network(2) as net:
        address = f"--main_process_ip={net.machines[0].address}"
        words = (*ACCELERATE, "--num_machines", "2", "--num_processes=2", address, PORT)
        shown = launched(tmp_path, *words, net=net)
    assert [(told["machine_rank"], told["hosts"]) for told in shown] == [(0, True), (1, False)]
