from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from time import sleep

import pytest
import torch

from benchmarks.kills import differences
from benchmarks.replay import Replay, differences_from_replay, replay, settings_of
from lowmem_seq.channel import Channel
from lowmem_seq.data.pack import Pack
from lowmem_seq.files import write_json
from lowmem_seq.memory.governor import Advice, Governor
from lowmem_seq.memory.plan import Measurement, Setting, plan_from_json
from lowmem_seq.models import Sequencer2D
from lowmem_seq.runs.events import Event as Recorded
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.loop import Training
from lowmem_seq.training.session import open_training, read_plan
from lowmem_seq.training.shortage import StartAnew
from lowmem_seq.training.state import weights_sha256
from tests.builders import make_run, tiny_config, tiny_plan, train_here
from tests.memory.builders import FakeReader

SETTINGS = ("recipe.effective_batch=8", "steps=6", "recipe.ema_decay=0.9", "augmentation.mixup=0.3")
SHRINK, GROW = Advice("shrink", "somebody opened a browser"), Advice("grow", "memory was calm")


class Script(Governor):
    """Advises what a test says, at the n-th look."""

    def __init__(self, advices: dict[int, Advice]) -> None:
        super().__init__(FakeReader(held={1: 400 * 10**6}), 1, 10**12)
        self._advices, self.looks = advices, 0
        self.offers: list[int | None] = []
        self.heard: list[str] = []

    def look(self, larger_bytes: int | None) -> Advice | None:
        self.looks += 1
        self.offers.append(larger_bytes)
        return self._advices.get(self.looks)

    def changed(self, advice: Advice, has_changed: bool = True) -> None:
        self.heard.append(advice.what)


@pytest.fixture
def run(tmp_path: Path, tiny_pack: Pack) -> RunFolder:
    """Six steps of eight images, four at once."""
    run = make_run(tmp_path / "run", tiny_pack, tiny_config(*SETTINGS))
    write_json(run.plan_file, tiny_plan(4).to_json())
    return run


def trained(run: RunFolder, advices: dict[int, Advice]) -> Training:
    """Train with this advice, to the end."""
    training = opened(run, advices)
    assert training.go()
    return training


def opened(run: RunFolder, advices: dict[int, Advice]) -> Training:
    return open_training(run, read_plan(run), Channel(listen=False), Script(advices))


def changes(run: RunFolder) -> list[Recorded]:
    return [event for event in run.events if event["event"] == "setting_changed"]


def digest(training: Training) -> tuple[str, str]:
    return weights_sha256(training.state.parameters), weights_sha256(training.state.optimizer.state())


def looks_while_evaluating(training: Training, size: int) -> int:
    """Return how often a run has looked in its validations and its test, of so many images at a time."""
    validations = sum(event["event"] == "validation" for event in training.run.events)
    parts = training.parts
    looks: int = validations * math.ceil(parts.validation.size / size) + math.ceil(parts.test.size / size)
    return looks


def test_to_shrink_the_step_under_way_is_dropped_and_done_again_smaller(run: RunFolder, tmp_path: Path) -> None:
    training = trained(run, {4: SHRINK})  # at the second micro-batch of the second step
    (change,) = changes(run)
    del change["time_unix_seconds"]
    assert change == {
        "event": "setting_changed",
        "step": 1,
        **{"micro_batch_before": 4, "workers_before": 1, "recomputed_layers_before": 0},
        **{"micro_batch": 2, "workers": 1, "recomputed_layers": 0},
        "cause": "somebody opened a browser",
    }
    looks = 2 + 2 + 5 * 4 + looks_while_evaluating(training, 2)  # whole, dropped, and five in four
    assert isinstance(training.setting.governor, Script)
    assert training.setting.governor.looks == looks
    assert read_plan(run).setting == Setting(2, 1)
    assert read_plan(run).chosen == Setting(4, 1)
    assert differences(run.path, replay(run, tmp_path / "replayed")) == []


def test_a_change_before_the_first_micro_batch_gives_the_bits_of_that_size_throughout(
    run: RunFolder, tmp_path: Path, tiny_pack: Pack
) -> None:
    other = make_run(tmp_path / "other", tiny_pack, tiny_config(*SETTINGS))
    write_json(other.plan_file, tiny_plan(2).to_json())
    assert digest(trained(run, {1: SHRINK})) == digest(train_here(other))


def test_another_size_changes_nothing_but_rounding(run: RunFolder, tmp_path: Path, tiny_pack: Pack) -> None:
    other = make_run(tmp_path / "other", tiny_pack, tiny_config(*SETTINGS))
    ours, theirs = trained(run, {6: SHRINK}), trained(other, {})
    for name, value in ours.state.parameters.items():
        torch.testing.assert_close(value, theirs.state.parameters[name], rtol=1e-4, atol=1e-5)


