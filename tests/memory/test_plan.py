from __future__ import annotations

import json
import re
from dataclasses import asdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.errors import CapTooSmallError, UsageError
from lowmem_seq.memory.plan import (
    MARGIN,
    MOST_WORKERS,
    Measurement,
    Plan,
    candidate_sizes,
    choose,
    plan_from_json,
    predict_peak,
    smaller_sizes,
    threads_each,
    worker_counts,
)
from lowmem_seq.units import format_bytes, parse_bytes
from tests.builders import tiny_plan

measurements = st.builds(
    Measurement,
    micro_batch=st.integers(1, 1024),
    workers=st.integers(1, MOST_WORKERS),
    peak_bytes=st.integers(10**8, 10**10),
    images_per_second=st.floats(0.1, 1e5),
)


@given(
    st.lists(measurements, max_size=3),
    st.dictionaries(
        st.sampled_from(["OMP_WAIT_POLICY", "GLIBC_TUNABLES"]), st.from_regex(r"[a-z]{1,12}", fullmatch=True)
    ),
)
def test_a_plan_comes_back_from_its_json(measured: list[Measurement], environment: dict[str, str]) -> None:
    plan = Plan(
        device="cpu",
        precision="bf16",
        micro_batch=32,
        workers=2,
        threads=4,
        cap_bytes=10**9,
        cap_source="machine",
        predicted_peak_bytes=9 * 10**8,
        predicted_images_per_second=12.5,
        environment=environment,
        measurements=tuple(measured),
    )
    assert plan_from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_says_its_format_version() -> None:
    assert tiny_plan().to_json()["format_version"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch": 0},
        {"workers": 0},
        {"threads": "2"},
        {"cap_bytes": -1},
        {"device": "tpu"},
        {"precision": "fp64"},
        {"environment": {"LD_PRELOAD": "evil.so"}},
        {"environment": {"PYTHONPATH": "."}},
        {"environment": {"OMP_NUM_THREADS": "2; rm"}},
        {"environment": {"OMP_NUM_THREADS": "10000"}},
        {"environment": {"OMP_NUM_THREADS": "\u0662"}},
        {"environment": {"OMP_NUM_THREADS": 2}},
        {"environment": {"GLIBC_TUNABLES": "x" * 1001}},
        {"environment": []},
        {"environment": None},
        {"workers": MOST_WORKERS + 1},
        {"workers": True},
        {"workers": 1.0},
        {"threads": 1025},
        {"micro_batch": 10**6 + 1},
        {"cap_bytes": 2**63},
        {"cap_bytes": None},
        {"cap_source": "elsewhere"},
        {"device": ["cpu"]},
        {"predicted_peak_bytes": "\x1b[2J"},
        {"predicted_peak_bytes": 1.5},
        {"predicted_images_per_second": "fast"},
        {"predicted_images_per_second": float("nan")},
        {"predicted_images_per_second": float("inf")},
        {"predicted_images_per_second": -1.0},
        {"predicted_images_per_second": True},
        *(
            {"measurements": [{**asdict(tiny_plan().measurements[0]), name: value}]}
            for name, value in (
                ("micro_batch", 0),
                ("workers", 10**6),
                ("peak_bytes", "1"),
                ("images_per_second", None),
            )
        ),
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_a_plan_that_could_do_harm_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"plan\.json is no plan") as caught:
        plan_from_json({**tiny_plan().to_json(), **changes})
    assert caught.value.hint == "delete plan.json to have it measured anew"


def test_the_largest_plan_that_is_read() -> None:
    value = {
        **tiny_plan().to_json(),
        **{"micro_batch": 10**6, "workers": MOST_WORKERS, "threads": 1024, "cap_bytes": 2**63 - 1},
        **{"predicted_peak_bytes": 0, "predicted_images_per_second": 7},
        "environment": {
            "OMP_NUM_THREADS": "9999",
            "OMP_WAIT_POLICY": "",
            "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2_Usable,-ERMS:glibc.malloc.hugetlb=1",
        },
    }
    plan = plan_from_json(value)
    assert {**plan.to_json(), "measurements": value["measurements"]} == value


@pytest.mark.parametrize("version", [2, 0, "1", None, True, 1.0])
def test_a_plan_of_another_format_is_refused(version: object) -> None:
    with pytest.raises(UsageError) as caught:
        plan_from_json({**tiny_plan().to_json(), "format_version": version})
    assert caught.value.message == f"plan.json has format version {version}; this release reads 1."
    assert "delete plan.json" in caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [{"unknown": 1}, {"measurements": [{"micro_batch": 1}]}, {"measurements": None}, {"measurements": [3]}],
)
def test_what_is_no_plan_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"plan\.json is no plan") as caught:
        plan_from_json({**tiny_plan().to_json(), **changes})
    assert "delete plan.json" in caught.value.hint


def test_a_plan_that_lacks_a_value_is_refused() -> None:
    value = tiny_plan().to_json()
    del value["threads"]
    with pytest.raises(UsageError, match="threads"):
        plan_from_json(value)


@given(st.integers(1, 5000), st.integers(1, 8))
def test_candidates_are_powers_of_two_that_end_with_a_workers_share(batch: int, workers: int) -> None:
    sizes = candidate_sizes(batch, workers, None, smallest=8)
    assert (sizes[-1] - 1) * workers < batch <= sizes[-1] * workers
    assert sizes == sorted(set(sizes))
    assert all(size & (size - 1) == 0 and size >= 8 for size in sizes[:-1])
    assert all(larger <= 2 * smaller for smaller, larger in pairwise(sizes))
    assert sizes[0] <= 8


