from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.errors import UsageError
from lowmem_seq.memory.footprint import Footprint
from lowmem_seq.memory.plan import (
    CLEARLY_LESS,
    MOST_WORKERS,
    Measurement,
    Plan,
    Setting,
    highest_peaks,
    plan_from_json,
    smaller,
    within,
)
from tests.builders import tiny_plan

measurements = st.builds(
    Measurement,
    micro_batch=st.integers(1, 1024),
    workers=st.integers(1, MOST_WORKERS),
    recomputed_layers=st.integers(0, 36),
    allocator=st.sampled_from(["keep", "default", "lean", "huge"]),
    lstm_path=st.sampled_from(["function", "torch"]),
    peak_bytes=st.integers(10**8, 10**10),
    data_bytes=st.integers(0, 10**10),
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
        recomputed_layers=3,
        threads=4,
        allocator="lean",
        chosen=Setting(64, 2),
        cap_bytes=10**9,
        cap_source="machine",
        others_bytes=4 * 10**7,
        data_limit_bytes=12 * 10**8,
        predicted_peak_bytes=9 * 10**8,
        predicted_images_per_second=12.5,
        lstm_path="function",
        layers=7,
        footprint=Footprint(libraries_bytes=5, supervisor_bytes=9),
        environment=environment,
        measurements=tuple(measured),
    )
    assert plan_from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_says_its_format_version() -> None:
    assert tiny_plan().to_json()["format_version"] == 3


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
        {"recomputed_layers": -1},
        {"recomputed_layers": 10**4 + 1},
        {"layers": True},
        {"allocator": "jemalloc"},
        {"allocator": ["keep"]},
        {"lstm_path": "cudnn"},
        {"lstm_path": None},
        {"chosen": {"micro_batch": 0, "workers": 1}},
        {"chosen": {"micro_batch": 1, "workers": 10**6}},
        {"chosen": {"micro_batch": 1, "workers": 1, "recomputed_layers": -1}},
        {"chosen": {"micro_batch": 1, "workers": 1, "threads": 1}},
        {"chosen": None},
        {"others_bytes": -1},
        {"data_limit_bytes": 1.5},
        {"data_limit_bytes": -1},
        {"footprint": {"libraries_bytes": -1}},
        {"footprint": {"bones_bytes": 1}},
        {"footprint": None},
        {"environment": {"MALLOC_MMAP_THRESHOLD_": "-1"}},
        {"environment": {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "nan"}},
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
                ("data_bytes", -1),
                ("recomputed_layers", None),
                ("allocator", "mimalloc"),
                ("lstm_path", ""),
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
        **{"micro_batch": 10**6, "workers": MOST_WORKERS, "threads": 1024, "cap_bytes": 2**60},
        **{"predicted_peak_bytes": 0, "predicted_images_per_second": 7},
        "environment": {
            "OMP_NUM_THREADS": "9999",
            "OMP_WAIT_POLICY": "",
            "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2_Usable,-ERMS:glibc.malloc.hugetlb=1",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "65536",
            "PYTORCH_MPS_HIGH_WATERMARK_RATIO": "0.7000",
            "PYTORCH_MPS_LOW_WATERMARK_RATIO": "0.6300",
        },
    }
    plan = plan_from_json(value)
    assert {**plan.to_json(), "measurements": value["measurements"]} == value


@pytest.mark.parametrize("size", [0, 1, 10**7, 2**61])
def test_a_limit_that_is_none_is_no_plan(size: int) -> None:
    with pytest.raises(UsageError, match="data_limit_bytes is"):
        plan_from_json({**tiny_plan().to_json(), "data_limit_bytes": size})


@pytest.mark.parametrize("version", [4, 0, "1", None, True, 1.0])
def test_a_plan_of_another_format_is_refused(version: object) -> None:
    with pytest.raises(UsageError) as caught:
        plan_from_json({**tiny_plan().to_json(), "format_version": version})
    assert caught.value.message == f"plan.json has format version {version}; this release reads 1 to 3."
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