def test_to_grow_waits_for_the_next_step_and_goes_the_way_back(run: RunFolder, tmp_path: Path) -> None:
    training = trained(run, {1: SHRINK, 2: SHRINK, 4: GROW, 12: GROW})
    sizes = [(event["step"], event["micro_batch_before"], event["micro_batch"]) for event in changes(run)]
    assert sizes == [(0, 4, 2), (0, 2, 1), (1, 1, 2), (2, 2, 4)]
    governor = training.setting.governor
    assert isinstance(governor, Script)
    assert governor.heard == ["shrink", "shrink", "grow", "grow"]
    assert governor.offers[0] is None  # there is nothing larger than the choice
    assert governor.offers[1] is not None
    assert governor.offers[-1] is None
    assert differences(run.path, replay(run, tmp_path / "replayed")) == []


def test_a_larger_setting_holds_what_was_measured_or_what_this_process_held_there(run: RunFolder) -> None:
    chosen = Measurement(4, 1, 0, tiny_plan(4).allocator, 630 * 10**6, 0, 100.0)
    write_json(run.plan_file, replace(tiny_plan(4), measurements=(chosen,)).to_json())
    training = opened(run, {1: SHRINK, 2: SHRINK})
    governor = training.setting.governor
    assert isinstance(governor, Script)
    assert governor.peak_bytes == 400 * 10**6
    assert training.go()
    # to four from two, and to two from one, which was not measured
    assert governor.offers[:2] == [None, 630 * 10**6]
    assert set(governor.offers[2:]) == {400 * 10**6, None}
    assert governor.offers[2:].count(None) == looks_while_evaluating(training, 1)


def test_a_run_that_goes_on_small_knows_what_was_foretold(run: RunFolder) -> None:
    small = replace(
        tiny_plan(4), micro_batch=2, measurements=(), predicted_peak_bytes=500 * 10**6, others_bytes=10**8
    )
    write_json(run.plan_file, small.to_json())
    training = trained(run, {})
    governor = training.setting.governor
    assert isinstance(governor, Script)
    assert set(governor.offers) == {400 * 10**6, None}
    assert governor.offers.count(None) == looks_while_evaluating(training, 2)


@pytest.mark.parametrize("path", Sequencer2D.lstm_paths)
def test_every_worker_computes_lstms_as_the_plan_says(run: RunFolder, path: str) -> None:
    write_json(run.plan_file, replace(tiny_plan(2), workers=2, lstm_path=path).to_json())
    training = opened(run, {})
    assert [worker.model.lstm_path for worker in training.workers.all] == [path, path]


class Interrupted(Script):
    """While one worker still holds the advice to grow, another one is told that memory is short."""

    def __init__(self) -> None:
        super().__init__({})
        self.asked = Event()
        self.answers = iter([GROW, SHRINK])

    def look(self, larger_bytes: int | None) -> Advice | None:
        advice = next(self.answers)
        if advice is GROW:
            self.asked.set()
            sleep(0.1)  # the other worker's chance to come between
        return advice


def test_an_advice_to_grow_never_takes_the_place_of_one_to_shrink(run: RunFolder) -> None:
    write_json(run.plan_file, replace(tiny_plan(4), micro_batch=2).to_json())
    governor = Interrupted()
    setting = open_training(run, read_plan(run), Channel(listen=False), governor).setting
    first = Thread(target=setting.asks_to_stop)
    first.start()
    governor.asked.wait()
    assert setting.asks_to_stop()
    first.join()
    setting.change(0)
    assert [(event["micro_batch_before"], event["micro_batch"]) for event in changes(run)] == [(2, 1)]


def test_a_shortage_in_the_step_before_the_run_grows_makes_it_smaller_instead(run: RunFolder) -> None:
    trained(run, {1: SHRINK, 3: GROW, 4: SHRINK})
    sizes = [(event["step"], event["micro_batch_before"], event["micro_batch"]) for event in changes(run)]
    assert sizes == [(0, 4, 2), (0, 2, 1)]


def test_a_run_that_goes_on_small_grows_to_what_was_chosen(run: RunFolder) -> None:
    small = replace(tiny_plan(4), micro_batch=1)
    write_json(run.plan_file, small.to_json())
    trained(run, {1: GROW})
    assert [(event["micro_batch_before"], event["micro_batch"]) for event in changes(run)] == [(1, 4)]


def test_where_nothing_smaller_is_left_the_run_goes_on_and_says_so_once(run: RunFolder) -> None:
    training = trained(run, {1: SHRINK, 2: SHRINK, 3: SHRINK, 4: SHRINK, 9: SHRINK, 12: SHRINK})
    smallest = Setting(1, 1, recomputed_layers=training.plan.layers)
    assert training.plan.setting == smallest
    kept = [event for event in run.events if event["event"] == "setting_kept"]
    assert [event["cause"] for event in kept] == [
        "somebody opened a browser, and nothing smaller is left to compute with"
    ]


