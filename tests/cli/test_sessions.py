"""Whole sessions as a user has them: train, kill, stop, resume, report, each in processes of its own."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

PROGRAM = [sys.executable, "-m", "lowmem_seq"]
STEPS = 60
SECONDS_TO_WAIT = 120.0
TRAIN = [
    "train",
    "tiny",
    *("--data", "shapes"),
    *("--set", "machine.threads=1"),
    *("--set", "augmentation.mixup=0.3", "--set", "augmentation.cutmix=0.3", "--set", "augmentation.colour=0.2"),
    *("--set", "recipe.ema_decay=0.9"),
    *("--micro-batch", "16"),
    *("--max-ram", "1GB"),
    *("--checkpoint-every", "10steps"),
]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWMEM_SEQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def lowmem_seq(*arguments: str, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*PROGRAM, *arguments], cwd=cwd, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def train(cwd: Path, name: str, *flags: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    return lowmem_seq(*TRAIN, "--steps", str(STEPS), "--run-dir", name, *flags, cwd=cwd, expect=expect)


def figures(cwd: Path, name: str) -> dict[str, Any]:
    told: list[dict[str, Any]] = json.loads(lowmem_seq("report", name, "--json", cwd=cwd).stdout)
    return told[0]


def same_files(left: Path, right: Path) -> bool:
    names = sorted(path.name for path in left.iterdir())
    assert names == sorted(path.name for path in right.iterdir())
    differing = [name for name in names if (left / name).read_bytes() != (right / name).read_bytes()]
    return set(differing) <= {"state.json", "manifest.json"}  # these hold the time that was used


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder, "run")
    return folder / "run"


def begin(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )


def start(cwd: Path, name: str, steps: int = STEPS) -> subprocess.Popen[str]:
    return begin(*TRAIN, "--steps", str(steps), "--run-dir", name, cwd=cwd)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def trainer_of(supervisor: subprocess.Popen[str]) -> psutil.Process:
    children = psutil.Process(supervisor.pid).children()
    assert len(children) == 1
    return children[0]


def test_an_undisturbed_run_leaves_a_whole_folder(undisturbed: Path) -> None:
    names = {path.name for path in undisturbed.iterdir()}
    assert names >= {
        "config.yaml",
        "environment.json",
        "plan.json",
        "data.json",
        "events.jsonl",
        "model.safetensors",
    }
    checkpoints = sorted(path.name for path in (undisturbed / "checkpoints").iterdir())
    assert checkpoints == ["step-00000050", "step-00000060"]
    told = figures(undisturbed.parent, "run")
    assert told["state"] == "finished"
    assert told["step"] == told["total_steps"] == STEPS
    assert told["accumulation"] == 2
    assert 0 < told["peak_tree_bytes"] < told["cap_bytes"] == 10**9
    assert told["test_loss"] > 0


def test_the_same_command_gives_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    train(tmp_path, "again")
    again = figures(tmp_path, "again")
    assert again["weights_sha256"] == figures(undisturbed.parent, "run")["weights_sha256"]


def test_a_killed_trainer_resumes_to_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    supervisor = start(tmp_path, "run")
    wait_for(tmp_path / "run" / "checkpoints" / "step-00000020")
    trainer_of(supervisor).kill()
    said, _ = supervisor.communicate(timeout=SECONDS_TO_WAIT)
    assert supervisor.returncode == 1
    assert "hint: lowmem-seq resume run" in said
    assert figures(tmp_path, "run")["state"] == "crashed"
    lowmem_seq("resume", "run", cwd=tmp_path)
    resumed, whole = figures(tmp_path, "run"), figures(undisturbed.parent, "run")
    for key in ("weights_sha256", "test_loss", "test_accuracy", "val_loss", "val_accuracy", "train_loss"):
        assert resumed[key] == whole[key], key
    last = f"checkpoints/step-{STEPS:08d}"
    assert same_files(tmp_path / "run" / last, undisturbed / last)


def test_a_stopped_run_saves_its_last_step_and_resumes_to_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    supervisor = start(tmp_path, "run")
    wait_for(tmp_path / "run" / "checkpoints" / "step-00000010")
    supervisor.send_signal(signal.SIGINT)
    said, _ = supervisor.communicate(timeout=SECONDS_TO_WAIT)
    assert supervisor.returncode == 4, said
    told = figures(tmp_path, "run")
    assert told["state"] == "stopped"
    assert (tmp_path / "run" / "checkpoints" / f"step-{told['step']:08d}" / "manifest.json").exists()
    assert f"after step {told['step']}" in said
    assert "hint: lowmem-seq resume run" in said
    lowmem_seq("resume", "run", cwd=tmp_path)
    assert figures(tmp_path, "run")["weights_sha256"] == figures(undisturbed.parent, "run")["weights_sha256"]


def test_a_trainer_saves_and_ends_when_its_supervisor_dies(tmp_path: Path) -> None:
    supervisor = start(tmp_path, "run")
    wait_for(tmp_path / "run" / "checkpoints" / "step-00000010")
    trainer = trainer_of(supervisor)
    supervisor.kill()
    supervisor.communicate(timeout=SECONDS_TO_WAIT)
    _, alive = psutil.wait_procs([trainer], timeout=SECONDS_TO_WAIT)
    assert not alive
    lowmem_seq("resume", "run", cwd=tmp_path)


def test_another_micro_batch_gives_the_same_experiment(undisturbed: Path, tmp_path: Path) -> None:
    train(tmp_path, "run", "--micro-batch", "7", "--precision", "fp32")
    train(tmp_path, "whole", "--micro-batch", "32", "--precision", "fp32")
    seven, whole = figures(tmp_path, "run"), figures(tmp_path, "whole")
    assert seven["accumulation"] == 5
    assert whole["accumulation"] == 1
    assert abs(seven["train_loss"] - whole["train_loss"]) < 1e-4
    assert abs(seven["test_loss"] - whole["test_loss"]) < 1e-3


def rewound(run: Path, to: Path, workers: int) -> None:
    """Copy a finished run as it was before its last checkpoint, to be resumed with so many workers."""
    shutil.copytree(run, to)
    shutil.rmtree(to / "checkpoints" / f"step-{STEPS:08d}")
    lines = (to / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["event"] not in ("test", "session_ended")]
    (to / "events.jsonl").write_text("".join(kept), encoding="utf-8")
    plan = json.loads((to / "plan.json").read_text(encoding="utf-8"))
    (to / "plan.json").write_text(json.dumps({**plan, "workers": workers}), encoding="utf-8")


def test_two_workers_end_with_the_same_bits_every_time(undisturbed: Path, tmp_path: Path) -> None:
    for name, workers in (("first", 2), ("second", 2), ("alone", 1)):
        rewound(undisturbed, tmp_path / name, workers)
        lowmem_seq("resume", name, cwd=tmp_path)
    first, second, alone = (figures(tmp_path, name) for name in ("first", "second", "alone"))
    assert first["weights_sha256"] == second["weights_sha256"]
    assert alone["weights_sha256"] == figures(undisturbed.parent, "run")["weights_sha256"]
    assert first["test_loss"] == pytest.approx(alone["test_loss"], rel=1e-2)


def test_a_run_that_diverges_says_so_and_saves_nothing_broken(tmp_path: Path) -> None:
    flags = ("--set", "recipe.peak_learning_rate=1e30", "--set", "recipe.clip_norm=null")
    said = train(tmp_path, "run", *flags, expect=2).stderr
    assert "the training diverged: the loss of step" in said
    assert "hint: start again with a lower learning rate" in said


def test_a_finished_run_says_so_and_goes_on_with_more_steps(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    assert "is finished: test accuracy" in lowmem_seq("resume", "run", cwd=tmp_path).stdout
    lowmem_seq("resume", "run", "--steps", str(STEPS + 5), cwd=tmp_path)
    assert figures(tmp_path, "run")["step"] == STEPS + 5


def test_a_longer_run_that_was_stopped_is_not_taken_for_finished(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    supervisor = begin("resume", "run", "--steps", "100000", cwd=tmp_path)
    wait_for(tmp_path / "run" / "checkpoints" / f"step-{STEPS + 10:08d}")
    supervisor.send_signal(signal.SIGINT)
    supervisor.communicate(timeout=SECONDS_TO_WAIT)
    told = figures(tmp_path, "run")
    assert (told["state"], told["test_accuracy"], told["weights_sha256"]) == ("stopped", None, None)
    said = lowmem_seq("resume", "run", "--steps", str(told["step"] + 5), cwd=tmp_path).stdout
    assert f"resumes after step {told['step']}" in said
    assert figures(tmp_path, "run")["state"] == "finished"


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    supervisor = start(tmp_path, "run", steps=10_000)
    wait_for(tmp_path / "run" / "checkpoints" / "step-00000010")
    trainer = trainer_of(supervisor)
    trainer.suspend()  # so that it can't save before the second signal
    supervisor.send_signal(signal.SIGINT)
    time.sleep(0.5)
    supervisor.send_signal(signal.SIGINT)
    said, _ = supervisor.communicate(timeout=SECONDS_TO_WAIT)
    assert supervisor.returncode == 130, said
    assert "hint: lowmem-seq resume run" in said
    assert not trainer.is_running()


def test_a_run_folder_with_a_space_can_be_resumed_as_told(tmp_path: Path) -> None:
    supervisor = start(tmp_path, "my run", steps=10_000)
    wait_for(tmp_path / "my run" / "checkpoints" / "step-00000010")
    supervisor.send_signal(signal.SIGINT)
    said, _ = supervisor.communicate(timeout=SECONDS_TO_WAIT)
    command = shlex.split(said.rpartition("hint: ")[2])
    assert command == ["lowmem-seq", "resume", "my run"]
    step = figures(tmp_path, "my run")["step"]
    lowmem_seq(*command[1:], "--steps", str(step + 1), cwd=tmp_path)


def test_a_run_falls_back_to_the_checkpoint_before_a_broken_one(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    broken = tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}" / "optimizer.safetensors"
    broken.write_bytes(broken.read_bytes()[:-100])
    said = lowmem_seq("resume", "run", "--steps", str(STEPS + 1), cwd=tmp_path).stdout
    assert f"checkpoint step-{STEPS:08d} does not verify" in said
    assert "resumes after step 50" in said


def test_a_run_whose_checkpoints_are_all_broken_ends_with_6(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").glob("*/model.safetensors"):
        file.unlink()
    said = lowmem_seq("resume", "run", "--steps", str(STEPS + 1), cwd=tmp_path, expect=6).stderr
    assert "verifies" in said
    assert "hint:" in said


def test_a_run_on_other_images_is_refused(undisturbed: Path, tmp_path: Path) -> None:
    from PIL import Image

    for part, label in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        folder = tmp_path / "pictures" / part / label
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (32, 32), (number * 9, 20, ord(label))).save(folder / f"{number}.png")
    shutil.copytree(undisturbed, tmp_path / "run")
    flags = ("--steps", str(STEPS + 1), "--data", str(tmp_path / "pictures"))
    said = lowmem_seq("resume", "run", *flags, cwd=tmp_path, expect=5).stderr
    assert "holds other images than this run was started with" in said


def test_a_cap_that_is_too_small_is_refused_with_one_that_would_do(tmp_path: Path) -> None:
    flags = [flag if flag != "1GB" else "150MB" for flag in TRAIN]
    said = lowmem_seq(*flags, "--run-dir", "run", cwd=tmp_path, expect=3).stderr
    assert "the cap of 150 MB is too small" in said
    assert "hint: the smallest cap that would do is about --max-ram" in said


def test_a_run_that_is_being_trained_is_locked(tmp_path: Path) -> None:
    supervisor = start(tmp_path, "run", steps=10_000)
    wait_for(tmp_path / "run" / "checkpoints" / "step-00000010")
    assert "is being written by another process" in lowmem_seq("resume", "run", cwd=tmp_path, expect=9).stderr
    assert figures(tmp_path, "run")["state"] == "running"
    supervisor.send_signal(signal.SIGINT)
    supervisor.communicate(timeout=SECONDS_TO_WAIT)


def test_a_dry_run_shows_the_plan_and_leaves_nothing(tmp_path: Path) -> None:
    said = lowmem_seq(*TRAIN, "--dry-run", cwd=tmp_path).stdout
    assert "micro-batches of 16 for a batch of 32" in said
    assert "under a cap of 1.00 GB" in said
    assert not list(tmp_path.iterdir())


def test_markdown_and_terminal_reports_name_the_result(undisturbed: Path) -> None:
    accuracy = f"{figures(undisturbed.parent, 'run')['test_accuracy']:.2%}"
    markdown = lowmem_seq("report", "run", "--markdown", cwd=undisturbed.parent).stdout
    assert accuracy in markdown
    assert markdown.splitlines()[1].startswith("| --- |")
    assert accuracy in lowmem_seq("report", "run", cwd=undisturbed.parent).stdout