@pytest.mark.parametrize(
    ("batch", "workers", "sizes"),
    [(1, 1, [1]), (8, 1, [8]), (9, 1, [8, 9]), (64, 1, [8, 16, 32, 64]), (64, 2, [8, 16, 32]), (9, 4, [3])],
)
def test_candidates_of_some_batches(batch: int, workers: int, sizes: list[int]) -> None:
    assert candidate_sizes(batch, workers, None, smallest=8) == sizes


@given(st.integers(1, 500), st.integers(1, 500))
def test_a_wanted_size_is_the_only_candidate_and_never_passes_the_batch(batch: int, wanted: int) -> None:
    assert candidate_sizes(batch, 2, wanted, smallest=8) == [min(batch, wanted)]


@pytest.mark.parametrize(
    ("cores", "batch", "wanted", "on_cpu", "counts"),
    [
        (2, 128, None, True, [2, 1]),
        (1, 128, None, True, [1]),
        (16, 128, None, True, [4, 1]),
        (6, 128, None, True, [3, 1]),
        (5, 128, None, True, [1]),
        (4, 128, 64, True, [2, 1]),
        (4, 128, 128, True, [1]),
        (4, 128, None, False, [1]),
    ],
)
def test_there_is_a_worker_a_core_where_a_step_has_enough_for_it(
    cores: int, batch: int, wanted: int | None, on_cpu: bool, counts: list[int]
) -> None:
    assert worker_counts(cores, batch, wanted, on_cpu) == counts
    assert [threads_each(count, cores) for count in counts][-1] == cores


@given(st.integers(1, 5000))
def test_smaller_sizes_go_down_to_one(size: int) -> None:
    halves = smaller_sizes(size)
    assert halves == sorted(set(halves), reverse=True)
    assert all(half == larger // 2 for larger, half in zip([size, *halves], halves, strict=False))
    assert (halves or [size])[-1] == 1


@given(
    st.integers(10**7, 10**9),
    st.integers(0, 10**8),
    st.lists(st.integers(1, 1024), min_size=2, max_size=5, unique=True),
    st.integers(1, 2048),
)
def test_the_prediction_is_exact_where_memory_is_affine(
    base: int, slope: int, sizes: list[int], asked: int
) -> None:
    measured = [Measurement(size, 1, base + slope * size, 1.0) for size in sizes]
    assert predict_peak(measured, asked, floor_bytes=0) == pytest.approx(base + slope * asked, rel=1e-9)


@given(measurements, st.integers(1, 2048), st.integers(0, 10**8))
def test_from_one_measurement_all_above_the_floor_is_taken_to_grow(
    point: Measurement, asked: int, floor_bytes: int
) -> None:
    predicted = predict_peak([point], asked, floor_bytes)
    grown = (point.peak_bytes - floor_bytes) * asked / point.micro_batch
    assert predicted == pytest.approx(floor_bytes + grown, rel=1e-9, abs=1)


def test_a_floor_above_the_measurement_is_not_taken_for_a_gain() -> None:
    assert predict_peak([Measurement(8, 1, 500, 1.0)], 64, floor_bytes=600) == 500


def test_noise_that_falls_is_not_taken_for_a_gain() -> None:
    assert predict_peak([Measurement(8, 1, 500, 1.0), Measurement(16, 1, 490, 1.0)], 64, floor_bytes=0) == 490


@given(st.lists(measurements, min_size=1, max_size=6), st.integers(10**8, 10**10), st.integers(0, 10**8))
def test_the_fastest_that_fits_is_chosen_or_the_hint_names_a_cap_that_does(
    measured: list[Measurement], cap_bytes: int, others_bytes: int
) -> None:
    fitting = [point for point in measured if others_bytes + point.peak_bytes / MARGIN <= cap_bytes]
    if fitting:
        best = choose(measured, cap_bytes, others_bytes)
        assert best.images_per_second == max(point.images_per_second for point in fitting)
        return
    with pytest.raises(CapTooSmallError) as caught:
        choose(measured, cap_bytes, others_bytes)
    assert caught.value.exit_code == 3
    cap = parse_bytes(caught.value.hint.rpartition("--max-ram ")[2])
    least = min(measured, key=lambda point: point.peak_bytes)
    assert choose(measured, cap, others_bytes).peak_bytes == least.peak_bytes
    with pytest.raises(CapTooSmallError):
        choose(measured, cap - 2 * 10**7, others_bytes)


def test_a_cap_that_is_too_small_is_told_with_the_numbers() -> None:
    measured = [Measurement(1, 1, 500 * 10**6, 9.0), Measurement(2, 1, 600 * 10**6, 15.0)]
    with pytest.raises(CapTooSmallError) as caught:
        choose(measured, 400 * 10**6, 60 * 10**6)
    assert caught.value.message == (
        "the cap of 400 MB is too small for this model: micro-batch 1 holds 500 MB in the trainer."
    )
    assert caught.value.hint == "the smallest cap that would do is about --max-ram 590MB"
    assert re.search(rf"\b{format_bytes(500 * 10**6)}\b", caught.value.message)