OF_VERSION_1 = {
    **{"device": "cpu", "precision": "bf16", "micro_batch": 64, "workers": 2, "threads": 1},
    **{"cap_bytes": 10**9, "cap_source": "given"},
    **{"predicted_peak_bytes": 9 * 10**8, "predicted_images_per_second": 900.5},
    "environment": {
        "OMP_WAIT_POLICY": "PASSIVE",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "OMP_NUM_THREADS": "2",
    },
    "measurements": [{"micro_batch": 64, "workers": 2, "peak_bytes": 8 * 10**8, "images_per_second": 900.5}],
    "format_version": 1,
}
"""As the first release wrote it."""


def test_a_plan_of_version_2_goes_on_with_the_lstm_that_it_was_made_for() -> None:
    value = {**tiny_plan().to_json(), "format_version": 2}
    del value["lstm_path"]
    value["measurements"] = [{key: one[key] for key in one if key != "lstm_path"} for one in value["measurements"]]
    assert plan_from_json(value) == replace(tiny_plan(), lstm_path="torch")


def test_a_plan_of_the_first_release_is_read_as_one_of_today() -> None:
    plan = plan_from_json(OF_VERSION_1)
    assert plan.setting == plan.chosen == Setting(64, 2, 0)
    assert (plan.allocator, plan.data_limit_bytes, plan.layers) == ("huge", None, 0)
    assert plan.measurements == (Measurement(64, 2, 0, "huge", 8 * 10**8, 0, 900.5),)
    assert plan.to_json()["format_version"] == 3
    assert plan_from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_of_the_first_release_without_huge_pages_had_the_system_s_allocator() -> None:
    assert plan_from_json({**OF_VERSION_1, "environment": {}}).allocator == "default"


@pytest.mark.parametrize("changes", [{"micro_batch": 0}, {"measurements": [{"workers": 1}]}, {"environment": None}])
def test_a_plan_of_the_first_release_that_could_do_harm_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"plan\.json is no plan"):
        plan_from_json({**OF_VERSION_1, **changes})


def measured(setting: Setting, peak_bytes: int, rate: float, allocator: str = "keep") -> Measurement:
    return Measurement(
        **asdict(setting), allocator=allocator, peak_bytes=peak_bytes, data_bytes=0, images_per_second=rate
    )


def plan_with(now: Setting, *points: Measurement, layers: int = 7) -> Plan:
    return replace(tiny_plan(), **asdict(now), threads=1, allocator="keep", measurements=points, layers=layers)


def test_the_next_smaller_setting_is_the_fastest_measured_that_needs_clearly_less() -> None:
    now = Setting(64, 2)
    plan = plan_with(
        now,
        measured(now, 1000, 900.0),
        measured(Setting(32, 2), 925, 890.0),  # hardly less
        measured(Setting(16, 2), 800, 500.0),
        measured(Setting(64, 1), 700, 600.0),
        measured(Setting(64, 2, 7), 500, 550.0),
        measured(Setting(8, 2), 400, 950.0, allocator="lean"),  # would need another process
    )
    first = smaller(plan)
    assert first is not None
    assert (first.setting, first.chosen, first.threads) == (Setting(64, 1), plan.chosen, 2)
    second = smaller(first)
    assert second is not None
    assert (second.setting, second.threads) == (Setting(64, 2, 7), 1)
    third = smaller(second)
    assert third is not None
    assert third.setting == Setting(32, 2, 7)  # nothing measured needs less than 500: half of it


def test_the_highest_peak_of_several_measurements_counts() -> None:
    now, less = Setting(8, 1), Setting(4, 1)
    plan = plan_with(now, measured(now, 1000, 9.0), measured(less, 700, 8.0), measured(less, 960, 8.0))
    halved = smaller(plan, at_any_rate=True)
    assert halved is not None
    assert halved.setting == Setting(2, 1)  # 960 is not clearly less than 1000, so half of the half
    other = smaller(plan_with(now, measured(now, 1000, 9.0), measured(Setting(3, 1), 919, 1.0)))
    assert other is not None
    assert other.setting == Setting(3, 1)


