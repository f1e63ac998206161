from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lowmem_seq.cli import train as module
from lowmem_seq.cli.cluster import Part
from lowmem_seq.cli.engine import LOOPBACK
from lowmem_seq.cluster.membership import take_part
from lowmem_seq.cluster.rank import Rank
from lowmem_seq.cluster.token import new_token, parse_token
from lowmem_seq.config import RunConfig, load_preset, override, validate
from lowmem_seq.data.catalogue import HOST
from lowmem_seq.runs.folder import RunFolder, create_run, open_run
from tests.cli.conftest import CommandLine
from tests.cli.test_start import assert_refused
from tests.cluster.builders import told_by_torchrun


class Sessions:
    """Stands where a session would start: keeps what it was started with, and writes what was changed."""

    def __init__(self) -> None:
        self.started: list[tuple[RunFolder, RunConfig, bool, bool]] = []
        self.parts: list[Part | Rank | None] = []

    def __call__(
        self,
        run: RunFolder,
        config: RunConfig,
        console: Console,
        quiet: bool,
        plan_anew: bool,
        changes: dict[str, Any] | None = None,
        part: Part | Rank | None = None,
        invitation: str = "",
    ) -> None:
        self.started.append((run, config, quiet, plan_anew))
        self.parts.append(part)
        assert isinstance(part, Part) == (invitation != "")
        if changes:
            module._write_changes(run, config, changes, plan_anew)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    recorded = Sessions()
    monkeypatch.setattr(module, "_run_session", recorded)
    return recorded


def preset(*assignments: str) -> RunConfig:
    settings = load_preset("tiny")
    for assignment in assignments:
        override(settings, assignment)
    return validate(settings)


TRAIN_FLAGS = [
    (["--data", "fashion-mnist"], ["data.source=fashion-mnist"]),
    (["--classes", "b, a,"], ["data.classes=[b, a]"]),
    (["--image-size", "64"], ["data.image_size=64"]),
    (["--max-ram", "6GiB"], ["machine.max_ram_bytes=6442450944"]),
    (["--epochs", "3"], ["recipe.epochs=3"]),
    (["--steps", "7"], ["steps=7"]),
    (["--seed", "9"], ["seed=9"]),
    (["--checkpoint-every", "200steps"], ["checkpoint.every=200steps"]),
    (["--device", "cpu"], ["machine.device=cpu"]),
    (["--precision", "bf16"], ["machine.precision=bf16"]),
    (["--log-with", "tensorboard"], ["machine.log_with=tensorboard"]),
    (["--effective-batch", "48"], ["recipe.effective_batch=48"]),
    (["--micro-batch", "4"], ["machine.micro_batch=4"]),
    (["--set", "machine.micro_batch=4", "--micro-batch", "auto"], []),
    (["--set", "recipe.beta1=0.8", "--set", "seed=3"], ["recipe.beta1=0.8", "seed=3"]),
    (["--set", "seed=3", "--seed", "4"], ["seed=4"]),
    (["--pause-on-battery"], ["machine.pause_on_battery=true"]),
    (["--only-between", "22:00-07:00"], ["machine.only_between=22:00-07:00"]),
    (["--background"], ["machine.background=true"]),
    (["--no-keep-awake"], ["machine.keep_awake=false"]),
    (["--data", "mnist", "--set", "augmentation.flip=true"], ["data.source=mnist", "augmentation.flip=true"]),
]


@pytest.mark.parametrize(("flags", "assignments"), TRAIN_FLAGS, ids=lambda value: " ".join(value))
def test_every_flag_of_train_reaches_the_run_s_config(
    command_line: CommandLine, sessions: Sessions, flags: list[str], assignments: list[str]
) -> None:
    assert command_line("train", "tiny", *flags, "--run-dir", "here").code == 0
    ((run, config, quiet, plan_anew),) = sessions.started
    assert config == preset(*assignments)
    assert open_run(Path("here")).config == config
    assert (run.path, quiet, plan_anew) == (Path("here"), False, True)


