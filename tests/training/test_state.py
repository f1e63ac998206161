from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lowmem_seq.checkpoint.manifest import Checkpoint
from lowmem_seq.checkpoint.store import CheckpointStore, Retention
from lowmem_seq.config import RecipeConfig
from lowmem_seq.errors import NoCheckpointError
from lowmem_seq.models import build_model
from lowmem_seq.training.state import Counters, TrainingState, final_metadata, weights_sha256
from tests.builders import tiny_config

AVERAGED = RecipeConfig(ema_decay=0.9)
PLAIN = RecipeConfig()


def fresh(seed: int, recipe: RecipeConfig = AVERAGED, *assignments: str) -> TrainingState:
    torch.manual_seed(seed)
    return TrainingState(build_model(tiny_config(*assignments).model, 3), recipe)


def train(state: TrainingState, steps: int) -> None:
    """Steps on gradients that depend on the step's number alone."""
    for _ in range(steps):
        generator = torch.Generator().manual_seed(state.counters.step)
        for value in state.parameters.values():
            value.grad = torch.randn(value.shape, generator=generator)
        state.optimizer.step(0.01)
        if state.average is not None:
            state.average.update(state.counters.step)
        state.counters.step += 1
        state.counters.loss_sum += 0.1
        state.counters.loss_images += 32


def bytes_of(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: value.detach().numpy().tobytes() for name, value in tensors.items()}


def everything(state: TrainingState) -> list[object]:
    average = {} if state.average is None else state.average.values
    return [bytes_of(state.parameters), bytes_of(state.optimizer.state()), bytes_of(average), state.counters]


@pytest.fixture
def save(tmp_path: Path) -> Callable[[TrainingState], Checkpoint]:
    store = CheckpointStore(tmp_path / "checkpoints", Retention(newest=3))
    return lambda state: store.save(state.counters.step, state.writers(), {})


Save = Callable[[TrainingState], Checkpoint]


@pytest.mark.parametrize("recipe", [AVERAGED, PLAIN], ids=["averaged", "plain"])
def test_what_was_saved_is_taken_up_bit_for_bit_and_goes_on_alike(save: Save, recipe: RecipeConfig) -> None:
    first = fresh(0, recipe)
    train(first, 3)
    first.counters.wall_seconds = 12.25
    first.counters.count_validation(0.75, 0.5)
    checkpoint = save(first)
    second = fresh(1, recipe)
    assert everything(second) != everything(first)
    second.load(checkpoint)
    assert everything(second) == everything(first)
    for state in (first, second):
        train(state, 3)
    assert everything(second) == everything(first)


def test_a_checkpoint_is_files_that_anyone_can_read(save: Save) -> None:
    state = fresh(0)
    train(state, 2)
    folder = save(state).path
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "average.safetensors",
        "state.json",
    }
    assert bytes_of(load_file(folder / "model.safetensors")) == bytes_of(state.parameters)
    assert json.loads((folder / "state.json").read_text()) == {
        "step": 2,
        "images": 0,
        "loss_sum": 0.2,
        "loss_images": 64,
        "wall_seconds": 0.0,
        "validated_step": 0,
        "val_loss": None,
        "val_accuracy": None,
        "best_val_accuracy": None,
    }


@pytest.mark.parametrize("recipe", [AVERAGED, PLAIN], ids=["averaged", "plain"])
def test_what_a_checkpoint_takes_is_known_before_it_is_written(save: Save, recipe: RecipeConfig) -> None:
    state = fresh(0, recipe)
    numbers = 0
    for path in save(state).path.glob("*.safetensors"):
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
        numbers += path.stat().st_size - 8 - header_bytes
    assert state.saved_bytes == numbers


def test_without_an_average_none_is_saved(save: Save) -> None:
    assert not (save(fresh(0, PLAIN)).path / "average.safetensors").exists()


@pytest.mark.parametrize(
    ("assignments", "told"),
    [(("model.layers=[1, 2]",), "has other tensors"), (("model.lstm_widths=[4, 9]",), "this model's F32")],
)
def test_a_checkpoint_of_another_model_is_refused(save: Save, assignments: tuple[str, ...], told: str) -> None:
    checkpoint = save(fresh(0))
    with pytest.raises(NoCheckpointError, match=told) as caught:
        fresh(0, AVERAGED, *assignments).load(checkpoint)
    assert caught.value.hint == "was config.yaml changed since?"


def edited(checkpoint: Checkpoint, **changes: object) -> Checkpoint:
    """The checkpoint with other counters; `...` takes one away."""
    path = checkpoint.path / "state.json"
    counters = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in counters.items() if value is not ...}))
    return checkpoint


def test_counters_of_the_first_release_are_taken_up(save: Save) -> None:
    state = fresh(0)
    train(state, 2)
    checkpoint = edited(
        save(state), images=..., validated_step=..., val_loss=..., val_accuracy=..., best_val_accuracy=...
    )
    assert len(json.loads((checkpoint.path / "state.json").read_text())) == 4
    again = fresh(1)
    again.load(checkpoint)
    assert again.counters == Counters(step=2, loss_sum=0.2, loss_images=64)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 2},
        {"__class__": "os.system"},
        {"step": ...},
        {"step": 3},
        {"step": "2"},
        {"step": 2.0},
        {"loss_images": 1.5},
        {"loss_images": True},
        {"loss_sum": None},
        {"wall_seconds": "12"},
        {"validated_step": None},
        {"val_loss": [1.0]},
        {"val_accuracy": "0.5"},
        {"best_val_accuracy": {}},
        {"best_val_accuracy": float("nan")},
        {"loss_sum": float("inf")},
    ],
    ids=str,
)
def test_counters_with_unknown_keys_or_wrong_values_are_refused(save: Save, changes: dict[str, object]) -> None:
    state = fresh(0)
    train(state, 2)
    checkpoint = edited(save(state), **changes)
    state.counters.step = 99
    with pytest.raises(NoCheckpointError) as caught:
        state.load(checkpoint)
    assert caught.value.message == f"{checkpoint.path / 'state.json'} holds no counters of step 2."
    assert state.counters.step == 99


