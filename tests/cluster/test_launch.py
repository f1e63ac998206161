from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lowmem_seq.cluster.launch import Launch, read_launch
from lowmem_seq.cluster.surroundings import Surroundings
from lowmem_seq.errors import UsageError
from tests.cluster.builders import ELSEWHERE, HERE, surroundings, told_by_accelerate, told_by_torchrun

OURS = "-m lowmem_seq train small"
TWO = "accelerate launch --num_machines 2 --num_processes 2"


def two(rank: int, ip: str, more: str = "") -> str:
    return f"{TWO} --machine_rank {rank} --main_process_ip {ip} --main_process_port 29600 {more} {OURS}"


def essence(launch: Launch) -> tuple[object, ...]:
    return (
        launch.launcher,
        launch.machines,
        launch.processes,
        launch.machine_rank,
        launch.hosts,
        launch.address,
        launch.port,
        launch.formed,
    )


def test_a_command_without_a_launcher_is_for_one_machine() -> None:
    launch = read_launch(surroundings({"PATH": "/bin", "OMP_NUM_THREADS": "3"}))
    assert launch == Launch()
    assert (launch.launcher, launch.machines, launch.several_machines, launch.hosts) == ("none", 1, False, True)


def test_a_config_file_alone_launches_nothing(tmp_path: Path) -> None:
    write_config(tmp_path, f"num_machines: 2\nmain_process_ip: {HERE}\nmain_process_port: 1\nmachine_rank: 0")
    assert read_launch(surroundings(home=tmp_path)) == Launch()


@pytest.mark.parametrize("more", ["", "--cpu", "--same_network", "--mixed_precision bf16 --dynamo_backend no"])
@pytest.mark.parametrize(("rank", "ip"), [(0, HERE), (1, ELSEWHERE), (0, "127.0.0.1"), (1, "127.0.0.1"), (1, HERE)])
def test_accelerate_for_two_machines_is_read_off_its_command_line(rank: int, ip: str, more: str) -> None:
    launch = read_launch(surroundings(told_by_accelerate(ip, 29600), two(rank, ip, more)))
    assert essence(launch) == ("accelerate", 2, 2, rank, rank == 0, ip, 29600, 1)
    assert (launch.process_rank, launch.local_rank, launch.leads_its_machine) == (0, 0, True)
    assert launch.hardware == ("cpu" if more == "--cpu" else None)
    assert not launch.port_taken
    assert launch.found == {
        "machines": "--num_machines of accelerate launch",
        "processes": "--num_processes of accelerate launch",
        "machine_rank": "--machine_rank of accelerate launch",
        "address": "MASTER_ADDR in the environment",
        "port": "MASTER_PORT in the environment",
    }


@pytest.mark.parametrize("rank", [0, 1])
def test_accelerate_with_multi_gpu_forms_a_world_by_torchrun_s_agent(rank: int) -> None:
    environment = {**told_by_accelerate(), **told_by_torchrun(rank, address=ELSEWHERE, port=29600)}
    launch = read_launch(surroundings(environment, two(rank, ELSEWHERE, "--multi_gpu")))
    assert essence(launch) == ("accelerate", 2, 2, rank, rank == 0, ELSEWHERE, 29600, 2)
    assert launch.process_rank == rank
    assert launch.hardware == "multi_gpu"
    assert launch.port_taken