def test_a_run_without_a_name_goes_under_runs(command_line: CommandLine, sessions: Sessions) -> None:
    assert command_line("train", "tiny", "--quiet").code == 0
    ((run, _, quiet, _),) = sessions.started
    assert run.path.parent == Path("runs")
    assert run.path.name.startswith("tiny-")
    assert quiet


def test_a_folder_of_images_is_kept_as_an_absolute_path(command_line: CommandLine, sessions: Sessions) -> None:
    (Path.cwd() / "photos").mkdir()
    assert command_line("train", "tiny", "--data", "./photos").code == 0
    assert sessions.started[0][1].data.source == str(Path.cwd() / "photos")


RESUME_FLAGS = [
    (["--max-ram", "1GB"], ["machine.max_ram_bytes=1GB"], True),
    (["--device", "cpu"], ["machine.device=cpu"], True),
    (["--micro-batch", "4"], ["machine.micro_batch=4"], True),
    (["--micro-batch", "auto"], [], True),
    (["--log-with", "tensorboard"], ["machine.log_with=tensorboard"], True),  # it takes memory
    (["--epochs", "9"], ["recipe.epochs=9"], False),
    (["--steps", "9"], ["steps=9"], False),
    (["--data", "fashion-mnist"], ["data.source=fashion-mnist"], False),
    (["--pause-on-battery"], ["machine.pause_on_battery=true"], False),
    (["--only-between", "22-7"], ["machine.only_between=22-7"], False),
    (["--no-keep-awake"], ["machine.keep_awake=false"], False),
    (["--background"], ["machine.background=true"], True),
    (["--quiet"], [], False),
    ([], [], False),
]


