"""Several machines as their users have them: whole sessions on loopback, each with a run folder of its own."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.kills import PROGRAM
from lowmem_seq.cluster.token import new_token
from tests.builders import free_port
from tests.plugged import program
from tests.sessions import Session, events, lowmem_seq, reported, wait_until

STEPS = 1500
SETTINGS = (
    *("--data", "shapes", "--precision", "fp32", "--micro-batch", "16", "--max-ram", "1GB", "--steps", str(STEPS)),
    *("--set", "machine.threads=1", "--set", "recipe.ema_decay=0.9", "--checkpoint-every", "50steps"),
    *("--set", "cluster.round=2s", "--set", "cluster.lost_after=4s"),
)
SECONDS_TO_TELL = 60.0


class TwoMachines:
    """A host and those that join it, on one computer."""

    def __init__(self, folder: Path, ends: contextlib.ExitStack) -> None:
        self.folder, self.port, self.token = folder, free_port(), new_token().code
        self._ends = ends

    def run(self, name: str) -> Path:
        return self.folder / name

    def start(self, *arguments: str, token: str | None = None, plug: Path | None = None) -> Session:
        session = Session(
            *arguments,
            cwd=self.folder,
            program=PROGRAM if plug is None else program(plug),
            LOWMEM_SEQ_TOKEN=self.token if token is None else token,
        )
        return self._ends.enter_context(session)

    def launch(self, module: str, *words: str) -> Session:
        """Start what a launcher starts, as on a machine of its own."""
        program = (sys.executable, "-m", module)
        session = Session(*words, cwd=self.folder, program=program, LOWMEM_SEQ_TOKEN=self.token)
        return self._ends.enter_context(session)

    def host(self, *flags: str, plug: Path | None = None) -> Session:
        part = ("--host", "--port", str(self.port))
        return self.start("train", "tiny", *SETTINGS, "--run-dir", "host", *part, *flags, plug=plug)

    def join(
        self, *flags: str, name: str = "joiner", token: str | None = None, plug: Path | None = None
    ) -> Session:
        part = ("--join", f"127.0.0.1:{self.port}")
        return self.start("train", "tiny", *SETTINGS, "--run-dir", name, *part, *flags, token=token, plug=plug)

    def resume(self, name: str) -> Session:
        part = ("--host", "--port", str(self.port)) if name == "host" else ("--join", f"127.0.0.1:{self.port}")
        return self.start("resume", name, *part)

    def accepted(self) -> int:
        """Samples that are merged, as the host's events tell."""
        rounds = events(self.run("host"), "round")
        return int(rounds[-1]["accepted"]) if rounds else 0

    def wait_for_round(self, host: Session) -> None:
        """Return when two machines have brought work into one round."""

        def there() -> bool:
            return any(len(event["machines"]) == 2 for event in events(self.run("host"), "round"))

        wait_until(lambda: there() or host.process.poll() is not None, "a round of two machines")
        assert there(), host.said


@pytest.fixture
def two(tmp_path: Path) -> Iterator[TwoMachines]:
    with contextlib.ExitStack() as ends:
        yield TwoMachines(tmp_path, ends)


def kill(session: Session) -> None:
    """End a machine with all its processes, as a power cut does."""
    own = psutil.Process(session.process.pid)
    for process in [*own.children(recursive=True), own]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    session.process.wait()


def same_weights(one: Path, other: Path) -> bool:
    told = [events(run, "test")[-1]["weights_sha256"] for run in (one, other)]
    return bool(told[0] == told[1])


def assert_it_ends_where_it_should(run: Path) -> None:
    """No step is counted beyond the run's, none is validated twice, and the newest checkpoint is of the end."""
    assert max(event["step"] for event in events(run, "train")) <= STEPS
    validated = [event["step"] for event in events(run, "validation")]
    assert validated == sorted(set(validated))
    assert len(validated) <= STEPS * 32 / 7200 + 2
    assert max(path.name for path in (run / "checkpoints").iterdir()) == f"step-{STEPS:08d}"


