"""Engine mode as its users have it: launched by torchrun or accelerate, on loopback, with whole sessions."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.builders import free_port, names
from tests.sessions import Session, events, lowmem_seq, reported, rewound, wait_until

STEPS = 60
SETTINGS = (
    *("--data", "shapes", "--precision", "fp32", "--micro-batch", "16", "--max-ram", "2GB", "--steps", str(STEPS)),
    *("--set", "machine.threads=1", "--set", "recipe.ema_decay=0.9", "--checkpoint-every", "10steps"),
)
LONG = ("--steps", "100000")
OURS = ("-m", "lowmem_seq")
SECONDS_TO_END = 45.0


class Launcher:
    """Launches commands in one folder."""

    def __init__(self, folder: Path, ends: contextlib.ExitStack) -> None:
        self.run = folder / "run"
        self._folder, self._ends = folder, ends

    def start(self, *words: str, **environment: str) -> Session:
        program = (sys.executable, "-m")
        return self._ends.enter_context(Session(*words, cwd=self._folder, program=program, **environment))

    def torchrun(self, ranks: int, *command: str, restarts: int = 0) -> Session:
        options = (
            "--nproc_per_node",
            str(ranks),
            "--master_port",
            str(free_port()),
            "--max-restarts",
            str(restarts),
        )
        return self.start("torch.distributed.run", *options, *OURS, *command)

    def trainer(self, rank: int) -> psutil.Process:
        """A rank's trainer, as soon as there is one."""
        folder = self.run if rank == 0 else self.run / "ranks" / f"rank-{rank}"
        found: list[psutil.Process] = []

        def look() -> bool:
            for process in psutil.process_iter(["cmdline"]):
                words = process.info["cmdline"] or []
                if "lowmem_seq.training" in words and str(folder.relative_to(self._folder)) in words:
                    found.append(process)
            return bool(found)

        wait_until(look, f"the trainer of rank {rank}")
        return found[0]

    def wait_for(self, kind: str, session: Session) -> None:
        wait_until(lambda: events(self.run, kind) or session.process.poll() is not None, kind)
        assert events(self.run, kind), session.said


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    with contextlib.ExitStack() as ends:
        yield Launcher(tmp_path, ends)


def weights(run: Path) -> str:
    return str(events(run, "test")[-1]["weights_sha256"])


@pytest.mark.slow
def test_torchrun_s_processes_train_one_run_and_are_started_again_where_one_dies(launcher: Launcher) -> None:
    session = launcher.torchrun(2, "train", "tiny", *SETTINGS, "--steps", "150", "--run-dir", "run", restarts=1)
    launcher.wait_for("checkpoint", session)
    launcher.trainer(1).kill()
    said = session.ended(0)
    assert "for a trusted network only" in said
    assert "16 of 32 images a step (by gloo)" in said
    assert said.count("test accuracy") == 1
    begun = events(launcher.run, "session_started")
    assert [event["step"] > 0 for event in begun] == [False, True]
    assert reported(launcher.run)["state"] == "finished"
    assert reported(launcher.run)["images_seen"] == 150 * 32
    assert weights(launcher.run) == weights(launcher.run / "ranks" / "rank-1")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(launcher: Launcher) -> None:
    folder = launcher.run.parent
    alone, by_three, by_one = folder / "alone", folder / "three", folder / "one"
    lowmem_seq("train", "tiny", *SETTINGS, "--set", "checkpoint.keep=100", "--run-dir", "alone", cwd=folder)
    launcher.torchrun(3, "resume", rewound(alone, by_three, 20).name).ended(0)
    lowmem_seq("resume", rewound(by_three, by_one, 40).name, cwd=folder)
    figures = [events(run, "test")[-1] for run in (alone, by_three, by_one)]
    assert [told["step"] for told in figures] == [STEPS] * 3
    assert [told["test_loss"] for told in figures] == pytest.approx([figures[0]["test_loss"]] * 3, rel=1e-4)
    assert "is finished" in launcher.torchrun(2, "resume", "three").ended(0)


