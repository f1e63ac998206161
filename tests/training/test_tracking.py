from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq.config import override, validate
from lowmem_seq.data.pack import Pack
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.subject import subject_of
from lowmem_seq.training.device import make_accelerator
from lowmem_seq.training.tracking import Tracking, load, told_before
from tests.builders import make_run, tiny_config, train_here

pytest.importorskip("tensorboard", reason="tensorboard is not installed")


def told(step: int, loss: float = 1.0) -> Event:
    figures = {"train_loss": loss, "learning_rate": 0.1, "images_per_second": 5.0, "epoch": 0.5}
    return {"event": "train", "step": step, **figures}


class Recorded:
    """What a tracking says about itself."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: str, **details: Any) -> None:
        self.events.append({"event": event, **details})


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def begin(run: RunFolder, recorded: Recorded, step: int = 0, name: str = "tensorboard") -> Tracking:
    """A session's tracking, begun after `step` steps."""
    tracking = Tracking(make_accelerator("cpu", "fp32", name, run.logs), name, run, "tiny", recorded)
    tracking.start(step)
    return tracking


def scalars(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: steps and values of each curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run.logs / "tiny"))
    shown.Reload()
    return {tag: [(one.step, one.value) for one in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def test_tensorboard_shows_the_figures(run: RunFolder, recorded: Recorded) -> None:
    tracking = begin(run, recorded)
    tracking.take(told(20, loss=1.5))
    tracking.take({"event": "memory", "tree_bytes": 1})
    tracking.take({"event": "validation", "step": 20, "val_loss": 1.25, "val_accuracy": 0.5})
    tracking.take({"event": "test", "step": 60, "test_loss": 1.0, "test_accuracy": 0.75})
    tracking.end()
    shown = scalars(run)
    assert shown["train/loss"] == [(20, 1.5)]
    assert shown["validation/accuracy"] == [(20, 0.5)]
    assert shown["test/accuracy"] == [(60, 0.75)]
    assert recorded.events == [
        {"event": "tracking_started", "tracker": "tensorboard", "folder": str(run.logs)},
    ]


@pytest.mark.parametrize("saved", [0, 40])
def test_steps_that_are_done_again_are_shown_once_with_what_they_came_to_last(
    run: RunFolder, recorded: Recorded, saved: int
) -> None:
    first = begin(run, recorded)
    for step in (20, 40, 60):
        first.take(told(step, loss=1.0))  # and then it is killed
    second = begin(run, recorded, step=saved)
    for step in range(saved + 20, 100, 20):
        second.take(told(step, loss=0.5))
    second.end()
    assert scalars(run)["train/loss"] == [(step, 1.0 if step <= saved else 0.5) for step in (20, 40, 60, 80)]


def test_another_tracker_is_not_told_of_a_step_twice(
    run: RunFolder, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = run.events
    for step in (20, 40):
        log.append(**told(step))  # before it was asked for
    log.append("session_started", step=40)
    log.append("tracking_started", tracker="wandb")
    for step in (60, 80):
        log.append(**told(step))
    assert told_before(run, "wandb") == {"train": 80}
    assert told_before(run, "mlflow") == {}
    accelerator = make_accelerator("cpu", "fp32")
    accelerator.log_with = ["wandb"]
    heard: list[int] = []
    monkeypatch.setattr(accelerator, "init_trackers", lambda project, init_kwargs: None)
    monkeypatch.setattr(accelerator, "log", lambda figures, step: heard.append(step))
    tracking = Tracking(accelerator, "wandb", run, "tiny", recorded)
    tracking.start(60)
    for step in (80, 100):
        tracking.take(told(step))
    assert heard == [100]


def test_a_tracker_that_fails_is_told_nothing_more_and_that_is_said_once(
    run: RunFolder, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = begin(run, recorded)

    def fail(figures: dict[str, float], step: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracking._accelerator, "log", fail)
    tracking.take(told(20))
    tracking.take(told(40))
    tracking.end()
    assert recorded.events[1:] == [
        {
            "event": "tracking_failed",
            "tracker": "tensorboard",
            "cause": "OSError: [Errno 28] No space left on device",
        }
    ]


def test_one_that_is_not_installed_any_more_is_done_without(run: RunFolder, recorded: Recorded) -> None:
    tracking = begin(run, recorded, name="aim")  # a run from another machine
    tracking.take(told(20))
    (event,) = recorded.events
    assert (event["event"], event["cause"]) == ("tracking_failed", "ModuleNotFoundError: aim is not installed here")


def test_a_run_tells_its_figures_and_trains_alike(tmp_path: Path, tiny_pack: Pack) -> None:
    settings = ("recipe.epochs=2", "recipe.effective_batch=9")
    plain = make_run(tmp_path / "plain", tiny_pack, tiny_config(*settings))
    told_run = make_run(tmp_path / "told", tiny_pack, tiny_config(*settings, "machine.log_with=tensorboard"))
    assert plain.config.experiment_hash() == told_run.config.experiment_hash()
    for run in (plain, told_run):
        train_here(run).journal.end_tracking()
    digests = [
        [event["weights_sha256"] for event in one.events if event["event"] == "test"] for one in (plain, told_run)
    ]
    assert digests[0] == digests[1] != []
    assert not plain.logs.exists()
    events = list(told_run.events)
    shown = scalars(told_run)
    for kind, key, name in (("train", "train_loss", "train/loss"), ("validation", "val_loss", "validation/loss")):
        expected = [(event["step"], event[key]) for event in events if event["event"] == kind]
        assert expected
        assert [step for step, _ in shown[name]] == [step for step, _ in expected]
        assert [value for _, value in shown[name]] == pytest.approx([value for _, value in expected])


def test_a_plan_counts_what_a_tracker_takes(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(importlib, "import_module", loaded.append)
    load("none")
    load("tensorboard")
    load("wandb")
    assert loaded == ["torch.utils.tensorboard", "wandb"]
    settings = run.config.to_settings()
    override(settings, "machine.log_with=tensorboard")
    plain, with_tracker = (subject_of(run, config, 2, ("default",)) for config in (run.config, validate(settings)))
    assert plain != with_tracker


def test_a_tracker_that_can_t_be_imported_is_the_trainer_s_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise TypeError("built for another protobuf")

    monkeypatch.setattr(importlib, "import_module", fail)
    load("tensorboard")


def test_memory_that_ran_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise MemoryError

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(MemoryError):
        load("tensorboard")
