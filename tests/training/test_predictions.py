from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from lowmem_seq.checkpoint.header import read_shapes
from lowmem_seq.data.pack import Pack
from lowmem_seq.data.parts import Part, Parts, open_parts
from lowmem_seq.training.evaluation import Tally
from lowmem_seq.training.predictions import MOST_MISTAKES, scaled_down, writing_predictions
from lowmem_seq.training.ranks import OneProcess
from lowmem_seq.training.session import open_training
from tests.builders import Heard, make_run, tiny_config, tiny_plan, train_here
from tests.checkpoint.test_format import table
from tests.data.builders import write_pack

HOSTILE = ("a", "</script>\u202e\n\"'", "c")
DIGEST = "0" * 64


def read(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """The tensors and the metadata of a file, as the library reads them."""
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def parts_of(folder: Path, image_size: int = 8, count: int = 10) -> Parts:
    labels = {"train": [0, 1, 2] * 2, "test": [number % 3 for number in range(count)]}
    return open_parts(write_pack(folder, cast(Any, labels), HOSTILE, image_size), None, 0.5, 0)


def logits_for(part: Part, wrong: dict[int, float]) -> Tensor:
    """Logits that are right but for some pictures, which are taken for the next class, as surely as is said."""
    labels = torch.from_numpy(part.labels.astype(np.int64))
    logits = torch.zeros(part.size, 3)
    logits[torch.arange(part.size), labels] = 2.0
    for number, sureness in wrong.items():
        logits[number] = 0.0
        logits[number, (labels[number] + 1) % 3] = sureness
    return logits


def predict(path: Path, part: Part, logits: Tensor, size: int = 4, until: int | None = None) -> None:
    labels = torch.from_numpy(part.labels.astype(np.int64))
    with writing_predictions(path, part, HOSTILE, DIGEST) as predictions:
        for start in range(0, part.size if until is None else until, size):
            predictions.add(logits[start : start + size], labels[start : start + size])


def test_the_file_says_of_each_picture_what_it_is_and_what_it_was_taken_for(tmp_path: Path) -> None:
    part = parts_of(tmp_path / "pack").test
    logits = logits_for(part, {1: 1.0, 8: 5.0, 4: 3.0})
    predict(tmp_path / "file", part, logits)
    tensors, metadata = read(tmp_path / "file")
    assert tensors["label"].tolist() == part.labels.tolist()
    probabilities = logits.softmax(1)
    best = probabilities.topk(3)
    assert tensors["top_class"].tolist() == best.indices.tolist()
    assert np.array_equal(tensors["top_probability"], best.values.numpy())
    assert tensors["mistake"].tolist() == [8, 4, 1]
    assert np.array_equal(tensors["mistake_image"], part.read(np.array([8, 4, 1])))
    assert json.loads(metadata.pop("classes")) == list(HOSTILE)
    told = {"format": "lowmem-seq", "format_version": "1", "part": "test", "weights_sha256": DIGEST}
    assert metadata == told


def test_types_and_tensors_are_those_of_the_page(tmp_path: Path) -> None:
    part = parts_of(tmp_path / "pack").test
    predict(tmp_path / "file", part, logits_for(part, {}))
    rows = table("The predictions")
    found = read_shapes(tmp_path / "file")
    assert {name: kind for name, (kind, _) in found.items()} == {
        name: cells[0].strip("`") for name, cells in rows.items()
    }
    assert [found[name][1] for name in rows] == [(10,), (10, 3), (10, 3), (0,), (0, 8, 8, 3)]


def test_the_worst_mistakes_are_kept_and_no_more_however_the_pictures_come(tmp_path: Path) -> None:
    part = parts_of(tmp_path / "pack", count=60).test
    wrong = {number: 1.0 + (number * 7 % 60) / 10 for number in range(60)}
    surest = sorted(wrong, key=lambda number: -wrong[number])[:MOST_MISTAKES]
    for size in (1, 7, 60):
        predict(tmp_path / "file", part, logits_for(part, wrong), size)
        assert read(tmp_path / "file")[0]["mistake"].tolist() == surest


@pytest.mark.parametrize("before", [b"", b"of earlier weights"])
def test_a_test_that_is_stopped_leaves_what_was_there(tmp_path: Path, before: bytes) -> None:
    part = parts_of(tmp_path / "pack").test
    if before:
        (tmp_path / "file").write_bytes(before)
    predict(tmp_path / "file", part, logits_for(part, {}), until=8)
    left = [path for path in tmp_path.iterdir() if path.is_file()]
    assert [path.read_bytes() for path in left] == [before] * bool(before)


def test_large_pictures_of_mistakes_are_scaled_down(tmp_path: Path) -> None:
    part = parts_of(tmp_path / "pack", image_size=200, count=3).test
    predict(tmp_path / "file", part, logits_for(part, {0: 1.0}))
    picture = read(tmp_path / "file")[0]["mistake_image"]
    assert picture.shape == (1, 96, 96, 3)
    assert abs(float(picture.mean()) - float(part.read(np.array([0])).mean())) < 1


def test_a_plain_picture_stays_plain() -> None:
    pixels = torch.tensor([10, 200, 255], dtype=torch.uint8).expand(224, 224, 3)
    assert torch.equal(scaled_down(pixels, 96), pixels[:96, :96])
    assert scaled_down(pixels, 224) is pixels


def test_its_memory_does_not_grow_with_the_test(tmp_path: Path) -> None:
    peaks = []
    for batches in (10, 300):
        pack = SimpleNamespace(image_size=8)
        count = 1000 * batches
        part = SimpleNamespace(size=count, pack=pack, read=lambda _: np.zeros((1, 8, 8, 3), np.uint8))
        logits, labels = torch.zeros(1000, 3), torch.ones(1000, dtype=torch.int64)
        tracemalloc.start()
        with writing_predictions(tmp_path / "file", cast(Part, part), HOSTILE, DIGEST) as predictions:
            for _ in range(batches):
                predictions.add(logits, labels)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert read_shapes(tmp_path / "file")["top_class"] == ("I32", (count, 3))
    assert peaks[1] < peaks[0] + 50_000


def test_a_run_leaves_the_predictions_that_its_figures_were_counted_from(tmp_path: Path, tiny_pack: Pack) -> None:
    run = train_here(make_run(tmp_path / "run", tiny_pack, tiny_config("steps=2"))).run
    tensors, metadata = read(run.predictions_file)
    (told,) = [event for event in run.events if event["event"] == "test"]
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (tensors["label"], tensors["top_class"][:, 0]), 1)
    assert confusion.tolist() == told["confusion"]
    assert metadata["weights_sha256"] == told["weights_sha256"]