@pytest.mark.slow
def test_two_machines_keep_each_its_own_part_and_go_on_from_the_first_one_s(launcher: Launcher) -> None:
    for command in (("train", "tiny", *SETTINGS, "--run-dir"), ("resume", "--steps", "80")):
        port = free_port()
        machines = [
            launcher.start(
                *("torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(rank)),
                *("--master_addr", "127.0.0.1", "--master_port", str(port)),
                *(*OURS, *command, ("run", "there")[rank], "--mode", "engine"),
            )
            for rank in range(2)
        ]
        for machine in machines:
            machine.ended(0)
    there = launcher.run.parent / "there"
    assert names(there) == ["ranks"]
    assert weights(launcher.run) == weights(there / "ranks" / "rank-1")
    assert reported(launcher.run)["step"] == 80
    (formed, _) = events(launcher.run, "world_formed")
    assert [rank["samples"] for rank in formed["ranks"]] == [16, 16]


@pytest.mark.slow
def test_what_accelerate_starts_on_each_machine_are_ranks_where_that_is_asked_for(launcher: Launcher) -> None:
    port = str(free_port())
    machines = [
        launcher.start(
            *(
                "accelerate.commands.accelerate_cli",
                "launch",
                "--cpu",
                "--num_machines",
                "2",
                "--num_processes",
                "2",
            ),
            *("--machine_rank", str(rank), "--main_process_ip", "127.0.0.1", "--main_process_port", port),
            *(*OURS, "train", "tiny", *SETTINGS, "--run-dir", ("run", "there")[rank], "--mode", "engine"),
        )
        for rank in range(2)
    ]
    said = machines[0].ended(0)
    machines[1].ended(0)
    assert re.search(r"engine  2 processes have met: 2 on .*; the network between them carries [\d,]+ Mbit/s", said)
    assert weights(launcher.run) == weights(launcher.run.parent / "there" / "ranks" / "rank-1")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_ctrl_c_saves_and_ends_all(launcher: Launcher) -> None:
    session = launcher.torchrun(2, "train", "tiny", *SETTINGS, *LONG, "--run-dir", "run")
    launcher.wait_for("checkpoint", session)
    began = time.monotonic()
    session.process.send_signal(signal.SIGINT)
    session.process.wait(SECONDS_TO_END)
    assert time.monotonic() - began < SECONDS_TO_END
    ended = [events(run, "session_ended")[-1] for run in (launcher.run, launcher.run / "ranks" / "rank-1")]
    assert [event["state"] for event in ended] == ["stopped", "stopped"], session.said
    assert ended[0]["step"] == ended[1]["step"] == events(launcher.run, "checkpoint")[-1]["step"]
    assert not psutil.pid_exists(session.process.pid)


def test_accelerate_s_processes_train_one_run(launcher: Launcher) -> None:
    options = ("--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port()))
    words = ("launch", *options, *OURS, "train", "tiny", *SETTINGS, "--run-dir", "run")
    launcher.start("accelerate.commands.accelerate_cli", *words, ACCELERATE_USE_CPU="true").ended(0)
    assert weights(launcher.run) == weights(launcher.run / "ranks" / "rank-1")
    assert json.loads(lowmem_seq("status", "run", "--json", cwd=launcher.run.parent).stdout)["step"] == STEPS


def test_what_accelerate_does_not_form_is_an_error(launcher: Launcher) -> None:
    words = ("launch", "--cpu", "--num_processes", "2", *OURS, "train", "tiny", *SETTINGS, "--mode", "engine")
    session = launcher.start("accelerate.commands.accelerate_cli", *words)
    assert session.process.wait(SECONDS_TO_END) != 0
    assert "2 processes were asked for (--num_processes of accelerate launch)" in session.said
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu" in session.said
