"""Every form of launch with nobody on the other side: what it comes to, and that it is told within a minute.

| launched | what comes of it |
|---|---|
| the host of laptop mode, by any form | trains alone, and takes in whoever comes |
| a machine that joins, by any form | error 7 after 45 s: no hub answered at ADDRESS:PORT |
| a rank of engine mode, by any form | error 7 after 45 s: rank 0 did not answer, or rank N did not come |
| torchrun of several machines | it waits before it starts ours: 10 minutes, or `--rdzv_conf timeout=25` |

The forms of one mode are launched all at once, for they mostly wait.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.kills import PROGRAM
from lowmem_seq.cluster.token import new_token
from tests.builders import free_port
from tests.cluster.builders import told_by_torchrun
from tests.sessions import Session

SECONDS_TO_TELL = 60.0
SETTINGS = (
    "--data",
    "shapes",
    "--precision",
    "fp32",
    "--micro-batch",
    "16",
    "--max-ram",
    "1GB",
    "--steps",
    "100000",
)
ADDRESS = "127.0.0.1"
MODULES = {"accelerate": "accelerate.commands.accelerate_cli", "torchrun": "torch.distributed.run"}
OURS = ("-m", "lowmem_seq", "train", "tiny", *SETTINGS)


class Alone(NamedTuple):
    """How a session ended to which nobody came."""

    code: int
    seconds: float
    said: str


class Launches:
    """Starts one of two machines, each in a folder of its own."""

    def __init__(self, folder: Path, ends: contextlib.ExitStack) -> None:
        self._folder, self._ends = folder, ends
        self._count = 0

    def start(self, *words: str, program: Sequence[str] = PROGRAM, **environment: str) -> Session:
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        return self._ends.enter_context(Session(*words, cwd=folder, program=program, **environment))

    def accelerate(self, rank: int, *flags: str, **environment: str) -> Session:
        machines = ("--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank))
        place = ("--main_process_ip", ADDRESS, "--main_process_port", str(free_port()))
        words = ("-m", MODULES["accelerate"], "launch", "--cpu", *machines, *place, *OURS, *flags)
        return self.start(*words, program=PROGRAM[:1], **environment)

    def torchrun(self, rank: int, *options: str) -> Session:
        machines = ("--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(rank))
        place = ("--master_addr", ADDRESS, "--master_port", str(free_port()))
        return self.start("-m", MODULES["torchrun"], *machines, *place, *options, *OURS, program=PROGRAM[:1])

    def by_hand(self, rank: int) -> Session:
        """As mpirun, srun or a user's own script start a rank."""
        told = told_by_torchrun(rank, address=ADDRESS, port=free_port())
        world = {name: value for name, value in told.items() if not name.startswith("TORCHELASTIC_")}
        return self.start("train", "tiny", *SETTINGS, "--mode", "engine", "--run-dir", "run", **world)


@pytest.fixture
def launches(tmp_path: Path) -> Iterator[Launches]:
    with contextlib.ExitStack() as ends:
        yield Launches(tmp_path, ends)


def ends_of(sessions: Sequence[Session]) -> list[Alone]:
    """How sessions end that have just been started."""
    began = time.monotonic()

    def end(session: Session) -> Alone:
        code = session.process.wait(4 * SECONDS_TO_TELL)
        return Alone(code, time.monotonic() - began, session.said)

    with ThreadPoolExecutor(len(sessions)) as pool:
        return list(pool.map(end, sessions))


@pytest.mark.slow
def test_who_joins_nobody_is_told_and_who_hosts_trains_alone(launches: Launches) -> None:
    token = new_token().code
    part = ("train", "tiny", *SETTINGS, "--run-dir", "run")
    joiners = [
        launches.start(*part, "--join", f"{ADDRESS}:{free_port()}", LOWMEM_SEQ_TOKEN=token),
        launches.accelerate(1, LOWMEM_SEQ_TOKEN=token),
    ]
    for ended in ends_of(joiners):
        assert ended.code != 0
        assert ended.seconds < SECONDS_TO_TELL
        assert f"no hub answered at {ADDRESS}:" in ended.said
        assert "hint: " in ended.said
    hosts = [
        launches.start(*part, "--host", "--port", str(free_port()), LOWMEM_SEQ_TOKEN=token),
        launches.accelerate(0, LOWMEM_SEQ_TOKEN=token),
    ]
    for host in hosts:
        host.wait_for_words("listening on port")
        host.wait_for_words("epoch 1: validation accuracy")


@pytest.mark.slow
def test_a_rank_to_which_nobody_comes_is_told_which_one_is_missing(launches: Launches) -> None:
    ranks = [launches.accelerate(rank, "--mode", "engine", "--run-dir", "run") for rank in range(2)]
    ranks += [launches.by_hand(rank) for rank in range(2)]
    for number, ended in enumerate(ends_of(ranks)):
        assert ended.code != 0
        assert ended.seconds < SECONDS_TO_TELL
        missing = ("rank 1 did not come within 45 s", f"rank 0 did not answer at {ADDRESS}:")
        assert missing[number % 2] in ended.said
        assert "firewall" in ended.said


@pytest.mark.slow
def test_torchrun_waits_itself_and_can_be_told_for_how_long(launches: Launches) -> None:
    agents = [launches.torchrun(rank, "--rdzv_conf", "timeout=25") for rank in range(2)]
    for ended in ends_of(agents):
        assert ended.code != 0
        assert ended.seconds < SECONDS_TO_TELL
        assert "timed out" in ended.said.lower()