def test_without_measurements_sizes_are_halved_then_layers_recomputed_then_workers_taken_away() -> None:
    plan: Plan | None = plan_with(Setting(5, 2))
    seen = []
    while plan is not None:
        seen.append(plan.setting)
        plan = smaller(plan, at_any_rate=True)
    assert seen == [Setting(5, 2), Setting(2, 2), Setting(1, 2), Setting(1, 2, 7), Setting(1, 1, 7)]


def test_a_model_whose_layers_are_not_known_is_not_recomputed() -> None:
    assert smaller(plan_with(Setting(1, 1), layers=0), at_any_rate=True) is None


def test_from_a_setting_that_nobody_measured_only_what_is_smaller_in_all_is_taken() -> None:
    plan = plan_with(
        Setting(8, 2, 3),
        measured(Setting(16, 1, 7), 100, 9.0),  # a larger micro-batch
        measured(Setting(4, 2, 0), 100, 8.0),  # keeps more layers
        measured(Setting(4, 2, 3), 100, 7.0),
    )
    less = smaller(plan, at_any_rate=True)
    assert less is not None
    assert less.setting == Setting(4, 2, 3)


settings = st.builds(Setting, st.integers(1, 512), st.integers(1, MOST_WORKERS), st.integers(0, 7))


def test_of_what_was_not_measured_only_what_is_expected_to_need_clearly_less_is_taken() -> None:
    now, half = Setting(16, 1), measured(Setting(8, 1), 960, 8.0)
    flat = plan_with(now, measured(now, 1000, 9.0), half)  # 5 an image: 920 for none at all
    assert smaller(flat) is None
    steep = plan_with(now, measured(now, 1000, 9.0), measured(Setting(12, 1), 930, 8.0))  # 17.5 an image
    less = smaller(steep)
    assert less is not None
    assert less.setting == Setting(8, 1)
    least = smaller(less)  # from 860, which nobody measured, to 790
    assert least is not None
    assert least.setting == Setting(4, 1)


@pytest.mark.parametrize(
    ("room", "setting"),
    [
        (1000, Setting(64, 2)),  # it fits as it is
        (999, Setting(64, 1)),
        (699, Setting(64, 2, 7)),
        (499, Setting(64, 2, 7)),  # too much as well, but nothing holds less
    ],
)
def test_in_less_room_the_fastest_that_was_measured_with_the_same_means_is_taken(
    room: int, setting: Setting
) -> None:
    now = Setting(64, 2)
    plan = plan_with(
        now,
        measured(now, 1000, 900.0),
        measured(now, 990, 900.0),  # the highest peak of it counts
        measured(Setting(64, 1), 700, 600.0),
        measured(Setting(32, 1), 690, 100.0),
        measured(Setting(64, 2, 7), 500, 550.0),
        measured(Setting(8, 2), 400, 950.0, allocator="lean"),  # would need another process
    )
    less = within(plan, room)
    assert (less.setting, less.chosen) == (setting, plan.chosen)
    assert less.threads * less.workers == 2


def test_a_setting_of_which_nothing_is_known_stays_also_in_little_room() -> None:
    plan = plan_with(Setting(8, 2, 3), measured(Setting(16, 1), 100, 9.0))
    assert within(plan, 1) == plan


def test_where_nothing_is_known_of_the_present_setting_it_is_kept() -> None:
    assert smaller(plan_with(Setting(8, 2, 3), measured(Setting(16, 1), 100, 9.0))) is None
    assert smaller(plan_with(Setting(8, 2, 3))) is None


@given(settings, st.lists(measurements, max_size=6), st.booleans())
def test_getting_smaller_comes_to_an_end(now: Setting, points: list[Measurement], at_any_rate: bool) -> None:
    plan: Plan | None = replace(plan_with(now, *points), allocator="lean")
    for _ in range(60):
        following = smaller(plan, at_any_rate) if plan is not None else None
        if following is None:
            return
        assert plan is not None
        assert following.setting != plan.setting
        peaks = highest_peaks([point for point in points if point.allocator == "lean"])
        if plan.setting in peaks and following.setting in peaks:
            assert peaks[following.setting] < CLEARLY_LESS * peaks[plan.setting]
        plan = following
    raise AssertionError("it goes on for ever")
