from __future__ import annotations

import itertools
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import scaling_picture
from benchmarks.dataset_sizes import DATASETS, broken_datasets, dataset_table, medians, times_of
from benchmarks.page import machine
from benchmarks.probing import make_config
from benchmarks.scaling import (
    EXPECTED,
    MOST_EXCESS,
    PATHS,
    POINTS,
    SWEEPS,
    WORKERS,
    Point,
    broken_promises,
    missing,
    page,
    panels,
)
from benchmarks.synthetic import CLASSES, TEST_IMAGES, as_source, make_pack, using_cache
from benchmarks.work import TRAINED_BY_FORWARD, forward_flops, training_flops
from lowmem_seq.config import Sequencer2DConfig
from lowmem_seq.data.cache import cache_folder
from lowmem_seq.data.prepare import prepare
from lowmem_seq.runs.folder import RunFolder
from tests.builders import tiny_config

SPEED = 1e12
"""Operations a second, of a machine that takes one picosecond for each."""
MEMORY = 600_000_000


def measured(point: Point, slower: float = 1.0) -> list[dict[str, Any] | None]:
    """Three measurements, of which the median is that of a machine whose operations all take alike long."""
    rate = SPEED / point.flops / slower
    return [{"images_per_second": rate * share} for share in (0.5, 1.0, 1.1)]


def trained(**changes: Any) -> list[dict[str, Any]]:
    one = {
        **{"setting": {"micro_batch": 64}, "allocator": "keep", "highest_bytes": MEMORY},
        **{"start_seconds": 1.5, "images_per_second": 1000.0, "problems": []},
    }
    return [{**one, **changes}]


def results(**changed: list[dict[str, Any]]) -> dict[str, Any]:
    """Results of such a machine; `changed` datasets by their place in DATASETS (`of_3=...`)."""
    datasets = {one.key: changed.get(f"of_{place}", trained()) for place, one in enumerate(DATASETS)}
    points = {point.key: measured(point) for point in POINTS}
    return {"machine": machine(), "commit": "abc1234", "points": points, "datasets": datasets}


@pytest.mark.parametrize(
    ("preset", "published"), [("sequencer2d_s", 8.4), ("sequencer2d_m", 11.1), ("sequencer2d_l", 16.6)]
)
def test_the_work_is_what_the_paper_says_but_for_what_is_no_product(preset: str, published: float) -> None:
    model = make_config(preset).model
    assert isinstance(model, Sequencer2DConfig)
    assert forward_flops(model, 224, 1000) / 2e9 == pytest.approx(published, rel=0.01)
    assert forward_flops(model, 224, 1000) / 2e9 < published


@pytest.mark.parametrize(("preset", "image_size"), [("small", 32), ("small", 48), ("sequencer2d_s", 56)])
def test_the_work_is_that_of_the_model_s_linear_layers_and_lstms(preset: str, image_size: int) -> None:
    import torch
    from torch import Tensor, nn

    from lowmem_seq.models import build_model

    products = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        nonlocal products
        matrices = [value for value in module.parameters(recurse=False) if value.ndim == 2]
        products += sum(matrix.numel() for matrix in matrices) * inputs[0].numel() // inputs[0].shape[-1]

    config = make_config(preset)
    assert isinstance(config.model, Sequencer2DConfig)
    model = build_model(config.model, 10)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.LSTM):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, image_size, image_size, 3))
    assert forward_flops(config.model, image_size, 10) == 2 * products
    assert training_flops(config.model, image_size, 10) == TRAINED_BY_FORWARD * 2 * products


def test_a_point_changes_one_thing_of_small() -> None:
    base = Point("micro-batch", 32, "native").config
    large, deep = Point("image size", 224, "torch"), Point("depth", 16, "torch")
    assert isinstance(deep.config.model, Sequencer2DConfig)
    assert {point.config.machine.threads for point in POINTS} == {WORKERS} == {1}
    assert (large.config.data.image_size, large.config.model) == (224, base.model)
    assert (deep.config.data.image_size, deep.config.model.layers) == (32, (16, 16))
    assert [Point("micro-batch", 32, "torch").micro_batch, large.micro_batch, deep.micro_batch] == [32, 16, 64]
    for sweep, values in SWEEPS.items():
        for less, more in itertools.pairwise(values):
            assert Point(sweep, less, "torch").work < Point(sweep, more, "torch").work