@pytest.mark.parametrize(("machine", "local"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_torchrun_tells_everything_by_the_environment(machine: int, local: int) -> None:
    environment = told_by_torchrun(machine, local_rank=local, local=2)
    command = f"torchrun --nnodes 2 --nproc_per_node 2 --node_rank {machine} --master_addr {HERE} {OURS}"
    for words in (command, ""):  # with its command line, and where that can't be read
        launch = read_launch(surroundings(environment, words))
        assert essence(launch) == ("torchrun", 2, 4, machine, machine == 0, HERE, 29500, 4)
        assert (launch.process_rank, launch.local_rank) == (2 * machine + local, local)
        assert launch.leads_its_machine == (local == 0)
        assert launch.port_taken
        assert launch.found["machines"] == "GROUP_WORLD_SIZE in the environment"


def test_torchrun_s_rendezvous_may_give_other_ranks_and_addresses_than_asked_for() -> None:
    environment = told_by_torchrun(1, machines=3, address="hp.home", port=45291)
    command = f"torchrun --nnodes 1:4 --rdzv_backend c10d --node_rank 0 --rdzv_endpoint {ELSEWHERE}:29400 {OURS}"
    launch = read_launch(surroundings(environment, command))
    assert essence(launch) == ("torchrun", 3, 3, 1, False, "hp.home", 45291, 3)
    accelerate = f"{TWO} --multi_gpu --machine_rank 0 --rdzv_backend c10d --main_process_ip {HERE} {OURS}"
    environment = {**told_by_accelerate(), **told_by_torchrun(1, address="macbook.local", port=45291)}
    launch = read_launch(surroundings(environment, accelerate))
    assert essence(launch) == ("accelerate", 2, 2, 1, False, "macbook.local", 45291, 2)


def test_torchrun_s_command_line_is_enough_where_a_script_clears_the_environment() -> None:
    command = f"torchrun --nnodes 2 --nproc_per_node 2 --node_rank 1 --master_addr {ELSEWHERE} --no_python run.sh"
    launch = read_launch(surroundings({}, command))
    assert essence(launch) == ("torchrun", 2, 4, 1, False, ELSEWHERE, 29500, 1)


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({}, f"accelerate launch {OURS}"),
        (told_by_accelerate("127.0.0.1"), f"accelerate launch --num_processes 2 --cpu {OURS}"),
        (told_by_accelerate("127.0.0.1"), f"accelerate launch --num_machines 1 --num_processes 2 {OURS}"),
        (told_by_accelerate(ELSEWHERE), f"accelerate launch --num_machines 1 --num_processes 2 {OURS}"),
        (told_by_accelerate(ELSEWHERE), f"accelerate launch --num_machines 1 --main_process_ip {HERE} {OURS}"),
        (told_by_torchrun(0, machines=1), f"torchrun {OURS}"),
        (told_by_torchrun(0, machines=1, local=2), f"torchrun --nproc_per_node 2 {OURS}"),
        ({"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": ELSEWHERE}, ""),
    ],
)
def test_one_machine_is_a_plain_run(environment: dict[str, str], command: str) -> None:
    launch = read_launch(surroundings(environment, command))
    assert not launch.several_machines
    assert (launch.machine_rank, launch.hosts, launch.address, launch.port) == (0, True, None, None)


def test_the_second_process_of_one_machine_knows_that_it_is_not_the_first() -> None:
    launch = read_launch(surroundings(told_by_torchrun(0, machines=1, local_rank=1, local=2), "torchrun run.py"))
    assert (launch.processes, launch.formed, launch.local_rank) == (2, 2, 1)
    assert not launch.leads_its_machine


@pytest.mark.parametrize("command", [f"accelerate launch --num_machines 2 --main_process_ip X {OURS}", ""])
@pytest.mark.parametrize(
    ("address", "hosts"),
    [
        (HERE, True),
        ("fd00::5", True),
        ("hp", True),
        ("hp.home", True),
        (ELSEWHERE, False),
        ("macbook.local", False),
    ],
)
def test_where_no_rank_is_told_the_owner_of_the_address_hosts(address: str, hosts: bool, command: str) -> None:
    launch = read_launch(surroundings(told_by_accelerate(address, 29600), command.replace("X", address)))
    assert launch.hosts == hosts
    assert (launch.address, launch.port) == (address, 29600)
    assert launch.machines == (2 if command else None)
    assert launch.machine_rank == (0 if hosts else 1 if command else None)
    assert launch.several_machines
    owner = "this" if hosts else "another"
    assert launch.found["machine_rank"] == f"MASTER_ADDR in the environment is {owner} machine's"


def test_three_machines_without_ranks_leave_the_joiners_to_be_numbered() -> None:
    command = f"accelerate launch --num_machines 3 --num_processes 3 {OURS}"
    assert read_launch(surroundings(told_by_accelerate(ELSEWHERE), command)).machine_rank is None
    assert read_launch(surroundings(told_by_accelerate(HERE), command)).machine_rank == 0


def test_several_machines_may_be_meant_though_accelerate_was_not_told_how_many() -> None:
    command = f"accelerate launch --num_processes 2 --machine_rank 1 --main_process_ip {ELSEWHERE} {OURS}"
    launch = read_launch(surroundings(told_by_accelerate(ELSEWHERE), command))
    assert essence(launch) == ("accelerate", None, 2, 1, False, ELSEWHERE, 29500, 1)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_world_that_was_set_by_hand_is_one_process_a_machine(rank: int) -> None:
    environment = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": HERE, "MASTER_PORT": "29600"}
    launch = read_launch(surroundings(environment))
    assert essence(launch) == ("environment", 2, 2, rank, rank == 0, HERE, 29600, 2)


