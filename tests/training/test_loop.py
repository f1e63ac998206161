from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from torch import Tensor

from lowmem_seq import files
from lowmem_seq.channel import Channel
from lowmem_seq.checkpoint import store
from lowmem_seq.checkpoint.manifest import read_manifest
from lowmem_seq.config import AugmentationConfig
from lowmem_seq.data.pack import Pack
from lowmem_seq.errors import DiskError
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training import loop, patience, saver
from lowmem_seq.training.evaluation import Evaluation
from lowmem_seq.training.loop import Training, mirrored_where_it_makes_sense
from lowmem_seq.training.saver import HEADER_BYTES
from lowmem_seq.training.saving import SavingClock
from lowmem_seq.training.session import open_training, read_plan
from tests.builders import make_run, tiny_config, train_here
from tests.disks import RefusingDisk


def pack_of(pack: Pack, source: str) -> Pack:
    return Pack(Path("nowhere"), structs.replace(pack.description, source=source))


@pytest.mark.parametrize(
    ("asked", "source", "decided"),
    [
        (None, "mnist", False),
        (None, "fashion-mnist", True),
        (None, "cifar10", True),
        (None, "/home/me/mnist", True),
        (True, "mnist", True),
        (False, "cifar10", False),
    ],
)
def test_images_are_mirrored_as_asked_or_where_it_makes_sense(
    tiny_pack: Pack, asked: bool | None, source: str, decided: bool
) -> None:
    settings = AugmentationConfig(flip=asked, zoom=0.2)
    result = mirrored_where_it_makes_sense(settings, pack_of(tiny_pack, source))
    assert result == AugmentationConfig(flip=decided, zoom=0.2)


@given(st.integers(1, 50), st.integers(1, 10**6), st.integers(1, 2000))
def test_the_steps_of_a_run_see_every_image_so_many_times(epochs: int, images: int, batch: int) -> None:
    config = tiny_config(f"recipe.epochs={epochs}", f"recipe.effective_batch={batch}")
    steps = config.total_steps(images)
    assert (steps - 1) * batch < epochs * images <= steps * batch


def test_steps_that_were_asked_for_end_the_run() -> None:
    assert tiny_config("steps=7").total_steps(10**6) == 7


EPOCHS = 3
SHORT = (
    "recipe.effective_batch=8",
    f"recipe.epochs={EPOCHS}",
    "recipe.ema_decay=0.9",
    "augmentation.mixup=0.3",
    "checkpoint.every=1000steps",
)


class StoppingChannel(Channel):
    """A line on which a stop is asked for with the n-th message of a kind."""

    def __init__(self, at: str, number: int) -> None:
        super().__init__(listen=False)
        self._at, self._number = at, number

    def say(self, message: dict[str, Any]) -> None:
        if message["event"] == self._at:
            self._number -= 1
        if self._number == 0:
            self._stop.set()


def opened(run: RunFolder, channel: Channel | None = None) -> Training:
    return open_training(run, read_plan(run), channel or Channel(listen=False))


def told(run: RunFolder, kind: str) -> list[dict[str, Any]]:
    """The events of a kind, without what a clock says."""
    clocks = ("time_unix_seconds", "seconds", "wall_seconds")
    found = [event for event in run.events if event["event"] == kind]
    return [{key: value for key, value in event.items() if key not in clocks} for event in found]


def steps_told(run: RunFolder, kind: str) -> list[int]:
    return [event["step"] for event in told(run, kind)]


def tensors_of(training: Training) -> dict[str, bytes]:
    assert training.state.average is not None
    parts: dict[str, dict[str, Tensor]] = {
        "weights": training.state.parameters,
        "optimizer": training.state.optimizer.state(),
        "average": training.state.average.values,
    }
    return {
        f"{part}.{name}": value.detach().numpy().tobytes()
        for part, values in parts.items()
        for name, value in values.items()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_pack: Pack) -> Training:
    """A training that was never stopped."""
    return train_here(make_run(tmp_path_factory.mktemp("whole") / "run", tiny_pack, tiny_config(*SHORT)))


