from __future__ import annotations

import argparse
from typing import cast

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from lowmem_seq.cluster.launchers import (
    FLAGS,
    TORCHRUN_OPTIONS,
    Launcher,
    asked_by_command,
    read_command,
    read_port,
    split_endpoint,
)
from lowmem_seq.errors import UsageError

TAIL = "-m lowmem_seq train small --num_machines 9 --cpu"
PARSERS: dict[Launcher, argparse.ArgumentParser] = {
    "accelerate": cast(argparse.ArgumentParser, launch_command_parser()),
    "torchrun": get_args_parser(),
}


@pytest.mark.parametrize(
    "started",
    [
        "accelerate launch",
        "/home/u/venv/bin/python3 /home/u/venv/bin/accelerate launch",
        "/home/u/venv/bin/python3.11 -u -X dev -Wignore /home/u/venv/bin/accelerate launch",
        "/home/u/venv/bin/python -W ignore -Xdev -m accelerate.commands.launch",
        "python -um accelerate.commands.launch",
        "python -maccelerate.commands.accelerate_cli launch",
        "python --check-hash-based-pycs=always /usr/bin/accelerate-launch",
        "/opt/Python.framework/Versions/3.12/Resources/Python.app/Contents/MacOS/Python /v/bin/accelerate launch",
        "C:\\venv\\Scripts\\python.exe C:\\venv\\Scripts\\accelerate.exe launch",
        "C:\\venv\\Scripts\\pythonw.exe C:\\venv\\Scripts\\accelerate-script.py launch",
        "C:\\Tools\\Accelerate.EXE launch",
    ],
)
def test_accelerate_is_known_however_it_was_started(started: str) -> None:
    words = (*started.split(" "), "--num_machines", "2", *TAIL.split())
    command = read_command(words)
    assert command is not None
    assert command.launcher == "accelerate"
    assert command.options == {"num_machines": "2", "m": ""}


@pytest.mark.parametrize(
    "started",
    [
        "torchrun",
        "python3 /v/bin/torchrun",
        "python -m torch.distributed.run",
        "python -m torch.distributed.launch",
        "C:\\v\\python.exe C:\\v\\Scripts\\torchrun.exe",
    ],
)
def test_torchrun_is_known_however_it_was_started(started: str) -> None:
    command = read_command((*started.split(" "), "--nnodes", "2", *TAIL.split()))
    assert command is not None
    assert command.launcher == "torchrun"
    assert command.options == {"nnodes": "2", "m": ""}


@pytest.mark.parametrize(
    "words",
    [
        "",
        "bash",
        "python",
        "python -i",
        "python -m",
        "python -m lowmem_seq train small",
        "python train.py accelerate launch --num_machines 2",
        "timeout 60 accelerate launch --num_machines 2",
        "uv run accelerate launch --num_machines 2",
        "accelerate config",
        "accelerate",
        "python /v/bin/accelerate env",
        "python -m accelerate.commands.config",
    ],
)
def test_what_is_no_launcher_is_none(words: str) -> None:
    assert read_command(tuple(words.split())) is None


def test_a_shell_s_script_that_names_a_launcher_is_none() -> None:
    assert read_command(("bash", "-c", "accelerate launch --num_machines 2")) is None
    assert read_command(("python", "-c", "accelerate launch", "accelerate", "launch")) is None


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_options_without_a_value_are_those_of_the_installed_parser(launcher: Launcher) -> None:
    theirs = {
        option.lstrip("-").replace("-", "_")
        for action in PARSERS[launcher]._actions
        for option in action.option_strings
        if action.nargs == 0
    }
    assert theirs <= FLAGS[launcher]
    assert FLAGS[launcher] - theirs <= {"use_env"}  # of torch.distributed.launch alone


def test_torchrun_s_options_are_those_of_the_installed_parser() -> None:
    theirs = {option.lstrip("-") for action in PARSERS["torchrun"]._actions for option in action.option_strings}
    assert set(TORCHRUN_OPTIONS) <= theirs