def assert_it_is_told_as_one_run_of_two_machines(two: TwoMachines) -> None:
    """Both folders make one run: whose samples add up to all, and whose bytes are counted at both ends."""
    [told] = json.loads(lowmem_seq("report", "host", "joiner", "--json", cwd=two.folder).stdout)
    host, joiner = told["machines"]
    assert (host["host"], joiner["host"]) == (True, False)
    assert host["samples_accepted"] + joiner["samples_accepted"] == STEPS * 32
    assert host["rounds"] >= joiner["rounds"] > 0
    assert joiner["bytes_sent"] > 0
    assert "page: " in lowmem_seq("report", "host", "joiner", "--html", "both.html", cwd=two.folder).stdout
    assert (two.folder / "both.html").stat().st_size > 0


def test_two_machines_train_one_model(two: TwoMachines) -> None:
    host = two.host()
    joiner = two.join()
    host_said, joiner_said = host.ended(0), joiner.ended(0)
    assert two.accepted() == STEPS * 32
    rounds = events(two.run("host"), "round")
    assert max(len(event["machines"]) for event in rounds) == 2
    assert same_weights(two.run("host"), two.run("joiner"))
    assert reported(two.run("host"))["state"] == reported(two.run("joiner"))["state"] == "finished"
    assert events(two.run("host"), "validation")
    assert_it_ends_where_it_should(two.run("host"))
    assert not events(two.run("joiner"), "validation")
    assert "with    " in host_said
    assert "dialling the host" in joiner_said
    assert_it_is_told_as_one_run_of_two_machines(two)


def test_one_machine_goes_on_when_the_other_is_cut_off_for_good(two: TwoMachines) -> None:
    host, joiner = two.host(), two.join()
    two.wait_for_round(host)
    kill(joiner)
    said = host.ended(0)
    assert two.accepted() == STEPS * 32
    assert [event["name"] for event in events(two.run("host"), "peer_lost")]
    assert "is gone" in said
    assert_it_ends_where_it_should(two.run("host"))


def test_a_trainer_that_dies_is_started_again_and_joins_again(two: TwoMachines) -> None:
    host, joiner = two.host(), two.join()
    two.wait_for_round(host)
    joiner.trainer().kill()
    host.ended(0)
    joiner.ended(0)
    assert events(two.run("joiner"), "trainer_restarted")
    assert_it_ends_where_it_should(two.run("host"))
    assert same_weights(two.run("host"), two.run("joiner"))
    assert two.accepted() == STEPS * 32


@pytest.mark.slow
def test_a_machine_on_battery_takes_leave_and_joins_again(two: TwoMachines) -> None:
    plug = two.folder / "plug"
    plug.touch()
    host, joiner = two.host(), two.join("--pause-on-battery", plug=plug)
    two.wait_for_round(host)
    plug.unlink()
    wait_until(lambda: events(two.run("joiner"), "paused"), "the joiner's pause")
    wait_until(lambda: events(two.run("host"), "peer_lost"), "its leave")
    assert events(two.run("host"), "peer_lost")[0]["cause"] == "stopped"
    plug.touch()
    host.ended(0)
    joiner.ended(0)
    assert len(events(two.run("joiner"), "member_welcome")) >= 2
    assert_it_ends_where_it_should(two.run("host"))
    assert same_weights(two.run("host"), two.run("joiner"))