@pytest.mark.parametrize("number", range(1, EPOCHS + 2))
def test_a_stop_during_an_evaluation_is_heard_and_the_evaluation_done_again(
    tmp_path: Path, tiny_pack: Pack, whole: Training, number: int
) -> None:
    run = make_run(tmp_path / "run", tiny_pack, tiny_config(*SHORT))
    stopped = opened(run, StoppingChannel("evaluating", number))
    assert not stopped.go()
    validations = told(whole.run, "validation")
    assert len(validations) == EPOCHS
    assert told(run, "validation") == validations[: number - 1]
    assert told(run, "test") == []
    assert run.weights_file.exists() == (number > EPOCHS)
    step = [*steps_told(whole.run, "validation"), whole.total_steps][number - 1]
    assert steps_told(run, "checkpoint") == [step]

    resumed = opened(run)
    resumed.saver.load_newest()
    assert resumed.state.counters == stopped.state.counters
    assert tensors_of(resumed) == tensors_of(stopped)
    assert resumed.go()
    for kind in ("validation", "test"):
        assert told(run, kind) == told(whole.run, kind)
    assert tensors_of(resumed) == tensors_of(whole)


def test_a_stop_during_a_step_drops_it_and_saves_the_one_before(
    tmp_path: Path, tiny_pack: Pack, whole: Training
) -> None:
    run = make_run(tmp_path / "run", tiny_pack, tiny_config(*SHORT))
    stopped = opened(run, StoppingChannel("validation", 1))
    assert not stopped.go()
    first = steps_told(whole.run, "validation")[0]
    assert steps_told(run, "checkpoint") == [first]
    assert not run.weights_file.exists()
    resumed = opened(run)
    resumed.saver.load_newest()
    assert resumed.state.counters.validated_step == first
    assert resumed.go()
    assert told(run, "validation") == told(whole.run, "validation")  # none of them twice
    assert tensors_of(resumed) == tensors_of(whole)


ACCURACIES = (0.25, 0.5, 0.5, 0.4, 0.75)
"""Of the validations of five epochs: the first, the second and the last are better than all before them."""


def script(monkeypatch: pytest.MonkeyPatch, accuracies: Sequence[float], affordable: bool) -> None:
    """Have the evaluations come out as written, and a save out of turn be affordable or not."""
    left = iter((*accuracies, 0.125))  # and the test's

    def count(*arguments: object) -> SimpleNamespace:
        return SimpleNamespace(figures=lambda: Evaluation(1.0, next(left), [], []))

    monkeypatch.setattr(loop, "count", count)
    monkeypatch.setattr(SavingClock, "is_affordable", lambda clock: affordable)


@pytest.mark.parametrize(("affordable", "saved"), [(True, [0, 1, 4]), (False, [4])])
def test_a_new_best_is_saved_out_of_turn_where_that_is_affordable(
    tmp_path: Path, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch, affordable: bool, saved: list[int]
) -> None:
    config = tiny_config(*SHORT, "recipe.epochs=5", "checkpoint.keep=9")
    script(monkeypatch, ACCURACIES, affordable)
    training = train_here(make_run(tmp_path / "run", tiny_pack, config))
    validated = steps_told(training.run, "validation")
    assert steps_told(training.run, "checkpoint") == [validated[number] for number in saved]
    metrics = [read_manifest(checkpoint)["metrics"] for checkpoint in training.saver.store.all()]
    assert metrics == [{"val_loss": 1.0, "val_accuracy": ACCURACIES[number]} for number in saved]


@pytest.mark.parametrize("keep_best", [True, False])
def test_the_checkpoints_that_stay_are_those_that_were_asked_for(
    tmp_path: Path, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch, keep_best: bool
) -> None:
    config = tiny_config(
        *SHORT,
        "checkpoint.every=1steps",
        "checkpoint.keep=2",
        f"checkpoint.keep_best={str(keep_best).lower()}",
        "checkpoint.keep_every_steps=7",
    )
    script(monkeypatch, (0.25, 0.5, 0.4), affordable=False)
    training = train_here(make_run(tmp_path / "run", tiny_pack, config))
    best, last = steps_told(training.run, "validation")[1:]
    kept = {last - 1, last, *range(7, last + 1, 7)}
    assert best not in kept
    if keep_best:
        kept.add(best)
    assert [checkpoint.step for checkpoint in training.saver.store.all()] == sorted(kept)