@pytest.mark.parametrize("written", [False, True])
def test_a_synthetic_pack_is_read_as_if_it_had_been_packed(tmp_path: Path, written: bool) -> None:
    with using_cache(tmp_path):
        pack = make_pack(64 * CLASSES, 16, written)
        source = as_source(pack)
        found = prepare(source, 16)
        assert found.folder == pack.folder
        assert cache_folder() == tmp_path
        assert make_pack(64 * CLASSES, 16, written).folder == pack.folder
    assert found.labels("train").tolist() == list(range(CLASSES)) * 64
    assert (found.size("train"), found.size("test")) == (64 * CLASSES, TEST_IMAGES)
    pictures = found.read("train", np.array([0, 1, 64 * CLASSES - 1]))
    assert len(np.unique(pictures)) == (256 if written else 1)
    assert cache_folder() != tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="what a file takes on the disk is told differently")
def test_a_sparse_pack_takes_no_room(tmp_path: Path) -> None:
    with using_cache(tmp_path):
        pack = make_pack(2_000_000, 32, written=False)
    images = (pack.folder / "train.images").stat()
    assert images.st_size == 2_000_000 * 32 * 32 * 3
    assert images.st_blocks * 512 < 10**6


def test_a_pack_that_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=6 * 10**9))
    with using_cache(tmp_path), pytest.raises(OSError, match="no room for 2000000 pictures"):
        make_pack(2_000_000, 32, written=True)
    assert not list(tmp_path.rglob("*.images"))


def test_the_cache_in_use_before_is_in_use_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOWMEM_SEQ_CACHE")
    with using_cache(tmp_path):
        assert os.environ["LOWMEM_SEQ_CACHE"] == str(tmp_path)
    assert "LOWMEM_SEQ_CACHE" not in os.environ


def test_cost_in_proportion_to_the_work_keeps_every_promise() -> None:
    one = results()
    assert broken_promises(one) == []
    lines = page(one).splitlines()
    flops = Point("image size", 224, "torch").flops
    assert f"| 224 | {flops / 1e9:.3g} | **{SPEED / flops:.1f}** | 1.00 | **{SPEED / flops:.1f}** | 1.00 |" in lines
    assert "| 2,000,000, from the disk | 1,000 | 600 MB | 1.50 |" in lines
    assert "medians of n = 3" in lines[-1]


def test_an_operation_that_costs_more_where_there_are_more_is_told() -> None:
    one = results()
    slow, within = Point("image size", 128, "torch"), Point("depth", 8, "native")
    one["points"][slow.key] = measured(slow, 1.5)
    one["points"][within.key] = measured(within, 1 + 0.9 * MOST_EXCESS)
    assert broken_promises(one) == ["image size 128 torch: 1.50 ps an operation, and 1.00 at less work"]
    line = next(line for line in page(one).splitlines() if line.startswith("| 128 | 4.98"))
    assert line.split(" | ")[2].startswith("**")
    assert not line.split(" | ")[4].startswith("**")


def test_an_operation_that_costs_more_where_there_are_few_is_none_of_it() -> None:
    one = results()
    for value in (1, 2, 4):
        point = Point("micro-batch", value, "native")
        one["points"][point.key] = measured(point, 8 / value)
    assert broken_promises(one) == []


