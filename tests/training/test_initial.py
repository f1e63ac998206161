from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file, save_file

from lowmem_seq.cluster.rank import Rank, take_rank
from lowmem_seq.config import RunConfig
from lowmem_seq.data.pack import Pack
from lowmem_seq.errors import UsageError
from lowmem_seq.files import sha256_of, write_json
from lowmem_seq.models import create_model, to_timm_state_dict
from lowmem_seq.runs.folder import RunFolder, create_run
from lowmem_seq.training.initial import HEAD, InitialWeights, take_initial_weights
from lowmem_seq.training.session import make_model, open_training, take_up_newest
from lowmem_seq.training.state import final_metadata, weights_sha256
from tests.builders import Heard, tiny_config, tiny_plan
from tests.models.builders import tiny_sequencer, tiny_vanilla

CLASSES = ("a", "b", "c")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The final weights of a run of `tiny` with other classes' names."""
    return weights_file(tmp_path / "other.safetensors", ("x", "b", "c"))


def weights_file(path: Path, classes: tuple[str, ...], seed: int = 7) -> Path:
    model = make_model(structs.replace(tiny_config(), seed=seed), len(classes))
    save_file(
        {name: value.detach() for name, value in model.named_parameters()},
        path,
        final_metadata("tiny", classes, {}),
    )
    return path


def config_from(file: Path, *assignments: str) -> RunConfig:
    return structs.replace(tiny_config(*assignments), init_from=str(file), init_sha256=sha256_of(file))


def make_run_from(path: Path, pack: Pack, file: Path, *assignments: str) -> RunFolder:
    run = create_run(path, config_from(file, *assignments), file)
    record = {"format_version": 1, "source": "test", "pack": str(pack.folder), "fingerprint": pack.fingerprint}
    write_json(run.data_file, record)
    write_json(run.plan_file, tiny_plan().to_json())
    return run


def taken(model: Any, file: Path, classes: tuple[str, ...] = CLASSES) -> InitialWeights:
    return take_initial_weights(model, file, sha256_of(file), classes)


@pytest.mark.parametrize(
    ("known", "anew"),
    [(("a", "b", "c"), False), (("a", "c", "b"), True), (("a", "b", "x"), True), (("a", "b", "c", "d"), True)],
)
def test_all_is_taken_but_a_head_for_other_classes(tmp_path: Path, known: tuple[str, ...], anew: bool) -> None:
    file = weights_file(tmp_path / "weights", known)
    model, drawn = make_model(tiny_config(), 3), make_model(tiny_config(), 3).state_dict()
    told = taken(model, file)
    given = load_file(file)
    assert told == InitialWeights(len(given) - len(HEAD) * anew, anew)
    for name, value in model.state_dict().items():
        assert torch.equal(value, drawn[name] if anew and name in HEAD else given[name]), name


@pytest.mark.parametrize("classes", [5, 4])
def test_weights_in_timms_names_are_taken(tmp_path: Path, classes: int) -> None:
    source, target = tiny_sequencer(embed_norm=True), tiny_sequencer(embed_norm=True)
    weights = {name: value.contiguous() for name, value in to_timm_state_dict(source).items()}
    if classes != 5:
        weights |= {"head.fc.weight": torch.zeros(classes, 12), "head.fc.bias": torch.zeros(classes)}
    save_file(weights, tmp_path / "timm")
    torch.nn.init.ones_(target.head.bias)
    told = taken(target, tmp_path / "timm", tuple("abcde"))
    assert told.head_drawn_anew == (classes != 5)
    for name, value in source.state_dict().items():
        expected = torch.ones(5) if name == "head.bias" and classes != 5 else value
        if name != "head.weight" or classes == 5:
            assert torch.equal(target.state_dict()[name], expected), name