def test_a_run_that_is_stopped_in_its_test_leaves_none(tmp_path: Path, tiny_pack: Pack) -> None:
    run = make_run(tmp_path / "run", tiny_pack, tiny_config("steps=1"))

    class StoppedInTheTest(Heard):
        @property
        def stop_requested(self) -> bool:
            return run.weights_file.exists()

    assert not open_training(run, tiny_plan(), StoppedInTheTest()).go()
    assert run.weights_file.exists()
    assert not run.predictions_file.exists()


def test_of_several_ranks_the_first_looks_at_all_of_the_test(tmp_path: Path, tiny_pack: Pack) -> None:
    class SharesOut(OneProcess):
        def part_to_evaluate(self, part: Part) -> Part:
            return part.cut(0, part.size // 2)

    class Second(SharesOut):
        is_first = False

        def total(self, tally: Tally | None) -> Tally | None:
            """The first one's counts: this one adds none."""
            assert tally is not None
            assert int(tally.confusion.sum()) == 0
            return replace(tally, confusion=tally.confusion + 1)

    run = make_run(tmp_path / "run", tiny_pack, tiny_config("steps=1"))
    training = open_training(run, tiny_plan(), Heard(), ranks=SharesOut())
    assert training.test()
    (test,) = [event for event in run.events if event["event"] == "test"]
    assert sum(map(sum, test["confusion"])) == training.parts.test.size
    assert len(read(run.predictions_file)[0]["label"]) == training.parts.test.size
    run.predictions_file.unlink()
    training.ranks = Second()
    assert training.test()
    assert not run.predictions_file.exists()
