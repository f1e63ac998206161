from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq.channel import Channel
from lowmem_seq.data.pack import Pack
from lowmem_seq.memory.plan import Means, Setting
from lowmem_seq.memory.remembered import DOES_NOT_FIT, Knowledge, Request, knowledge_from_json
from lowmem_seq.memory.seen import SHARE_OF_BUDGET
from lowmem_seq.models import Sequencer2D
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training import measuring
from lowmem_seq.training.measuring import PeakSampler, Probe, cut
from lowmem_seq.training.session import open_training, read_plan
from tests.builders import SECONDS_FOR_A_PROCESS, Heard, make_run, names, tiny_config

MB = 10**6
PEAKS = """
from lowmem_seq.training.measuring import PeakSampler
with PeakSampler() as first:
    held = b"x" * 200_000_000
del held
with PeakSampler() as second:
    pass
print(first.peak_bytes - second.peak_bytes)
print(first.data_bytes - second.data_bytes)
"""
PASSES = """
import os, time
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.training.measuring import PeakSampler
budget = system_reader().held_bytes(os.getpid()) + 50_000_000
with PeakSampler(budget, lambda: os._exit(75)):
    held = b"x" * 200_000_000
    time.sleep(10)
print("lived on")
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own: another test's heap may hold what this one takes."""
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, encoding="utf-8")


def test_the_peak_of_a_block_is_what_was_held_in_it() -> None:
    told = python(PEAKS).stdout.splitlines()
    assert int(told[0]) > 150 * MB
    if sys.platform == "linux":
        assert int(told[1]) > 150 * MB


def test_who_passes_the_budget_hears_of_it_at_once() -> None:
    done = python(PASSES)
    assert (done.returncode, done.stdout) == (75, "")


def test_a_step_is_cut_like_the_loop_cuts_it() -> None:
    assert cut(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert cut(8, 8) == [(0, 8)]


@pytest.mark.parametrize("setting", [Setting(8, 1), Setting(5, 2), Setting(3, 1, 2)])
def test_a_measurement_changes_no_weight_and_leaves_nothing(
    tmp_path: Path, tiny_pack: Pack, setting: Setting
) -> None:
    run = make_run(tmp_path / "run", tiny_pack, tiny_config("recipe.ema_decay=0.9"))
    channel, before = Heard(), names(run.path)
    training = open_training(run, read_plan(run), channel)
    weights = {name: value.detach().clone() for name, value in training.state.parameters.items()}
    probe = Probe(training, 2, float("inf"), "default")
    point = probe.measure(setting)
    assert point.setting == setting
    assert 0 < point.peak_bytes < 10**10
    assert point.images_per_second > 0
    assert all(bool((value == weights[name]).all()) for name, value in training.state.parameters.items())
    assert all(value.grad is None for value in training.state.parameters.values())
    assert (training.workers.count, training.state.model.recomputed_layers) == (
        setting.workers,
        setting.recomputed_layers,
    )
    assert names(run.path) == before
    assert [message["event"] for message in channel.said] == ["probing", "evaluated", "saved"]
    assert channel.said[0] == {"event": "probing", **asdict(setting), **asdict(Means("default"))}
    probe.measure(setting)
    assert [message["event"] for message in channel.said[3:]] == ["probing", "evaluated"]  # one save is enough


@dataclass
class Probed:
    """What a probing process said, and how it ended."""

    code: int
    said: list[dict[str, Any]]
    errors: str

    def of(self, event: str) -> list[dict[str, Any]]:
        return [message for message in self.said if message["event"] == event]


def probe_in_a_process(run: RunFolder, request: Request, known: Knowledge | None = None) -> Probed:
    """Run the probe as its supervisor does, with an input that stays open until it has ended."""
    told = (json.dumps(asdict(request)), json.dumps((known or Knowledge()).to_json()))
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "lowmem_seq.training.probe", str(run.path), *told],
            stdin=read_end,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        out, errors = process.communicate(timeout=SECONDS_FOR_A_PROCESS)
    finally:
        os.close(read_end)
        os.close(write_end)
    return Probed(process.returncode, [json.loads(line) for line in out.splitlines()], errors)


ONE = ("default",)
PLENTY, NO_TIME = Request(8000 * MB, ONE, "default", 60.0), Request(8000 * MB, ONE, "default", 0.1)


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory, tiny_pack: Pack) -> RunFolder:
    """A run that probing processes look at; they leave nothing in it."""
    return make_run(tmp_path_factory.mktemp("probe") / "run", tiny_pack, tiny_config())


@pytest.fixture(scope="module")
def whole_search(looked_at: RunFolder) -> Probed:
    """What one process came to that had memory and time enough."""
    return probe_in_a_process(looked_at, PLENTY)