def test_a_point_that_did_not_fit_is_left_out() -> None:
    one = results()
    for path in PATHS:
        one["points"][f"depth 16 {path}"] = [None, None, None]
    one["points"]["depth 8 torch"] = [None, None, None]
    assert broken_promises(one) == []
    lines = page(one).splitlines()
    rows = lines[lines.index(next(line for line in lines if line.startswith("| depth |"))) + 2 :]
    assert [row.split(" | ")[0] for row in rows[:5]] == ["| 1", "| 2", "| 4", "| 8", ""]
    assert rows[3].endswith("| - | - |")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"highest_bytes": int(1.029 * MEMORY)}, []),
        ({"highest_bytes": int(1.15 * MEMORY)}, ["2,000,000 pictures: 15.0% more memory than for 2,000"]),
        ({"images_per_second": 940.0}, ["2,000,000 pictures: 94% of the images/s of 2,000"]),
        ({"start_seconds": 7.0}, ["2,000,000 pictures: 7.0 s until the first step begins"]),
        ({"problems": ["1 kills"]}, ["2,000,000 pictures: 1 kills"]),
        (
            {"allocator": "lean"},
            [
                "datasets were not trained on with one setting: "
                "({'micro_batch': 64}, 'keep'), ({'micro_batch': 64}, 'lean')"
            ],
        ),
    ],
)
def test_what_grows_with_the_dataset_is_told(changes: dict[str, Any], words: list[str]) -> None:
    assert broken_promises(results(of_3=trained(**changes))) == words


def test_of_several_runs_the_medians_count() -> None:
    runs = [*trained(highest_bytes=5, images_per_second=1.0), *trained(highest_bytes=7, start_seconds=2.5)]
    ((dataset, told),) = medians({DATASETS[0].key: runs})
    assert dataset == DATASETS[0]
    assert told == {"images_per_second": 500.5, "start_seconds": 2.0, "highest_bytes": 6}
    assert dataset_table({}) == dataset_table({DATASETS[0].key: runs})[:2]
    assert broken_datasets({}) == []


def test_a_run_s_figures_leave_its_first_steps_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.events.append("session_opened")
    run.events.append("session_started")
    for rate in (1.0, 10.0, 12.0, 11.0):
        run.events.append("train", images_per_second=rate)
    times = times_of(run)
    assert times["images_per_second"] == 11.0
    assert 0 <= times["start_seconds"] < 5.0


def test_rounds_take_turns_over_all_that_is_missing() -> None:
    one = results()
    for key in ("depth 1 torch", "micro-batch 1 native"):
        one["points"][key] = one["points"][key][:1]
    del one["datasets"][DATASETS[0].key]
    wanted = [(part, key) for part, key, _ in missing(one, 2, ["points", "datasets"])]
    first, second = wanted.index(("datasets", "2,000")), wanted.index(("points", "depth 1 torch"))
    assert first < wanted.index(("points", "micro-batch 1 native")) < second
    assert [key for part, key in wanted if part == "points"] == ["micro-batch 1 native", "depth 1 torch"]
    assert [key for _, key, _ in missing(one, 2, ["datasets"])] == ["2,000", *(one.key for one in DATASETS)]


def test_the_picture_has_a_panel_for_all_that_grows_and_what_the_work_lets_expect() -> None:
    drawn = panels(results())
    assert [panel.title for panel in drawn] == [
        "images at once",
        "pixels a side",
        "layers a stage",
        "training pictures, with peak memory",
    ]
    at_once, sizes, depths, datasets = ([line.name for line in panel.lines] for panel in drawn)
    assert (at_once, datasets) == (list(PATHS), ["native"])
    assert sizes == depths == [*PATHS, EXPECTED]
    for panel in drawn[1:3]:  # on this machine all is as the work lets expect
        assert list(panel.lines[-1].rates) == pytest.approx(list(panel.lines[0].rates))
    assert drawn[3].ticks == [2_000, 20_000, 200_000, 2_000_000]
    assert drawn[3].lines[0].notes == ["600 MB"] * 4


def test_without_matplotlib_the_picture_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        scaling_picture.draw(panels(results()), tmp_path / "picture.svg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("value", "text"), [(1, "1"), (224, "224"), (2_000, "2k"), (2_000_000, "2M")])
def test_an_axis_has_short_numbers(value: int, text: str) -> None:
    assert scaling_picture.short(value) == text


def test_a_config_takes_assignments() -> None:
    assert (
        make_config("tiny", "data.image_size=16", "machine.threads=1").data
        == tiny_config("data.source=shapes").data
    )