@pytest.mark.slow
def test_the_other_machine_trains_on_with_the_hub_while_the_host_is_on_battery(two: TwoMachines) -> None:
    plug = two.folder / "plug"
    plug.touch()
    host, joiner = two.host("--pause-on-battery", plug=plug), two.join()
    two.wait_for_round(host)
    plug.unlink()
    wait_until(lambda: events(two.run("host"), "paused"), "the host's pause")
    before = two.accepted()
    wait_until(lambda: two.accepted() > before, "work that is merged meanwhile")
    assert not host.has_trainer
    plug.touch()
    host.ended(0)
    joiner.ended(0)
    assert events(two.run("joiner"), "member_alone") == []
    assert_it_ends_where_it_should(two.run("host"))
    assert same_weights(two.run("host"), two.run("joiner"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_both_are_stopped_and_go_on(two: TwoMachines) -> None:
    host, joiner = two.host(), two.join()
    two.wait_for_round(host)
    for name in ("host", "joiner"):
        told = json.loads(lowmem_seq("status", name, "--json", cwd=two.folder).stdout)
        assert (told["state"], told["peers"]) == ("running", 1)
    joiner.process.send_signal(signal.SIGINT)
    host.process.send_signal(signal.SIGINT)
    joiner.ended(4)
    host.ended(4)
    before = two.accepted()
    assert 0 < before < STEPS * 32
    host, joiner = two.resume("host"), two.resume("joiner")
    host.ended(0)
    joiner.ended(0)
    assert two.accepted() == STEPS * 32
    assert same_weights(two.run("host"), two.run("joiner"))


@pytest.mark.parametrize(
    ("flags", "token", "words"),
    [
        (("--seed", "5"), None, "experiment"),
        ((), new_token().code, "token"),
    ],
    ids=["another experiment", "another token"],
)
def test_what_does_not_fit_is_told_within_a_minute(
    two: TwoMachines, flags: tuple[str, ...], token: str | None, words: str
) -> None:
    two.host().wait_for_words("listening on port")
    began = time.monotonic()
    said = two.join(*flags, token=token).ended(7)
    assert time.monotonic() - began < SECONDS_TO_TELL
    assert words in said
    assert "hint: " in said


def test_a_machine_that_finds_no_host_says_so_within_a_minute_and_can_train_alone(two: TwoMachines) -> None:
    began = time.monotonic()
    said = two.join().ended(7)
    assert time.monotonic() - began < SECONDS_TO_TELL
    assert f"no hub answered at 127.0.0.1:{two.port}" in said
    assert "test accuracy" in two.start("resume", "joiner", "--steps", "40").ended(0)
    assert reported(two.run("joiner"))["images_seen"] == 40 * 32


def test_a_run_that_was_begun_alone_goes_on_with_another_machine(two: TwoMachines) -> None:
    lowmem_seq("train", "tiny", *SETTINGS, "--steps", "200", "--run-dir", "host", cwd=two.folder)
    host = two.start("resume", "host", "--steps", str(STEPS), "--host", "--port", str(two.port))
    joiner = two.join()
    host.ended(0)
    joiner.ended(0)
    assert two.accepted() == STEPS * 32
    assert same_weights(two.run("host"), two.run("joiner"))


def test_a_run_of_two_machines_goes_on_alone(two: TwoMachines) -> None:
    host, joiner = two.host(), two.join()
    two.wait_for_round(host)
    kill(host)
    kill(joiner)
    said = two.start("resume", "joiner").ended(0)
    assert "test accuracy" in said
    assert json.loads(lowmem_seq("status", "joiner", "--json", cwd=two.folder).stdout)["state"] == "finished"


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_what_launchers_start_forms_one_world(two: TwoMachines, launcher: str) -> None:
    def launched(rank: int) -> Session:
        run = ("train", "tiny", *SETTINGS, "--run-dir", ("host", "joiner")[rank])
        if launcher == "accelerate":
            words = [
                *("launch", "--cpu", "--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank)),
                *("--main_process_ip", "127.0.0.1", "--main_process_port", str(two.port)),
            ]
            return two.launch("accelerate.commands.accelerate_cli", *words, "-m", "lowmem_seq", *run)
        words = [
            *("--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(rank)),
            *("--master_addr", "127.0.0.1", "--master_port", str(two.port)),
        ]
        return two.launch("torch.distributed.run", *words, "-m", "lowmem_seq", *run)

    host, joiner = launched(0), launched(1)
    host.ended(0)
    joiner.ended(0)
    assert two.accepted() == STEPS * 32
    assert same_weights(two.run("host"), two.run("joiner"))


def test_the_host_is_gone_for_good_and_then_the_other_s_trainer_dies(two: TwoMachines) -> None:
    host, joiner = two.host(), two.join()
    two.wait_for_round(host)
    kill(host)
    joiner.wait_for_words("trains on alone")
    joiner.trainer().kill()
    joiner.ended(0)
    assert events(two.run("joiner"), "trainer_restarted")
    assert_it_ends_where_it_should(two.run("joiner"))


def test_progress_that_the_host_s_run_has_not_had_is_not_thrown_away(two: TwoMachines) -> None:
    lowmem_seq("train", "tiny", *SETTINGS, "--steps", "60", "--run-dir", "joiner", cwd=two.folder)
    two.host().wait_for_words("listening on port")
    part = ("--join", f"127.0.0.1:{two.port}")
    said = two.start("resume", "joiner", "--steps", str(STEPS), *part).ended(7)
    assert "60 steps of this run were trained alone" in said