class ShortWhileEvaluating(Script):
    """Advises to shrink at the second look of the first evaluation."""

    def __init__(self) -> None:
        super().__init__({})
        self.evaluating = 0

    def look(self, larger_bytes: int | None) -> Advice | None:
        self.evaluating += 1 if self.evaluating else 0
        return SHRINK if self.evaluating == 3 else None


def test_an_evaluation_goes_on_smaller_where_memory_is_short_and_so_do_the_steps_after_it(run: RunFolder) -> None:
    governor = ShortWhileEvaluating()
    training = open_training(run, read_plan(run), Channel(listen=False), governor)
    training.train_step()
    sizes: list[int] = []
    governor.evaluating = 1
    result, _seconds = training.evaluate_part(
        training.parts.train, lambda _logits, labels: sizes.append(len(labels))
    )
    assert result is not None
    images = training.parts.train.size
    assert sizes[:2] == [4, 2]
    assert set(sizes[1:-1]) == {2}
    assert sum(sizes) == images == sum(map(sum, result.confusion))
    (cut,) = [event for event in run.events if event["event"] == "evaluation_cut"]
    assert (cut["step"], cut["images_before"], cut["images"]) == (1, 4, 2)
    assert governor.heard == ["shrink"]  # which gives caches back
    assert changes(run) == []
    training.train_step()
    assert [(event["step"], event["micro_batch_before"], event["micro_batch"]) for event in changes(run)] == [
        (1, 4, 2)
    ]


def test_an_evaluation_of_one_image_at_a_time_gets_no_smaller(run: RunFolder) -> None:
    training = opened(run, dict.fromkeys(range(1, 9), SHRINK))
    sizes = training.setting.sizes_to_evaluate(0)
    assert [next(sizes) for _ in range(8)] == [2, 1, 1, 1, 1, 1, 1, 1]


def test_layers_are_computed_twice_where_the_plan_says_so(run: RunFolder) -> None:
    plan = replace(tiny_plan(4), recomputed_layers=2, chosen=Setting(4, 1, 2), layers=2)
    plain = digest(trained(run, {}))
    write_json(run.plan_file, plan.to_json())
    again = open_training(run, read_plan(run), Channel(listen=False), Script({}))
    assert [worker.model.recomputed_layers for worker in again.workers.all] == [2]
    assert again.go()
    assert digest(again) == plain


def test_workers_and_threads_follow_the_setting(run: RunFolder) -> None:
    two = replace(tiny_plan(4), workers=2, chosen=Setting(4, 2), threads=1)
    write_json(run.plan_file, two.to_json())
    training = opened(run, {})
    assert training.workers.count == 2
    training.setting.take(two.with_setting(Setting(4, 1)))
    assert (training.workers.count, torch.get_num_threads()) == (1, 2)


def test_advice_to_start_anew_ends_the_process_with_its_step_dropped(run: RunFolder) -> None:
    training = opened(run, {4: Advice("restart", "memory grows by 1.00 MB a step")})
    with pytest.raises(StartAnew, match="memory grows by"):
        training.go()
    assert training.state.counters.step == 1
    assert training.state.is_whole


def test_a_replay_knows_what_everything_was_computed_with(run: RunFolder) -> None:
    trained(run, {4: SHRINK})
    settings = settings_of(run)
    assert settings.steps == {0: Setting(4, 1), 1: Setting(2, 1)}
    assert settings.validations == {5: Setting(2, 1), 6: Setting(2, 1)}
    assert settings.test == Setting(2, 1)
    run.events.append("session_started", step=1, micro_batch=3, workers=2, recomputed_layers=0)
    assert settings_of(run).steps == {0: Setting(4, 1), 1: Setting(3, 2)}
    run.events.append("validation", step=6)
    assert settings_of(run).validations == {5: Setting(2, 1), 6: Setting(3, 2)}
    assert issubclass(Replay, Training)


def test_a_difference_from_a_replay_is_found_and_of_two_measurements_the_last_counts(
    run: RunFolder, tmp_path: Path
) -> None:
    trained(run, {})
    replayed = replay(run, tmp_path / "replayed")
    assert differences_from_replay(run.path, replayed) == []
    validation = next(event for event in RunFolder(replayed).events if event["event"] == "validation")
    step, kept = validation["step"], {key: validation[key] for key in ("step", "epoch", "val_loss", "val_accuracy")}
    run.events.append("validation", **kept | {"val_loss": 9.0})
    assert differences_from_replay(run.path, replayed) == [f"('validation', {step})"]
    weights = replayed / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "final weights" in differences_from_replay(run.path, replayed)


def test_a_plan_that_was_made_smaller_is_what_a_resume_reads(run: RunFolder) -> None:
    trained(run, {1: SHRINK})
    stored = run.read_json(run.plan_file)
    assert stored is not None
    assert plan_from_json(stored).setting == Setting(2, 1)
