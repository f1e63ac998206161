from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import throughput
from benchmarks.page import machine
from benchmarks.sides import Choice, our_command, timm_arguments
from benchmarks.throughput import Bench, choices, choose, wanted_pairs
from benchmarks.throughput_page import PROMISES, Comparison, broken_promises, comparisons, key_of, page
from benchmarks.workloads import (
    AS_IT_IS,
    GRID,
    ONEDNN_OFF,
    PEERS,
    WITH_AVX2,
    WORKLOADS,
)
from tests.benchmarks.builders import our_config

GIGA = 10**9


def side(rate: float, peak: int = GIGA, precision: str = "bf16", **more: Any) -> dict[str, Any]:
    return {
        **{"images_per_second": rate, "told_images_per_second": rate, "peak_bytes": peak},
        **{"largest_bytes": peak // 2, "precision": precision, "micro_batch": 64, "workers": 2},
        **{"recomputed_layers": 0, "allocator": "keep", "lstm_path": "function", "cap_bytes": 2 * GIGA},
        **{"accumulation": 2, **more},
    }


def pair(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    """Neighbours, on a processor that does 1,000 (bf16) and 500 (fp32) GFLOP/s, with images of half a GFLOP."""
    peaks = {"bf16": 1000.0 * GIGA, "fp32": 500.0 * GIGA}
    return {
        **{"ours": ours, "peer": peer, "peak_flops": peaks, "flops_an_image": GIGA // 2},
        **{"commit": "abc1234", "machine": machine()},
    }


def results(workload: str, processor: str, peer: str, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"data": {workload: "shapes"}, "pairs": {key_of(workload, processor, peer): pairs}}


def test_a_ratio_is_the_median_of_neighbours_and_not_of_the_medians() -> None:
    rates = ((100.0, 100.0), (300.0, 100.0), (400.0, 200.0))
    (one,) = comparisons(
        results("small", AS_IT_IS, "plain", [pair(side(ours), side(theirs)) for ours, theirs in rates])
    )
    assert one.ratios("images_per_second") == [1.0, 3.0, 2.0]
    assert one.ratio("images_per_second") == 2.0
    assert (one.middle("ours", "images_per_second"), one.middle("peer", "images_per_second")) == (300.0, 100.0)


def test_a_share_is_of_the_peak_of_the_side_s_own_precision_measured_beside_it() -> None:
    one = Comparison("small", AS_IT_IS, "plain", [pair(side(1000.0), side(300.0, precision="fp32"))] * 3)
    assert one.share_of_limit("ours") == 0.5
    assert one.share_of_limit("peer") == pytest.approx(0.3)


def test_the_table_tells_both_sides() -> None:
    pairs = [
        pair(side(900.0), side(300.0, 2 * GIGA, "fp32")),
        pair(side(800.0), side(320.0, 2 * GIGA, "fp32")),
        pair(side(1000.0), side(400.0, 2 * GIGA, "fp32")),
    ]
    lines = page(results("small", AS_IT_IS, "plain", pairs)).splitlines()
    assert lines[2] == (
        "| small, as it is, bf16 | plain: fp32, 64 x 2 | 3 | 900 | 320 | **2.50** (2.50, 3.00) | 1.00 GB | "
        "2.00 GB (1.00 GB) | 0.50 | 45% | 32% |"
    )
    assert lines[4] == (
        "- small, as it is, bf16: images: shapes; ours: bf16, micro-batches of 64, 2 at once, allocator keep, LSTM "
        "path function, cap 2.00 GB; GEMM peak (median): bf16 1,000 GFLOP/s, fp32 500 GFLOP/s; an image, forward "
        "and backward: 0.50 GFLOP"
    )
    assert lines[6].startswith("`python -m benchmarks.throughput`, at abc1234; ")
    assert len(lines) == 7


def test_nothing_measured_is_an_empty_table() -> None:
    nothing: dict[str, Any] = {"data": {}, "pairs": {}}
    assert len(page(nothing).splitlines()) == 2
    assert broken_promises(nothing) == []


@pytest.mark.parametrize(
    ("ours", "broken"),
    [
        (side(1500.0), []),
        (side(1490.0), ["2.98 times the speed, and at least 3.00 times the speed"]),
        (side(1500.0, GIGA * 6 // 5), []),
        (side(1500.0, GIGA * 5 // 4), ["0.62 times the memory, and at most 0.60 times the memory"]),
        (
            side(1000.0),
            [
                "2.00 times the speed, and at least 3.00 times the speed",
                "50.0% of the GEMM peak, and at least 55.0% of the GEMM peak",
            ],
        ),
    ],
)
def test_a_promise_that_is_not_kept_is_told(ours: dict[str, Any], broken: list[str]) -> None:
    one = results("small", AS_IT_IS, "plain", [pair(ours, side(500.0, 2 * GIGA, "fp32"))] * 5)
    assert broken_promises(one) == [f"small, as it is, bf16 beside plain: {words} is promised" for words in broken]


def test_a_cap_is_held_by_the_worst_run() -> None:
    pairs = [pair(side(9.0, peak), side(3.0, 9 * GIGA)) for peak in (GIGA, GIGA, 4 * GIGA + 10**7, GIGA, GIGA)]
    assert broken_promises(results("sequencer2d_l", AS_IT_IS, "plain-bf16", pairs)) == [
        "sequencer2d_l, as it is, bf16 beside plain-bf16: 4.01 GB, and at most 4.00 GB is promised"
    ]


def test_few_pairs_and_clocks_that_differ_are_told() -> None:
    disagreeing = side(1000.0, told_images_per_second=1021.0)
    one = results("small", ONEDNN_OFF, "plain", [pair(side(1000.0), side(500.0)), pair(disagreeing, side(500.0))])
    assert broken_promises(one) == [
        "small, oneDNN off, fp32 beside plain: n = 2, and 5 pairs are wanted",
        "small, oneDNN off, fp32 beside plain, pair 2: the run says 1,021 images/s, and a look from outside 1,000",
    ]


def test_all_that_is_promised_is_measured() -> None:
    for promise in PROMISES:
        assert set(promise.peers) <= set(GRID[promise.workload, promise.processor])


@pytest.mark.parametrize("name", WORKLOADS)
def test_ours_crops_and_flips_and_does_nothing_else_to_the_images(name: str) -> None:
    config = our_config(name, WITH_AVX2)
    change = config.augmentation
    assert (change.colour, change.erase, change.mixup, change.cutmix) == (0, 0, 0, 0)
    assert (change.rotate_degrees, change.zoom) == (0, 0)
    assert change.crop_padding > 0
    command = our_command(WORKLOADS[name], WITH_AVX2, "shapes", Path("run"))
    assert command[command.index("--precision") + 1] == "fp32"
    assert command[command.index("--effective-batch") + 1] == "128"


def test_a_peer_chooses_the_fastest_that_keeps_the_cap_where_there_is_one_to_keep() -> None:
    tried = [side(3.0, GIGA), side(4.0, 2 * GIGA), side(5.0, 3 * GIGA)]
    assert choose(tried, None) is tried[2]
    assert choose(tried, 2 * GIGA) is tried[1]
    assert choose(tried, GIGA // 2) is tried[0]


def test_trainers_choose_their_precision_too_where_there_is_one_to_choose() -> None:
    small, large = WORKLOADS["small"], WORKLOADS["sequencer2d_l"]
    assert choices("lightning", small, "bf16") == [Choice("fp32", 128), Choice("bf16", 128)]
    assert choices("lightning", small, "fp32") == [Choice("fp32", 128)]
    assert choices("plain-bf16", large, "bf16") == [Choice("bf16", size) for size in (1, 2, 4, 8)]
    assert choices("accelerate", small, "bf16") == []


def test_a_peer_whose_package_is_missing_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LOWMEM_SEQ_PEERS", raising=False)
    monkeypatch.setitem(PEERS, "lightning", replace(PEERS["lightning"], packages=("no_such_package",)))
    found = list(wanted_pairs(["small"], [AS_IT_IS], ["lightning", "accelerate"]))
    assert found == [("small", AS_IT_IS, "accelerate")]
    assert "passed over: lightning beside small, for no_such_package is not installed" in capsys.readouterr().err


class Fake:
    """Sides of which only the order is known."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
        self.done: list[str] = []
        for name in ("measure_ours", "measure_peer", "measure_limit", "images_for_peers"):
            monkeypatch.setattr(throughput, name, getattr(self, name))
        monkeypatch.setattr(throughput, "PLACE", place)
        monkeypatch.delenv("LOWMEM_SEQ_CIFAR10", raising=False)

    def measure_ours(self, workload: Any, processor: str, data: str, place: Path) -> dict[str, Any]:
        self.done.append("ours")
        return side(1000.0)

    def measure_peer(self, peer: str, *arguments: Any, tried: bool = False) -> dict[str, Any]:
        choice = arguments[2]
        self.done.append(f"{peer} {choice.precision} {choice.micro_batch}{' tried' if tried else ''}")
        rate = {"fp32": 300.0, "bf16": 500.0}[choice.precision]
        return side(rate, precision=choice.precision, micro_batch=choice.micro_batch)

    def measure_limit(self, *_: Any) -> dict[str, Any]:
        return {"peak_flops": {"bf16": 1000.0 * GIGA, "fp32": 500.0 * GIGA}, "flops_an_image": GIGA}

    def images_for_peers(self, *_: Any) -> Path:
        return Path()


def test_sides_take_turns_and_a_piece_goes_on_where_the_last_one_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(monkeypatch, tmp_path)
    wanted = [("small", AS_IT_IS, peer) for peer in ("plain", "lightning", "accelerate")]
    file = tmp_path / "throughput.json"
    assert Bench(file, 1, float("inf"), WORKLOADS).measure(wanted)
    assert fake.done == [
        *("ours", "ours", "plain fp32 128"),  # the first of them to plan and pack
        *("lightning fp32 128 tried", "lightning bf16 128 tried", "ours", "lightning bf16 128"),
        *("ours", "accelerate bf16 64"),  # as ours was planned
    ]
    fake.done.clear()
    bench = Bench(file, 2, float("inf"), WORKLOADS)
    assert bench.measure(wanted)
    assert fake.done == [
        "ours",
        *("ours", "plain fp32 128", "ours", "lightning bf16 128", "ours", "accelerate bf16 64"),
    ]
    assert json.loads(file.read_text(encoding="utf-8")) == bench.results
    assert [len(pairs) for pairs in bench.results["pairs"].values()] == [2, 2, 2]
    assert not Bench(file, 3, float("-inf"), WORKLOADS).measure(wanted)


def test_figures_on_other_images_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fake(monkeypatch, tmp_path)
    file = tmp_path / "throughput.json"
    wanted = [("small", AS_IT_IS, "plain")]
    Bench(file, 1, float("inf"), WORKLOADS).measure(wanted)
    monkeypatch.setenv("LOWMEM_SEQ_CIFAR10", "cifar10.zip")
    with pytest.raises(SystemExit, match="small was measured on shapes"):
        Bench(file, 2, float("inf"), WORKLOADS).measure(wanted)


def test_timm_s_model_is_described_by_the_config_s_sizes() -> None:
    told = timm_arguments(our_config("small", AS_IT_IS), 10)
    assert told == {
        **{"num_classes": 10, "layers": (4, 3), "patch_sizes": (8, 2), "embed_dims": (192, 384)},
        **{"hidden_sizes": (48, 96), "mlp_ratios": [3.0, 3.0], "stem_norm": True, "drop_path_rate": 0.1},
        "drop_rate": 0.0,
    }