def test_timms_own_weights_are_taken(timm: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    oracle = timm.create_model("sequencer2d_s").eval()
    save_file(oracle.state_dict(), tmp_path / "timm")
    model = create_model("sequencer2d_s", num_classes=10).eval()
    assert taken(model, tmp_path / "timm", tuple("abcdefghij")).head_drawn_anew
    images = torch.rand(1, 112, 112, 3)
    with torch.inference_mode():
        theirs = oracle.forward_head(oracle.forward_features(images.permute(0, 3, 1, 2)), pre_logits=True)
        torch.testing.assert_close(model(images), model.head(theirs), atol=1e-5, rtol=1e-5)


def test_weights_of_another_model_are_refused_and_named(file: Path) -> None:
    with pytest.raises(UsageError) as caught:
        taken(create_model("small", num_classes=3), file)
    assert "and the model has" in caught.value.message
    assert "more" in caught.value.message
    with pytest.raises(UsageError, match="missing: "):
        taken(tiny_vanilla(), file)
    with pytest.raises(UsageError, match="unexpected: "):
        taken(make_model(tiny_config("model.embed_norm=false"), 3), file)


def test_a_head_that_differs_in_more_than_classes_is_refused(tmp_path: Path) -> None:
    file = weights_file(tmp_path / "weights", CLASSES)
    weights = load_file(file)
    save_file({**weights, "head.weight": weights["head.weight"][:, :4].contiguous()}, tmp_path / "cut")
    with pytest.raises(UsageError, match=r"head\.weight: \(3, 4\)"):
        taken(make_model(tiny_config(), 3), tmp_path / "cut")


def test_a_pointwise_layer_is_more_than_timms_weights_have(tmp_path: Path) -> None:
    source = tiny_sequencer()
    save_file({name: value.contiguous() for name, value in to_timm_state_dict(source).items()}, tmp_path / "timm")
    with pytest.raises(UsageError, match="no pointwise linear layer"):
        taken(tiny_sequencer(final_pointwise=True), tmp_path / "timm")


class StopsAfter(Heard):
    """Asks for a stop when so many micro-batches were begun."""

    def __init__(self, begun: int) -> None:
        super().__init__()
        self.left = begun

    @property
    def stop_requested(self) -> bool:
        self.left -= 1
        return self.left < 0


def go_on(run: RunFolder, channel: Heard) -> bool:
    training = open_training(run, tiny_plan(), channel)
    take_up_newest(training)
    return training.go()


SETTINGS = ("steps=4", "recipe.effective_batch=16", "checkpoint.every=2steps", "recipe.ema_decay=0.9")


@pytest.mark.parametrize("begun", [1, 3, 7])
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    tmp_path: Path, tiny_pack: Pack, file: Path, begun: int
) -> None:
    whole = make_run_from(tmp_path / "whole", tiny_pack, file, *SETTINGS)
    assert go_on(whole, Heard())
    run = make_run_from(tmp_path / "run", tiny_pack, file, *SETTINGS)
    file.unlink()  # from here on the run has all that it needs
    assert not go_on(run, StopsAfter(begun))
    if run.checkpoints.exists():
        run.initial_file.unlink()  # it is not looked at any more
    assert go_on(run, Heard())
    assert weights_sha256(load_file(run.weights_file)) == weights_sha256(load_file(whole.weights_file))


def test_it_is_not_the_run_that_begins_by_its_seed(tmp_path: Path, tiny_pack: Pack, file: Path) -> None:
    run = make_run_from(tmp_path / "run", tiny_pack, file, *SETTINGS)
    channel = Heard()
    assert go_on(run, channel)
    (told,) = [event for event in run.events if event["event"] == "initial_weights"]
    assert (told["path"], told["head_drawn_anew"]) == (str(file), True)
    assert told["tensors"] == len(load_file(file)) - 2
    training = open_training(run, tiny_plan(), Heard())
    assert training.initial is None  # there are checkpoints
    shutil.rmtree(run.checkpoints)
    training = open_training(run, tiny_plan(), Heard())
    given = load_file(file)
    assert training.state.average is not None
    for values in (training.state.parameters, training.state.average.values):
        assert all(torch.equal(values[name], given[name]) for name in given.keys() - HEAD)


def test_a_file_that_changed_or_has_gone_is_refused_before_the_first_step(
    tmp_path: Path, tiny_pack: Pack, file: Path
) -> None:
    run = make_run_from(tmp_path / "run", tiny_pack, file)
    weights_file(run.initial_file, CLASSES, seed=8)
    with pytest.raises(UsageError, match="has changed since the run was made"):
        open_training(run, tiny_plan(), Heard())
    run.initial_file.unlink()
    with pytest.raises(UsageError, match="is missing, and no step was saved yet") as caught:
        open_training(run, tiny_plan(), Heard())
    assert "--init-from" in caught.value.hint


def test_ranks_after_the_first_get_theirs_from_it(tmp_path: Path, tiny_pack: Pack, file: Path) -> None:
    run = make_run_from(tmp_path / "run", tiny_pack, file)
    take_rank(run, Rank(number=0, of=2, local=0, local_of=2, address="127.0.0.1", port=29500))
    assert open_training(run, tiny_plan(), Heard()).initial is not None
    take_rank(run, Rank(number=1, of=2, local=1, local_of=2, address="127.0.0.1", port=29500))
    run.initial_file.unlink()
    assert open_training(run, tiny_plan(), Heard()).initial is None


def test_the_experiment_is_known_by_the_weights_and_not_by_their_path(file: Path, tmp_path: Path) -> None:
    one = config_from(file)
    other = config_from(Path(shutil.copy(file, tmp_path / "copy")))
    assert one.experiment_hash() == other.experiment_hash() != tiny_config().experiment_hash()
    again = config_from(weights_file(tmp_path / "again", CLASSES, seed=9))
    assert again.experiment_hash() != one.experiment_hash()
