from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lowmem_seq.data.dataset import Skipped
from lowmem_seq.data.inputs import read_inputs
from lowmem_seq.data.pack import Pack
from lowmem_seq.data.prepare import prepare
from lowmem_seq.errors import CapTooSmallError, DataError, UsageError
from lowmem_seq.files import write_json
from lowmem_seq.memory.plan import Plan, plan_from_json
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.inference import MOST_AT_ONCE, Classifier, under_cap
from lowmem_seq.training.judging import Subject, choose_subject, judge, own_pack
from lowmem_seq.training.trained import load_trained
from tests.conftest import Coloured
from tests.data.builders import coloured_files, write_folder

CLASSES = ("blue", "green", "red")
REDS = {"red": (210, 50, 50), "green": (50, 210, 50)}


def classifier(coloured: Coloured) -> Classifier:
    return Classifier(load_trained(coloured.run.weights_file), coloured.run, "cpu")


def subject(coloured: Coloured, pack: Pack | None = None, what: str | None = None) -> Subject:
    return choose_subject(coloured.run, pack or coloured.pack, "somewhere", CLASSES, what)


def test_the_figures_are_those_of_the_runs_own_test(coloured: Coloured) -> None:
    done: list[int] = []
    result = judge(classifier(coloured), subject(coloured), done.append)
    (told,) = [event for event in coloured.run.events if event["event"] == "test"]
    assert (result.accuracy, result.confusion) == (told["test_accuracy"], told["confusion"])
    assert result.loss == pytest.approx(told["test_loss"], rel=1e-5)
    assert done[-1] == sum(map(sum, result.confusion)) == 9
    assert result.accuracy > 0.8  # the colours are plain


def test_the_runs_own_pack_is_found_while_it_is_there(coloured: Coloured, tmp_path: Path) -> None:
    pack = own_pack(coloured.run)
    assert pack is not None
    assert pack.folder == coloured.pack.folder
    run = RunFolder(tmp_path)
    write_json(run.data_file, {"pack": str(pack.folder), "fingerprint": "of others"})
    assert own_pack(run) is None
    write_json(run.data_file, {"pack": str(tmp_path / "gone"), "fingerprint": pack.fingerprint})
    assert own_pack(run) is None


def test_a_runs_own_parts_are_those_of_its_training(coloured: Coloured) -> None:
    (told,) = [event for event in coloured.run.events if event["event"] == "session_started"]
    for what in ("train", "validation", "test"):
        assert subject(coloured, what=what).size == told[f"{what}_images"]
    assert subject(coloured, what="all").size == 60


def test_others_are_matched_by_name_and_all_are_taken_where_none_are_put_aside_by_hand(
    coloured: Coloured, tmp_path: Path
) -> None:
    pack = prepare(str(write_folder(tmp_path / "others", coloured_files(**REDS))), 16)
    chosen = subject(coloured, pack)
    assert (chosen.what, chosen.size) == ("all", 40)
    assert subject(coloured, pack, "test").size == 6
    result = judge(classifier(coloured), chosen)
    assert [sum(row) for row in result.confusion] == [0, 20, 20]
    assert result.class_accuracies[0] is None
    assert result.accuracy > 0.8


def test_others_with_a_test_folder_are_judged_on_it(coloured: Coloured, tmp_path: Path) -> None:
    files = coloured_files(**REDS)
    parted = {f"{'test' if '1.png' in name else 'train'}/{name}": data for name, data in files.items()}
    chosen = subject(coloured, prepare(str(write_folder(tmp_path / "parted", parted)), 16))
    assert (chosen.what, chosen.size) == ("test", 4)


def test_classes_that_the_model_does_not_know_are_named(coloured: Coloured, tmp_path: Path) -> None:
    files = coloured_files(red=(200, 0, 0), gren=(0, 200, 0), violet=(200, 0, 200))
    with pytest.raises(DataError) as caught:
        subject(coloured, prepare(str(write_folder(tmp_path / "others", files)), 16))
    assert "2 of the 3 classes: gren, violet" in caught.value.message
    assert "did you mean 'green'?" in caught.value.hint
    assert "blue, green, red" in caught.value.hint


def test_others_have_no_validation_part(coloured: Coloured, tmp_path: Path) -> None:
    pack = prepare(str(write_folder(tmp_path / "others", coloured_files(**REDS))), 16)
    with pytest.raises(UsageError, match="has no validation part"):
        subject(coloured, pack, "validation")


def test_predictions_are_the_evaluations_logits_on_the_same_pictures(coloured: Coloured) -> None:
    here = classifier(coloured)
    pictures = [one.pixels for one in read_inputs([coloured.photos], 16, Skipped())]
    of_files = here.logits(torch.from_numpy(np.stack([one for one in pictures if one is not None])))
    pack = coloured.pack
    packed = np.concatenate([pack.read(part, np.arange(pack.size(part))) for part in ("train", "test")])
    of_pack = here.logits(torch.from_numpy(packed))
    rows = [np.array(sorted(logits.tolist())) for logits in (of_files, of_pack)]  # (60, 3) each
    assert np.abs(rows[0] - rows[1]).max() < 1e-5


def test_it_computes_as_the_plan_of_this_machine_says(coloured: Coloured) -> None:
    stored = coloured.run.read_json(coloured.run.plan_file)
    assert stored is not None
    plan: Plan = plan_from_json(stored)
    here = classifier(coloured)
    assert here.model.lstm_path == plan.lstm_path
    assert here.accelerator.mixed_precision == "no"
    assert here.batch == MOST_AT_ONCE


def test_a_cap_that_is_held_already_is_refused_with_one_that_would_do() -> None:
    with pytest.raises(CapTooSmallError, match="before the first picture") as caught, under_cap(10**6):
        raise AssertionError
    assert caught.value.hint.startswith("--max-ram ")


def test_what_tells_of_memory_is_told_as_such_and_other_errors_are_not() -> None:
    with pytest.raises(CapTooSmallError, match="the machine's memory is too small"), under_cap(None):
        raise MemoryError
    with pytest.raises(RuntimeError, match="something else"), under_cap(None):
        raise RuntimeError("something else")