@pytest.fixture(scope="module")
def hurried_search(looked_at: RunFolder) -> Probed:
    """What one process came to that had no time."""
    return probe_in_a_process(looked_at, NO_TIME)


class FixedPeaks(PeakSampler):
    """Sees ten gigabytes, more than the tests' own process ever holds, whatever is done."""

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.peak_bytes, self.data_bytes = 10_000 * MB, 11_000 * MB


def test_large_images_get_room_for_what_their_next_steps_add(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "PeakSampler", FixedPeaks)
    training = open_training(run, read_plan(run), Channel(listen=False))
    small = Probe(training, 1, math.inf, "default", save_bytes=0).measure(Setting(8, 1))
    monkeypatch.setattr(measuring, "SMALL_IMAGE", 8)
    large = Probe(training, 1, math.inf, "default", save_bytes=0).measure(Setting(8, 1))
    of_two = Probe(training, 2, math.inf, "default", save_bytes=0).measure(Setting(4, 2))
    assert [one.peak_bytes for one in (small, large, of_two)] == [10_000 * MB, 10_300 * MB, 11_000 * MB]
    if sys.platform == "linux":  # a little was left behind by the first
        assert large.data_bytes - small.data_bytes == pytest.approx(300 * MB, abs=MB)


@pytest.mark.parametrize("path", Sequencer2D.lstm_paths)
def test_what_is_measured_computes_lstms_as_it_says(run: RunFolder, path: str) -> None:
    training = open_training(run, read_plan(run), Channel(listen=False))
    measured = Probe(training, 2, math.inf, "default", save_bytes=0).measure(Setting(4, 2), path)
    assert measured.means == Means("default", path)
    assert [worker.model.lstm_path for worker in training.workers.all] == [path, path]


def test_with_plenty_of_memory_the_whole_search_is_done_by_one_process(whole_search: Probed) -> None:
    probed = whole_search
    assert probed.code == 0, probed.errors
    (facts,) = probed.of("facts")
    assert facts["layers"] == 2
    assert facts["libraries_bytes"] > 50 * MB
    assert (facts["train_images"], facts["validation_images"], facts["test_images"]) == (39, 6, 12)
    measured = probed.of("measured")
    assert {(one["micro_batch"], one["workers"]) for one in measured} >= {(8, 1), (32, 1)}
    assert any(one["recomputed_layers"] == 2 for one in measured)
    assert [one["fresh"] for one in measured] == [True] + [False] * (len(measured) - 1)
    assert all(one["peak_bytes"] > facts["libraries_bytes"] for one in measured)
    assert len(probed.of("saved")) == 1
    if sys.platform == "linux":
        assert all(one["data_bytes"] > 50 * MB for one in measured)


def test_a_process_without_time_says_that_it_gave_up_once_something_is_known(hurried_search: Probed) -> None:
    probed = hurried_search
    assert probed.code == 0, probed.errors
    assert len(probed.of("measured")) == 1
    assert probed.said[-1] == {"event": "gave_up"}


def test_a_process_that_can_t_hold_to_its_budget_ends_with_a_word_of_its_own(
    looked_at: RunFolder, hurried_search: Probed
) -> None:
    (facts,) = hurried_search.of("facts")
    (point,) = hurried_search.of("measured")
    budget = (facts["libraries_bytes"] + point["peak_bytes"]) // 2
    probed = probe_in_a_process(looked_at, Request(budget, ONE, "default", 60.0))
    assert probed.code == DOES_NOT_FIT, probed.errors
    assert probed.of("measured") == []
    assert probed.said[-1]["event"] == "probing"


def test_a_setting_that_is_asked_for_alone_is_measured_whatever_it_holds(tmp_path: Path, tiny_pack: Pack) -> None:
    run = make_run(tmp_path / "run", tiny_pack, tiny_config("machine.lstm_path=torch"))
    alone = Request(1 * MB, ONE, "default", 60.0, only=Setting(1, 1, 2), lstm_path="function")
    probed = probe_in_a_process(run, alone)
    assert probed.code == 0, probed.errors
    (point,) = probed.of("measured")
    assert point["lstm_path"] == "torch"  # the other one can't be taken here
    assert (point["micro_batch"], point["workers"], point["recomputed_layers"]) == (1, 1, 2)
    assert point["peak_bytes"] > SHARE_OF_BUDGET * MB


def test_what_is_known_is_not_measured_again(looked_at: RunFolder, whole_search: Probed) -> None:
    known = Knowledge().to_json()
    facts = {key: value for key, value in whole_search.of("facts")[0].items() if key != "event"}
    points = [
        {key: value for key, value in one.items() if key not in ("event", "fresh")}
        for one in whole_search.of("measured")
    ]
    told = knowledge_from_json({**known, "facts": facts, "measured": points})
    second = probe_in_a_process(looked_at, PLENTY, told)
    assert [message["event"] for message in second.said] == ["facts"]
