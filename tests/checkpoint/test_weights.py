from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lowmem_seq.checkpoint.weights import find_weights
from lowmem_seq.data.pack import Pack
from lowmem_seq.errors import NoCheckpointError
from lowmem_seq.runs.folder import RunFolder
from tests.builders import make_run, tiny_config, train_here
from tests.cli.test_reading_only import contents


@pytest.fixture(scope="module", params=[0.0, 0.9], ids=["weights", "average"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_pack: Pack) -> RunFolder:
    """A finished run with the checkpoints of steps 2 and 4, with and without a running average."""
    config = tiny_config("steps=4", "checkpoint.every=2steps", f"recipe.ema_decay={request.param}")
    return train_here(make_run(tmp_path_factory.mktemp("weights") / "run", tiny_pack, config)).run


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of it, to be changed."""
    return RunFolder(Path(shutil.copytree(trained.path, tmp_path / "run")))


def told_sha256(run: RunFolder) -> str:
    (told,) = [event["weights_sha256"] for event in run.events if event["event"] == "test"]
    return str(told)


def test_of_a_finished_run_the_final_ones(run: RunFolder) -> None:
    before = contents(run.path)
    weights = find_weights(run, told_sha256(run))
    assert (weights.path, weights.step, weights.told) == (run.weights_file, None, "the final weights")
    assert contents(run.path) == before


def test_of_an_unfinished_run_those_of_the_newest_checkpoint_that_verifies(run: RunFolder) -> None:
    name = "average.safetensors" if run.config.recipe.ema_decay else "model.safetensors"
    weights = find_weights(run, None)
    assert (weights.path, weights.step) == (run.checkpoints / "step-00000004" / name, 4)
    (run.checkpoints / "step-00000004" / "state.json").write_text("{}", encoding="utf-8")
    before = contents(run.path)
    weights = find_weights(run, None)
    assert (weights.path, weights.step) == (run.checkpoints / "step-00000002" / name, 2)
    assert weights.told == "the checkpoint of step 2"
    (fault,) = weights.passed_over
    assert fault.startswith("step-00000004 does not verify: ")
    assert contents(run.path) == before


def test_final_weights_stand_alone_where_all_else_was_deleted(run: RunFolder) -> None:
    shutil.rmtree(run.checkpoints)
    assert find_weights(run, None).path == run.weights_file


def test_a_finished_run_without_its_final_weights_has_those_of_its_last_step(run: RunFolder) -> None:
    run.weights_file.unlink()
    assert find_weights(run, told_sha256(run)).step == 4


def test_weights_that_changed_are_refused(run: RunFolder) -> None:
    with pytest.raises(NoCheckpointError, match="they have changed since they were written"):
        find_weights(run, "0" * 64)
    run.weights_file.write_bytes(run.weights_file.read_bytes()[:-1])
    with pytest.raises(NoCheckpointError, match="does not verify"):
        find_weights(run, told_sha256(run))


def test_where_no_checkpoint_verifies_each_is_named(run: RunFolder) -> None:
    for checkpoint in run.checkpoints.iterdir():
        (checkpoint / "manifest.json").unlink()
    with pytest.raises(NoCheckpointError) as caught:
        find_weights(run, None)
    assert "step-00000004 does not verify" in caught.value.message
    assert "step-00000002 does not verify" in caught.value.message


def test_a_run_that_saved_nothing_says_what_goes_on(run: RunFolder) -> None:
    shutil.rmtree(run.checkpoints)
    run.weights_file.unlink()
    with pytest.raises(NoCheckpointError, match="has no weights yet") as caught:
        find_weights(run, None)
    assert caught.value.hint == run.resume_command