SPELLINGS = [
    "--num_machines 2 --num_processes 4 --machine_rank 1 --main_process_ip 10.0.0.1 --main_process_port 29600",
    "--num_machines=2 --num_processes=4 --machine_rank=1 --main_process_ip=10.0.0.1 --main_process_port=29600",
    "--num-machines 2 --num-processes=4 --machine-rank 1 --main-process-ip 10.0.0.1 --main-process-port=29600",
    "--multi_gpu --num-machines 2 --mixed_precision bf16 -t 0 --num_processes 4 --same_network --machine_rank 1 "
    "--main_process_ip 10.0.0.1 --debug --main_process_port 29600",
    "--num_machines 7 --num_machines 2 --cpu --num_processes 4 --machine_rank 1 -q --main_process_port 29600 "
    "--dynamo_backend=no --main_process_ip 10.0.0.1",
    "--a_flag_of_tomorrow --num_machines 2 --num_processes 4 --machine_rank 1 --main_process_ip 10.0.0.1 "
    "--an_option_of_tomorrow some --main_process_port 29600 --another",
]


@pytest.mark.parametrize("script", ["-m lowmem_seq", "--module lowmem_seq", "train.py", "--no_python lowmem-seq"])
@pytest.mark.parametrize("options", SPELLINGS)
def test_every_spelling_of_accelerate_is_read_up_to_the_script(options: str, script: str) -> None:
    rest = f"{options} {script} train small --num_machines 3 --main_process_ip 10.9.9.9"
    command = read_command(("accelerate", "launch", *rest.split()))
    assert command is not None
    asked = asked_by_command(command)
    read = {key: told.value for key, told in asked.items()}
    assert read == {"machines": 2, "processes": 4, "machine_rank": 1, "address": "10.0.0.1", "port": 29600}
    assert asked["machines"].where == "--num_machines of accelerate launch"
    if "tomorrow" not in options:
        theirs = PARSERS["accelerate"].parse_args(rest.split())
        assert (theirs.num_machines, theirs.num_processes, theirs.machine_rank) == (2, 4, 1)
        assert (theirs.main_process_ip, theirs.main_process_port) == ("10.0.0.1", 29600)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            "--nnodes 2 --node_rank 1 --nproc_per_node 3 --master_addr 10.0.0.1 --master_port 29600",
            {"machines": 2, "machine_rank": 1, "local_processes": 3, "address": "10.0.0.1", "port": 29600},
        ),
        (
            "--nnodes=2:2 --node-rank=1 --nproc-per-node=gpu --master-addr=[fd00::5] --standalone -r 3 -t0",
            {"machines": 2, "machine_rank": 1, "address": "fd00::5"},
        ),
        (
            "--nn 2 --node_r 1 --nproc-per 2 --master_a 10.0.0.1 --master-p 29600 --stand",
            {"machines": 2, "machine_rank": 1, "local_processes": 2, "address": "10.0.0.1", "port": 29600},
        ),
        (
            "--nnodes 1:3 --node_rank 1 --rdzv_backend c10d --rdzv-id x --rdzv_endpoint [fd00::5]:29400",
            {"address": "fd00::5", "port": 29400},
        ),
        ("--nnodes 2 --rdzv-e hp.home --node_rank 0", {"machines": 2, "machine_rank": 0, "address": "hp.home"}),
        ("", {}),
    ],
)
def test_every_spelling_of_torchrun_is_read_up_to_the_script(options: str, expected: dict[str, object]) -> None:
    rest = f"{options} -m lowmem_seq train small --nnodes 9"
    command = read_command(("torchrun", *rest.split()))
    assert command is not None
    assert {key: told.value for key, told in asked_by_command(command).items()} == expected
    theirs = PARSERS["torchrun"].parse_args(rest.split())  # what torchrun would not take needs no reading
    assert theirs.training_script == "lowmem_seq"


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("192.168.1.5:29500", "192.168.1.5", 29500),
        ("192.168.1.5", "192.168.1.5", None),
        (" macbook.local:1 ", "macbook.local", 1),
        ("[fe80::1]:65535", "fe80::1", 65535),
        ("[fe80::1%en0]:29500", "fe80::1%en0", 29500),
        ("[::1]", "::1", None),
        ("fe80::1", "fe80::1", None),
    ],
)
def test_an_endpoint_is_an_address_and_perhaps_a_port(text: str, address: str, port: int | None) -> None:
    assert split_endpoint(text) == (address, port)


@pytest.mark.parametrize("text", ["", " ", ":29500", "a:", "a:b", "[::1", "::1]:2", "[]:1", "a:1:[b]"])
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        split_endpoint(text)
    assert caught.value.message == f"'{text}' is no address with a port."


@pytest.mark.parametrize("text", ["0", "65536", "-1", "", "2950O", "1.5"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_port(text, "--host")
    assert caught.value.message == f"--host: '{text}' is no port."