@pytest.mark.parametrize("content", [None, b"", b"[2]", b"2", b"{", b"\xff", b"[" * 100_000])
def test_a_file_of_counters_that_is_none_is_refused(save: Save, content: bytes | None) -> None:
    state = fresh(0)
    checkpoint = save(state)
    (checkpoint.path / "state.json").unlink()
    if content is not None:
        (checkpoint.path / "state.json").write_bytes(content)
    with pytest.raises(NoCheckpointError, match=r"state\.json holds no counters of step 0"):
        state.load(checkpoint)


def test_an_evaluation_is_the_best_where_none_before_was_as_good() -> None:
    counters = Counters()
    found = []
    for step, accuracy in enumerate([0.25, 0.5, 0.5, 0.4, 0.75], start=1):
        counters.step = step
        found.append(counters.count_validation(1.0 / step, accuracy))
        assert (counters.validated_step, counters.val_loss, counters.val_accuracy) == (step, 1.0 / step, accuracy)
    assert found == [True, True, False, False, True]
    assert counters.best_val_accuracy == 0.75


def test_a_first_accuracy_of_zero_is_the_best_so_far() -> None:
    assert Counters(step=1).count_validation(9.0, 0.0)


def test_metrics_are_those_of_the_present_weights_or_unknown() -> None:
    counters = Counters(step=4)
    assert counters.metrics == {"val_loss": None, "val_accuracy": None}
    counters.count_validation(0.5, 0.75)
    assert counters.metrics == {"val_loss": 0.5, "val_accuracy": 0.75}
    counters.count_step(0.1, 32)
    assert counters.metrics == {"val_loss": None, "val_accuracy": None}
    assert (counters.validated_step, counters.best_val_accuracy) == (4, 0.75)


def test_the_average_is_swapped_in_and_back_also_after_an_error() -> None:
    state = fresh(0)
    train(state, 3)
    assert state.average is not None
    before = everything(state)
    average = bytes_of(state.average.values)
    places = {name: value.data_ptr() for name, value in state.parameters.items()}
    with state.averaged() as model:
        assert model is state.model
        assert bytes_of(dict(model.named_parameters())) == average
    assert everything(state) == before
    with pytest.raises(ZeroDivisionError), state.averaged():
        raise ZeroDivisionError
    assert everything(state) == before
    assert {name: value.data_ptr() for name, value in state.parameters.items()} == places


def test_training_goes_on_after_a_swap_as_if_there_had_been_none() -> None:
    looked_at, left_alone = fresh(0), fresh(0)
    for state in (looked_at, left_alone):
        train(state, 2)
        if state is looked_at:
            with state.averaged():
                pass
        train(state, 2)
    assert everything(looked_at) == everything(left_alone)


def test_without_an_average_the_weights_themselves_are_given() -> None:
    state = fresh(0, PLAIN)
    before = bytes_of(state.parameters)
    with state.averaged() as model:
        assert bytes_of(dict(model.named_parameters())) == before


def test_a_fresh_state_is_at_step_zero() -> None:
    state = fresh(0)
    assert asdict(state.counters) == {
        "step": 0,
        "images": 0,
        "loss_sum": 0.0,
        "loss_images": 0,
        "wall_seconds": 0.0,
        "validated_step": 0,
        "val_loss": None,
        "val_accuracy": None,
        "best_val_accuracy": None,
    }


def test_the_digest_of_weights_is_pinned_and_hears_every_change() -> None:
    tensors = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(3.0)}
    digest = weights_sha256(tensors)
    assert digest == "b1217dd29b06f683e5136e5675335e2294e7762e92a2a0aadfd3aafc91db493d"
    assert digest == weights_sha256({"a": torch.tensor(3.0), "b": torch.tensor([1.0, 2.0])})
    changes = [
        {**tensors, "b": torch.tensor([1.0, 2.0000002])},
        {**tensors, "b": torch.tensor([[1.0, 2.0]])},
        {**tensors, "b": torch.tensor([1.0, 2.0]).double()},
        {"c": tensors["b"], "a": tensors["a"]},
        {"b": tensors["b"]},
    ]
    assert len({digest, *(weights_sha256(changed) for changed in changes)}) == 6


def test_the_digest_does_not_depend_on_the_layout_in_memory() -> None:
    matrix = torch.randn(3, 4)
    assert weights_sha256({"a": matrix.T.contiguous().T}) == weights_sha256({"a": matrix})


def test_the_final_header_holds_only_text() -> None:
    header = final_metadata("tiny", ("a", "ä"), {"image_size": 16, "mean": (0.5, 0.25, 1.0)})
    assert header["format"] == "lowmem-seq"
    assert header["name"] == "tiny"
    assert json.loads(header["classes"]) == ["a", "ä"]
    assert json.loads(header["image_size"]) == 16
    assert json.loads(header["mean"]) == [0.5, 0.25, 1.0]