def test_a_world_of_mpi_is_read() -> None:
    environment = {
        f"OMPI_COMM_WORLD_{name}": text
        for name, text in {"SIZE": "4", "RANK": "3", "LOCAL_SIZE": "2", "LOCAL_RANK": "1"}.items()
    }
    launch = read_launch(surroundings({**environment, "MASTER_ADDR": ELSEWHERE}))
    assert essence(launch) == ("mpi", 2, 4, 1, False, ELSEWHERE, 29500, 4)
    assert (launch.process_rank, launch.local_rank) == (3, 1)


def write_config(home: Path, text: str, name: str = ".cache/huggingface/accelerate/default_config.yaml") -> Path:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


CONFIG = """compute_environment: LOCAL_MACHINE
debug: false
distributed_type: MULTI_CPU
downcast_bf16: 'no'
machine_rank: 1
main_process_ip: 192.168.1.7
main_process_port: 29600
main_training_function: main
mixed_precision: 'no'
num_machines: 2
num_processes: 2
rdzv_backend: static
same_network: true
use_cpu: true
"""


def of_usual(home: Path) -> Surroundings:
    write_config(home, CONFIG)
    return surroundings(told_by_accelerate(ELSEWHERE, 29600), f"accelerate launch {OURS}", home=home)


def of_usual_unseen(home: Path) -> Surroundings:
    write_config(home, CONFIG)
    return surroundings(told_by_accelerate(ELSEWHERE, 29600), home=home)


def of_flag(home: Path) -> Surroundings:
    path = write_config(home, CONFIG, "two.yaml")
    write_config(home, "num_machines: 7")
    command = f"accelerate launch --config-file={path.as_posix()} {OURS}"
    return surroundings(told_by_accelerate(ELSEWHERE, 29600), command, home=home)


def of_variable(home: Path) -> Surroundings:
    path = write_config(home, CONFIG, "two.yaml")
    write_config(home, "num_machines: 7")
    environment = {**told_by_accelerate(ELSEWHERE, 29600), "ACCELERATE_CONFIG_FILE": str(path)}
    return surroundings(environment, f"accelerate launch {OURS}", home=home)


def of_json(home: Path) -> Surroundings:
    text = (
        '{"machine_rank": 1, "main_process_ip": "192.168.1.7", "main_process_port": 29600,\n  "num_machines": 2, '
        '"num_processes": 2, "use_cpu": true}'
    )
    command = f"accelerate launch --config_file {write_config(home, text, 'two.json').as_posix()} {OURS}"
    return surroundings(told_by_accelerate(ELSEWHERE, 29600), command, home=home)


def of_hf_home(home: Path) -> Surroundings:
    write_config(home, CONFIG, "elsewhere/accelerate/default_config.yaml")
    environment = {**told_by_accelerate(ELSEWHERE, 29600), "HF_HOME": "~/elsewhere", "XDG_CACHE_HOME": "/other"}
    return surroundings(environment, f"accelerate launch {OURS}", home=home)


def of_cache_home(home: Path) -> Surroundings:
    write_config(home, CONFIG, "elsewhere/huggingface/accelerate/default_config.yaml")
    environment = {**told_by_accelerate(ELSEWHERE, 29600), "XDG_CACHE_HOME": str(home / "elsewhere")}
    return surroundings(environment, f"accelerate launch {OURS}", home=home)


@pytest.mark.parametrize(
    "around", [of_usual, of_usual_unseen, of_flag, of_variable, of_json, of_hf_home, of_cache_home]
)
def test_accelerate_s_config_file_tells_what_its_command_line_does_not(
    tmp_path: Path, around: Callable[[Path], Surroundings]
) -> None:
    launch = read_launch(around(tmp_path))
    assert essence(launch) == ("accelerate", 2, 2, 1, False, ELSEWHERE, 29600, 1)
    assert launch.hardware == "cpu"
    assert launch.found["machine_rank"].startswith(f"machine_rank in {tmp_path}")


def test_the_command_line_goes_before_the_config_file(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG.replace("MULTI_CPU", "MULTI_GPU"))
    command = f"accelerate launch --machine_rank 0 --num_processes=4 --main_process_ip {HERE} {OURS}"
    launch = read_launch(surroundings(told_by_accelerate(HERE, 29600), command, home=tmp_path))
    assert essence(launch) == ("accelerate", 2, 4, 0, True, HERE, 29600, 1)
    assert launch.hardware == "multi_gpu"
    assert launch.found["machine_rank"] == "--machine_rank of accelerate launch"
    alone = read_launch(surroundings({}, f"accelerate launch --num_machines 1 {OURS}", home=tmp_path))
    assert not alone.several_machines


