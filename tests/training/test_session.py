from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lowmem_seq.channel import Channel
from lowmem_seq.data.pack import Pack
from lowmem_seq.errors import NoCheckpointError, UsageError
from lowmem_seq.memory.governor import Advice
from lowmem_seq.memory.readings import peak_so_far, system_reader
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.child import Child
from lowmem_seq.training import session
from lowmem_seq.training.loop import Training
from lowmem_seq.training.session import open_training, read_plan
from lowmem_seq.training.state import Counters
from tests.builders import Heard, make_run, names, tiny_config
from tests.checkpoint.builders import flip_a_bit

NOISE_BYTES = 2**20
"""Linux sums up its counters of pages with a delay."""


def opened(run: RunFolder) -> Training:
    return open_training(run, read_plan(run), Channel(listen=False))


def test_a_run_that_shrinks_gives_back_what_its_device_keeps(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []
    monkeypatch.setattr(session, "give_back", devices.append)
    opened(run).setting.governor.changed(Advice("shrink", "a test"))
    assert devices == ["cpu"]


@pytest.fixture
def saved(tmp_path: Path, tiny_pack: Pack) -> RunFolder:
    """A run with checkpoints of the steps 1 and 2."""
    training = opened(make_run(tmp_path / "run", tiny_pack, tiny_config("checkpoint.keep=2")))
    for _ in range(2):
        training.state.counters.count_step(0.5, 32)
        training.saver.save()
    return training.run


def test_a_run_without_checkpoints_starts_at_its_first_step(run: RunFolder) -> None:
    training = opened(run)
    training.saver.load_newest()
    assert training.state.counters == Counters()
    assert list(run.events) == []


def test_the_newest_checkpoint_is_taken_up_and_not_saved_again(saved: RunFolder) -> None:
    training = opened(saved)
    training.saver.load_newest()
    assert (training.state.counters.step, training.state.counters.loss_images) == (2, 64)
    before = list(saved.events)
    training.saver.save()
    assert list(saved.events) == before


def test_a_checkpoint_that_is_passed_over_is_told(saved: RunFolder) -> None:
    flip_a_bit(saved.checkpoints / "step-00000002" / "model.safetensors")
    training = opened(saved)
    training.saver.load_newest()
    assert training.state.counters.step == 1
    told = [event["message"] for event in saved.events if event["event"] == "checkpoint_passed_over"]
    assert told == [
        "step-00000002 does not verify (model.safetensors has changed since it was written); "
        "set aside as broken-step-00000002"
    ]


def test_the_supervisor_hears_of_a_peak_before_it_is_set_back(run: RunFolder) -> None:
    channel = Heard()
    governor = open_training(run, read_plan(run), channel).setting.governor
    before = peak_so_far(system_reader(), os.getpid()) - NOISE_BYTES
    governor.changed(Advice("shrink", "a test"))
    (told,) = channel.said
    assert told["event"] == "peak"
    assert told["bytes"] >= before


def test_a_trainer_tells_its_peak_as_its_last_word(tmp_path: Path, tiny_pack: Pack) -> None:
    run = make_run(tmp_path / "run", tiny_pack, tiny_config("steps=1"))
    child = Child("lowmem_seq.training", str(run.path))
    highest, last = 0, None
    for message in child.messages(0.005):
        highest, last = max(highest, system_reader().peak_bytes(child.process.pid) or 0), message or last
    assert child.wait() == 0
    assert last is not None
    assert last["event"] == "peak"
    assert last["bytes"] >= highest - NOISE_BYTES > 0


@pytest.mark.parametrize("gone", ["the folder", "all in it"])
def test_a_run_whose_checkpoints_are_gone_does_not_start_from_scratch(saved: RunFolder, gone: str) -> None:
    shutil.rmtree(saved.checkpoints)
    if gone == "all in it":
        saved.checkpoints.mkdir()
    before = names(saved.path), list(saved.events)
    with pytest.raises(NoCheckpointError) as caught:
        opened(saved).saver.load_newest()
    assert caught.value.exit_code == 6
    assert caught.value.message == (
        f"step 2 of this run was saved, and {saved.checkpoints} holds no checkpoint now."
    )
    assert "restore the folder from a copy" in caught.value.hint
    assert (names(saved.path), list(saved.events)) == before


def test_an_event_without_its_step_tells_of_a_checkpoint_too(run: RunFolder) -> None:
    run.events.append("checkpoint")
    with pytest.raises(NoCheckpointError, match=r"was saved, and .* holds no checkpoint now"):
        opened(run).saver.load_newest()


def test_where_none_verifies_nothing_is_changed(saved: RunFolder) -> None:
    for folder in saved.checkpoints.iterdir():
        flip_a_bit(folder / "model.safetensors")
    before = list(saved.events)
    with pytest.raises(NoCheckpointError, match=r"step-00000002: .*; step-00000001: "):
        opened(saved).saver.load_newest()
    assert names(saved.checkpoints) == ["step-00000001", "step-00000002"]
    assert list(saved.events) == before


def test_checkpoints_of_other_settings_are_refused(saved: RunFolder) -> None:
    saved.write_config(tiny_config("seed=1"))
    with pytest.raises(UsageError, match=r"another experiment \(other experiment_sha256\)"):
        opened(saved).saver.load_newest()
    assert names(saved.checkpoints) == ["step-00000001", "step-00000002"]