@pytest.mark.parametrize(
    ("flags", "assignments", "plan_anew"),
    RESUME_FLAGS,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_flag_of_resume_reaches_the_run_s_config_and_is_told(
    command_line: CommandLine,
    sessions: Sessions,
    flags: list[str],
    assignments: list[str],
    plan_anew: bool,
) -> None:
    assert command_line("train", "tiny", "--run-dir", "here").code == 0
    plan = Path("here/plan.json")
    plan.write_text("{}")
    assert command_line("resume", "here", *flags).code == 0
    run, config, quiet, anew = sessions.started[1]
    assert config == preset(*assignments)
    assert quiet == ("--quiet" in flags)
    assert anew is plan_anew
    told = [event["event"] for event in run.events]
    assert told == ([] if flags in ([], ["--quiet"]) else ["config_changed"])
    # a plan for other settings is gone at once; other images are believed in when they were found to be the same
    assert plan.exists() is not plan_anew
    kept = [assignment for assignment in assignments if not assignment.startswith("data.source")]
    assert open_run(Path("here")).config == preset(*kept)


def test_a_resume_can_take_back_what_a_run_was_started_with(command_line: CommandLine, sessions: Sessions) -> None:
    at_first = ["--pause-on-battery", "--only-between", "22-7", "--background", "--no-keep-awake"]
    assert command_line("train", "tiny", *at_first, "--run-dir", "here").code == 0
    back = ["--no-pause-on-battery", "--only-between", "always", "--no-background", "--keep-awake"]
    assert command_line("resume", "here", *back).code == 0
    assert sessions.started[1][1] == preset()


def test_the_background_changes_no_plan_where_the_cores_are_given(
    command_line: CommandLine, sessions: Sessions
) -> None:
    assert command_line("train", "tiny", "--set", "machine.threads=1", "--run-dir", "here").code == 0
    assert command_line("resume", "here", "--background").code == 0
    assert sessions.started[1][3] is False


def test_hours_that_no_day_has_are_refused_before_anything_is_made(command_line: CommandLine) -> None:
    refused = command_line("train", "tiny", "--only-between", "at night", "--run-dir", "here")
    assert_refused(refused, 2, "machine.only_between: 'at night' is no part of the day", "22:00-07:00, or always")
    assert not Path("here").exists()


def test_a_preset_s_own_file_can_be_trained(command_line: CommandLine, sessions: Sessions) -> None:
    Path("mine.yaml").write_text(preset("seed=5").to_yaml(), encoding="utf-8")
    assert command_line("train", "mine.yaml", "--run-dir", "here").code == 0
    assert sessions.started[0][1].seed == 5


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ([], None),
        (["--host"], Part(True, LOOPBACK, 29500)),
        (["--host", "--port", "4000"], Part(True, LOOPBACK, 4000)),
        (["--join", "10.0.0.7"], Part(False, "10.0.0.7", 29500)),
        (["--join", "10.0.0.7:4000"], Part(False, "10.0.0.7", 4000)),
        (["--join", "[fe80::1]:4000"], Part(False, "fe80::1", 4000)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("command", ["train", "resume"])
def test_the_part_among_several_machines_reaches_the_session(
    command_line: CommandLine,
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    part: Part | None,
    command: str,
) -> None:
    monkeypatch.setenv("LOWMEM_SEQ_TOKEN", new_token().code)
    target = "tiny"
    if command == "resume":
        create_run(Path("before"), preset())
        target = "before"
    ended = command_line(command, target, *flags)
    assert ended.code == 0, ended.err
    assert sessions.parts == [part]


@pytest.mark.parametrize("command", ["train", "resume"])
def test_a_rank_s_session_has_a_folder_of_its_own(
    command_line: CommandLine, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for name, value in told_by_torchrun(0, machines=1, local_rank=1, local=2, address=LOOPBACK).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # which the command sets
    target = ("tiny", "--run-dir", "here")
    if command == "resume":
        create_run(Path("here"), preset("seed=5"))
        target = ("here", "--steps", "9")
    ended = command_line(command, *target)
    assert ended.code == 0, ended.err
    (part,) = sessions.parts
    assert isinstance(part, Rank)
    assert (part.number, part.of) == (1, 2)
    run, config, _, _ = sessions.started[0]
    assert run.path == Path("here/ranks/rank-1")
    assert config == (preset("seed=5", "steps=9") if command == "resume" else preset())


@pytest.mark.parametrize("command", [["train", "tiny"], ["resume", "before"]], ids=" ".join)
def test_the_mode_that_is_asked_for_is_an_error_where_it_can_t_be(
    command_line: CommandLine, sessions: Sessions, command: list[str]
) -> None:
    create_run(Path("before"), preset())
    assert command_line(*command, "--mode", "engine").code == 7
    assert command_line(*command, "--mode", "motor").code == 2
    assert sessions.started == []


def test_a_host_without_a_token_makes_one(
    command_line: CommandLine, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWMEM_SEQ_TOKEN", "")
    assert command_line("train", "tiny", "--host").code == 0
    parse_token(os.environ["LOWMEM_SEQ_TOKEN"])


@pytest.mark.parametrize("flags", [["--host"], ["--join", "10.0.0.7"]], ids=" ".join)
def test_a_resume_takes_the_token_of_the_session_before(
    command_line: CommandLine, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    code = new_token().code
    take_part(create_run(Path("before"), preset()), "host", "127.0.0.1", 4000, code)
    monkeypatch.setenv("LOWMEM_SEQ_TOKEN", "")
    assert command_line("resume", "before", *flags).code == 0
    assert os.environ["LOWMEM_SEQ_TOKEN"] == code


@pytest.mark.parametrize(
    ("flags", "said", "hint"),
    [
        (["--join", "10.0.0.7"], "LOWMEM_SEQ_TOKEN is not set", "LOWMEM_SEQ_TOKEN="),
        (["--port", "4000"], "--port belongs to --host", "--join IP:4000"),
        (["--host", "--join", "10.0.0.7"], "--host and --join were both given", "--host on one machine"),
    ],
)
def test_a_part_that_can_t_be_is_refused_before_anything_is_made(
    command_line: CommandLine,
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    said: str,
    hint: str,
) -> None:
    monkeypatch.setenv("LOWMEM_SEQ_TOKEN", "")
    assert_refused(command_line("train", "tiny", "--run-dir", "there", *flags), 2, said, hint)
    assert not Path("there").exists()
    assert sessions.started == []


def test_a_token_is_printed_alone_for_a_shell_to_take(command_line: CommandLine) -> None:
    first, second = command_line("token"), command_line("token")
    assert first.code == 0
    assert parse_token(first.out.strip()).code == first.out.strip() != second.out.strip()


JOINS = ("--join", "10.0.0.7")
HOLDS = ("--host",)


@pytest.mark.parametrize(
    ("flags", "source"),
    [
        ((*JOINS,), HOST),
        ((*JOINS, "--data", "host"), HOST),
        ((*JOINS, "--data", "gone.zip"), HOST),
        ((*JOINS, "--data", "gone"), HOST),
        ((*JOINS, "--data", "mnist"), "mnist"),
        ((*JOINS, "--data", "photos"), "photos"),
        ((*JOINS, "--data", "./host"), "host"),
        ((*HOLDS,), "shapes"),
        ((*HOLDS, "--data", "photos"), "photos"),
        ((), "shapes"),
    ],
    ids=" ".join,
)
def test_a_machine_that_joins_takes_the_hosts_images_where_it_has_none_of_its_own(
    command_line: CommandLine,
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    source: str,
) -> None:
    monkeypatch.setenv("LOWMEM_SEQ_TOKEN", new_token().code)
    for folder in ("photos", "host"):
        (Path.cwd() / folder).mkdir()
    own = str(Path.cwd() / source) if "--data" in flags and flags[-1] in ("photos", "./host") else source
    ended = command_line("train", "tiny", *flags, "--run-dir", "here")
    assert ended.code == 0, ended.err
    assert sessions.started[0][1].data.source == open_run(Path("here")).config.data.source == own
    assert ("is not on this machine: the host's images are taken" in ended.out) == ("gone" in "".join(flags))


@pytest.mark.parametrize(
    ("before", "flags", "source"),
    [
        ("mnist", JOINS, "mnist"),
        ("/gone/photos", JOINS, HOST),
        ("/gone/photos", (), "/gone/photos"),
        ("host", JOINS, HOST),
        ("host", (), HOST),
        ("host", (*JOINS, "--data", "mnist"), "mnist"),
        ("mnist", (*JOINS, "--data", "host"), HOST),
    ],
    ids=str,
)
def test_a_run_that_joins_again_takes_the_hosts_images_where_its_own_are_gone(
    command_line: CommandLine,
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    flags: tuple[str, ...],
    source: str,
) -> None:
    monkeypatch.setenv("LOWMEM_SEQ_TOKEN", new_token().code)
    create_run(Path("before"), preset(f"data.source={before}"))
    ended = command_line("resume", "before", *flags)
    assert ended.code == 0, ended.err
    assert sessions.started[0][1].data.source == source


@pytest.mark.parametrize("flags", [(), HOLDS], ids=str)
@pytest.mark.parametrize("command", [("train",), ("train", "--dry-run"), ("plan",)], ids=" ".join)
def test_the_images_of_a_host_are_refused_where_none_is_joined(
    command_line: CommandLine, sessions: Sessions, command: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    words = (*command[:1], "tiny", *command[1:], "--data", "host", *(flags if command[0] == "train" else ()))
    assert_refused(command_line(*words), 2, "this one joins none", "--join IP:PORT")
    assert sessions.started == []
    assert list(Path.cwd().iterdir()) == []


def test_ranks_that_their_launcher_starts_again_go_on_with_the_plan_that_they_made(
    command_line: CommandLine, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have become smaller where memory ran out; measured anew, it would be as before."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for words in (("train", "tiny", "--run-dir", "run"), ("resume", "run", "--micro-batch", "4")):
        for attempt in ("0", "1"):
            told = told_by_torchrun(0, machines=1, local=2, address="127.0.0.1")
            for name, value in {**told, "TORCHELASTIC_RESTART_COUNT": attempt}.items():
                monkeypatch.setenv(name, value)
            assert command_line(*words).code == 0
    assert all(isinstance(part, Rank) for part in sessions.parts)
    assert [plan_anew for *_, plan_anew in sessions.started] == [True, False, True, False]