def test_a_config_file_of_two_machines_counts_though_accelerate_leaves_it_out_with_cpu(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG)
    launch = read_launch(surroundings({}, f"accelerate launch --cpu {OURS}", home=tmp_path))
    assert essence(launch) == ("accelerate", 2, 2, 1, False, ELSEWHERE, 29600, 1)


@pytest.mark.parametrize(
    "text",
    [
        "num_machines: 1\nnum_processes: 1\nmachine_rank: 0\nmain_process_ip: null\ndistributed_type: 'NO'",
        "num_processes: -1",
        "compute_environment: AMAZON_SAGEMAKER\nnum_machines: 2",
    ],
)
def test_a_config_file_of_one_machine_is_a_plain_run(tmp_path: Path, text: str) -> None:
    write_config(tmp_path, text)
    launch = read_launch(surroundings({}, f"accelerate launch {OURS}", home=tmp_path))
    assert (launch.launcher, launch.machines) == ("accelerate", 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("num_machines: [", "can't be read: "),
        ("two", "holds no settings."),
        ("", "holds no settings."),
        ("num_machines: two", "has num_machines 'two', which is no number."),
        ("machine_rank: -2", "has machine_rank -2, which is no number."),
        ("num_processes: true", "has num_processes True, which is no number."),
    ],
)
def test_a_config_file_that_can_t_be_read_is_an_error_that_names_it(tmp_path: Path, text: str, told: str) -> None:
    path = write_config(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_launch(surroundings({}, f"accelerate launch {OURS}", home=tmp_path))
    assert caught.value.message.startswith(f"accelerate's config file {path} {told}")
    assert "--host" in caught.value.hint
    assert "--join" in caught.value.hint


def test_a_config_file_that_is_named_and_not_there_is_an_error(tmp_path: Path) -> None:
    environment = {**told_by_accelerate(), "ACCELERATE_CONFIG_FILE": str(tmp_path / "no.yaml")}
    with pytest.raises(UsageError, match=r"no\.yaml can't be read"):
        read_launch(surroundings(environment))


@pytest.mark.parametrize(("flag", "port"), [("", 29500), ("4000", 4000)])
def test_host_alone_hosts_at_a_port(flag: str, port: int) -> None:
    launch = read_launch(surroundings(), host=flag)
    assert essence(launch) == ("flags", None, None, 0, True, None, port, 1)
    assert launch.several_machines
    assert launch.found["port"] == "--host"


def test_join_alone_dials() -> None:
    launch = read_launch(surroundings(), join="[fd00::7]:4000")
    assert essence(launch) == ("flags", None, None, None, False, "fd00::7", 4000, 1)
    assert read_launch(surroundings(), join="macbook.local").port == 29500


CONTRADICTION = two(0, ELSEWHERE)


def test_our_flags_win_over_everything_that_a_launcher_told() -> None:
    around = surroundings(told_by_accelerate(ELSEWHERE), CONTRADICTION)
    assert essence(read_launch(around, host="4000")) == ("accelerate", 2, 2, 0, True, None, 4000, 1)
    joins = read_launch(around, join="10.0.0.9:4000")
    assert essence(joins) == ("accelerate", 2, 2, 1, False, "10.0.0.9", 4000, 1)
    assert joins.found["machine_rank"] == "--join"
    assert joins.found["machines"] == "--num_machines of accelerate launch"
    second = surroundings(
        told_by_torchrun(0, machines=1, local_rank=1, local=2), "torchrun --nproc_per_node 2 x.py"
    )
    assert essence(read_launch(second, host="")) == ("torchrun", None, 2, 0, True, None, 29500, 2)
    assert not read_launch(second, host="").leads_its_machine


@pytest.mark.parametrize(("host", "join"), [("", "hp.home"), ("4000", "")])
def test_host_and_join_exclude_each_other(host: str, join: str) -> None:
    with pytest.raises(UsageError, match="--host and --join were both given"):
        read_launch(surroundings(), host=host, join=join)


@pytest.mark.parametrize(("host", "join"), [("70000", None), ("x", None), (None, ""), (None, "hp.home:0")])
def test_flags_that_name_no_place_are_refused(host: str | None, join: str | None) -> None:
    with pytest.raises(UsageError):
        read_launch(surroundings(), host=host, join=join)


BY_HAND = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": HERE}


@pytest.mark.parametrize(
    ("environment", "command", "message"),
    [
        (
            told_by_accelerate("127.0.0.1"),
            f"{TWO} --main_process_ip 127.0.0.1 {OURS}",
            "nothing says which machine this is, and 127.0.0.1 (MASTER_ADDR in the environment), by whose owner it "
            "could be told, is the same on every machine.",
        ),
        ({"MASTER_ADDR": "localhost"}, "", "is the same on every machine."),
        ({"MASTER_ADDR": "0.0.0.0"}, "", "is no machine's own."),
        ({"MASTER_ADDR": "nobody.local"}, "", "is a name that is not known here."),
        (
            told_by_accelerate(ELSEWHERE, 29600),
            CONTRADICTION,
            "this is machine 0 (--machine_rank of accelerate launch), and machine 0 has the address 192.168.1.7 "
            "(MASTER_ADDR in the environment), but this machine's addresses are: 192.168.1.5, fd00::5.",
        ),
        (
            told_by_accelerate("0.0.0.0", 29600),
            two(1, "0.0.0.0"),
            "machine 1 (--machine_rank of accelerate launch) can't dial 0.0.0.0",
        ),
        (
            told_by_accelerate(HERE, 29600),
            two(2, HERE),
            "this is machine 2 (--machine_rank of accelerate launch), counted from 0, of 2 (--num_machines of "
            "accelerate launch).",
        ),
        (
            told_by_accelerate(),
            f"accelerate launch --num_machines 2 --num_processes 1 {OURS}",
            "1 process (--num_processes of accelerate launch) can't be shared out evenly to 2 machines",
        ),
        (told_by_accelerate(), f"{TWO} --num_processes 3 {OURS}", "3 processes (--num_processes of accelerate"),
        (told_by_accelerate(), f"accelerate launch --num_machines 0 {OURS}", "0 machines were asked for"),
        ({}, "torchrun --nnodes 2 --no_python run.sh", "2 machines were asked for (--nnodes of torchrun), but not"),
        (
            {**told_by_accelerate(), **BY_HAND},
            f"accelerate launch --num_machines 3 {OURS}",
            "the number of machines is 3 (--num_machines of accelerate launch), but 2 (WORLD_SIZE in the env",
        ),
        (
            {**told_by_accelerate(), **BY_HAND},
            f"accelerate launch --machine_rank 1 {OURS}",
            "this machine's rank is 1 (--machine_rank of accelerate launch), but 0 (RANK in the environment and",
        ),
        (
            told_by_accelerate(ELSEWHERE),
            f"{TWO} --main_process_ip {HERE} {OURS}",
            "machine 0's address is 192.168.1.5 (--main_process_ip of accelerate launch), but 192.168.1.7 (MASTER",
        ),
        (
            {**told_by_accelerate(), **told_by_torchrun(0)},
            f"{TWO} --multi_gpu --num_processes 3 {OURS}",
            "the number of processes is 3 (--num_processes of accelerate launch), but 2 (WORLD_SIZE in the env",
        ),
    ],
)
def test_what_is_ambiguous_or_contradicts_itself_names_host_and_join(
    environment: dict[str, str], command: str, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read_launch(surroundings(environment, command))
    assert message in caught.value.message
    assert caught.value.hint == (
        "say which machine hosts by flags, which win: --host 29500 on one machine, --join IP:29500 on the others"
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"},
        {"WORLD_SIZE": "2", "RANK": "2"},
        {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
        {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"},
        {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "0"},
    ],
)
def test_a_world_of_which_parts_are_missing_or_wrong_is_an_error(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        read_launch(surroundings({**environment, "MASTER_ADDR": HERE}))
    assert all(f"{name} in the environment" in caught.value.message for name in ("WORLD_SIZE",))
    assert "--host" in caught.value.hint
    assert "--join" in caught.value.hint


@pytest.mark.parametrize("name", ["WORLD_SIZE", "MASTER_PORT", "PMI_SIZE"])
def test_a_variable_that_is_no_number_is_an_error(name: str) -> None:
    with pytest.raises(UsageError, match=f"the environment's {name} is 'two'"):
        read_launch(surroundings({"MASTER_ADDR": HERE, name: "two"}))


@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_port_that_can_t_be_dialled_is_an_error(port: str) -> None:
    with pytest.raises(UsageError, match=f"MASTER_PORT in the environment: '{port}' is no port"):
        read_launch(surroundings({"MASTER_ADDR": HERE, "MASTER_PORT": port}))