def test_a_run_that_does_not_fit_on_the_disk_is_refused_before_its_first_step(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = opened(run)
    weights_bytes = sum(value.nbytes for value in training.state.parameters.values())
    checkpoint_bytes = training.state.saved_bytes + HEADER_BYTES
    needed = 4 * checkpoint_bytes + weights_bytes  # the newest two, the best, the next one, and the final weights
    monkeypatch.setattr(saver, "free_bytes", lambda folder: needed - 1)
    with pytest.raises(DiskError, match=r"4 checkpoints of .*, and the final weights; .* are free") as caught:
        training.go()
    assert caught.value.exit_code == 8
    assert "--run-dir DIR" in caught.value.hint
    assert list(run.events) == []
    assert training.state.counters.step == 0
    monkeypatch.setattr(saver, "free_bytes", lambda folder: needed)
    training.begin()


def test_a_run_that_has_begun_waits_for_room_instead(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    training = opened(run)
    training.state.counters.step = 1
    monkeypatch.setattr(saver, "free_bytes", lambda folder: 0)
    training.begin()


@pytest.mark.parametrize("every", ["auto", "5min", "3steps"])
def test_what_is_to_be_kept_for_good_is_saved_whatever_the_interval(run: RunFolder, every: str) -> None:
    checkpoint = structs.replace(run.config.checkpoint, every=every, keep=1, keep_best=False, keep_every_steps=2)
    config = structs.replace(run.config, checkpoint=checkpoint, steps=5)
    run.write_config(config)
    training = opened(run)
    assert training.train()
    training.saver.save()
    assert [checkpoint.step for checkpoint in training.saver.store.all()] == [2, 4, 5]


@pytest.mark.parametrize("what", ["the checkpoint of step 1", "the final weights"])
def test_what_the_disk_refused_is_written_when_it_takes_it_again(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.01)
    training = opened(run)
    training.state.counters.step = 1
    with files.using(RefusingDisk(refuse_at=0, code=errno.ENOSPC)):
        if what == "the final weights":
            assert training.test()
        else:
            training.saver.save()
    pauses = [(event["event"], event["what"]) for event in run.events if event["event"].endswith("paused")]
    assert pauses == [("paused", what), ("unpaused", what)]
    assert run.weights_file.exists() == (what == "the final weights")
    assert [checkpoint.step for checkpoint in training.saver.store.all()] == (
        [] if run.weights_file.exists() else [1]
    )


def test_final_weights_wait_for_a_disk_that_was_pulled_out(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    training = opened(run)
    training.state.counters.step = 1
    elsewhere = run.path.with_name("unplugged")

    def plug_in_again(seconds: float) -> None:
        if elsewhere.exists():
            elsewhere.rename(run.path)

    monkeypatch.setattr(time, "sleep", plug_in_again)
    run.path.rename(elsewhere)
    assert training.test()
    assert run.weights_file.exists()
    pauses = [event["cause"] for event in run.events if event["event"] == "paused"]
    assert pauses == ["the run folder is gone"]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A disk without room, and a clock that runs while somebody sleeps: the seconds are in the list."""
    now = [1000.0]
    monkeypatch.setattr(patience, "awake_seconds", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr(store, "free_bytes", lambda folder: 0)
    return now


def test_a_disk_that_stays_full_is_waited_for_as_long_as_was_asked_for(
    tmp_path: Path, tiny_pack: Pack, full_disk: list[float]
) -> None:
    training = opened(make_run(tmp_path / "run", tiny_pack, tiny_config("checkpoint.disk_patience=7s")))
    training.state.counters.step = 1
    with pytest.raises(DiskError, match=r"the checkpoint of step 1 could not be written for 7 s: .* are needed"):
        training.saver.save()
    assert full_disk == [1007.0]
    assert training.saver._saved == (0, 0)
    assert told(training.run, "checkpoint") == []


def test_a_stop_is_heard_while_a_full_disk_is_waited_for(run: RunFolder, full_disk: list[float]) -> None:
    training = opened(run, StoppingChannel("paused", 2))
    training.state.counters.step = 1
    with pytest.raises(DiskError, match="the checkpoint of step 1 could not be written for 2 s"):
        training.saver.save()
    assert full_disk == [1001.5]
    assert [event["event"] for event in run.events] == ["paused", "paused"]


@pytest.mark.parametrize(("small_image", "steps"), [(64, [15]), (8, [2, 4, 6, 8, 10, 12, 14, 15])])
def test_figures_come_more_often_where_steps_are_long(
    tmp_path: Path, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch, small_image: int, steps: list[int]
) -> None:
    monkeypatch.setattr(loop, "SMALL_IMAGE", small_image)
    run = make_run(tmp_path / "run", tiny_pack, tiny_config(*SHORT))
    train_here(run)
    assert steps_told(run, "train") == steps
