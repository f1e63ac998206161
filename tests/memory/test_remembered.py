from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq.memory.footprint import Facts
from lowmem_seq.memory.plan import Means, Measurement, Setting
from lowmem_seq.memory.remembered import GivenUp, Knowledge, Look, Unfit, file_of, key_of, recall, remember
from lowmem_seq.supervisor.planner import ROUND_BYTES

MB = 10**6
FACTS = Facts("cpu", "bf16", 7, 240, 30, 0, 32, 7200, 800, 2000)


def point(micro_batch: int, peak: int, rate: float, allocator: str = "keep", data: int = 0) -> Measurement:
    return Measurement(micro_batch, 1, 0, allocator, peak, data, rate)


def something_known() -> Knowledge:
    return Knowledge(
        facts=FACTS,
        measured=[point(8, 500, 9.0), point(16, 600, 12.0)],
        verified=[point(16, 580, 11.0, data=700)],
        unfit=[Unfit(Setting(64, 2, 7), Means("keep"), 900 * MB)],
        given_up=[GivenUp(900, 1500)],
        evaluated_images_per_second=30.5,
        save_seconds=0.25,
        save_bytes=2,
    )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWMEM_SEQ_CACHE", str(tmp_path / "cache"))


def test_what_is_remembered_comes_back() -> None:
    known = something_known()
    remember("a-key", known)
    assert recall("a-key") == known
    assert recall("another-key") == Knowledge()


def test_nothing_known_comes_back_as_nothing() -> None:
    remember("a-key", Knowledge())
    assert recall("a-key") == Knowledge()


def test_each_setting_counts_once_with_its_best_speed_and_the_peak_of_a_fresh_process() -> None:
    assert something_known().points() == [point(8, 500, 9.0), point(16, 580, 12.0, data=700)]


def test_without_a_fresh_process_the_highest_peak_counts() -> None:
    known = Knowledge(measured=[point(8, 500, 9.0), point(8, 510, 7.0), point(8, 300, 5.0, allocator="lean")])
    assert known.points() == [point(8, 510, 9.0), point(8, 300, 5.0, allocator="lean")]


def test_a_look_is_answered_as_often_as_it_was_taken() -> None:
    known = Knowledge(measured=[point(8, 500, 9.0)])
    eight = Setting(8, 1)
    assert known.answer(Look(eight, Means("keep")), 1000) == (True, point(8, 500, 9.0))
    assert known.answer(Look(eight, Means("keep"), again=1), 1000) == (False, None)
    assert known.answer(Look(eight, Means("keep"), fresh=True), 1000) == (False, None)
    assert known.answer(Look(eight, Means("lean")), 1000) == (False, None)
    known.verified.append(point(8, 490, 8.0))
    assert known.answer(Look(eight, Means("keep"), fresh=True), 1000) == (True, point(8, 490, 9.0))
    assert known.answer(Look(eight, Means("keep"), again=1), 1000)[0]


def test_what_did_not_fit_is_not_tried_again_with_as_little() -> None:
    known, look = something_known(), Look(Setting(64, 2, 7), Means("keep"))
    assert known.answer(look, 900 * MB) == (True, None)
    assert known.answer(look, 800 * MB) == (True, None)
    assert known.answer(look, 905 * MB) == (True, None)  # hardly more
    assert known.answer(look, 906 * MB) == (False, None)


def test_a_cap_that_a_refusal_names_is_tried_however_large_it_is() -> None:
    refused = 6000 * MB
    known = Knowledge(unfit=[Unfit(Setting(1, 1), Means("keep"), refused)])
    assert known.answer(Look(Setting(1, 1), Means("keep")), refused + ROUND_BYTES) == (False, None)


@pytest.mark.parametrize(
    ("budget", "counts"),
    [(900, True), (820, True), (990, True), (800, False), (1100, False), (1500, True), (9999, True)],
)
def test_a_search_that_ran_out_of_time_counts_for_like_budgets_and_where_memory_is_plenty(
    budget: int, counts: bool
) -> None:
    assert something_known().gave_up(budget) is counts


def damaged(change: Callable[[dict[str, Any]], object]) -> str:
    value = something_known().to_json()
    change(value)
    return json.dumps(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        damaged(lambda value: value.update(format_version=3)),
        damaged(lambda value: value.pop("measured")),
        damaged(lambda value: value.update(measured=None)),
        damaged(lambda value: value.update(measured=value["measured"] * 501)),
        damaged(lambda value: value["measured"][0].update(micro_batch=0)),
        damaged(lambda value: value["measured"][0].update(peak_bytes=-1)),
        damaged(lambda value: value["measured"][0].update(allocator="jemalloc")),
        damaged(lambda value: value["verified"][0].update(images_per_second="fast")),
        damaged(lambda value: value["unfit"][0].update(budget_bytes=None)),
        damaged(lambda value: value["unfit"][0].update(setting={"micro_batch": 10**9, "workers": 1})),
        damaged(lambda value: value["given_up"][0].update(comfortable_bytes=-1)),
        damaged(lambda value: value["facts"].update(device="tpu")),
        damaged(lambda value: value["facts"].update(layers=10**9)),
        damaged(lambda value: value["facts"].update(weights_bytes="many")),
        damaged(lambda value: value.update(save_seconds=float("nan"))),
        damaged(lambda value: value.update(save_bytes=-5)),
    ],
    ids=lambda text: str(text)[-40:] or "empty",
)
def test_a_damaged_file_is_as_good_as_none(text: str) -> None:
    remember("a-key", something_known())
    file_of("a-key").write_text(text, encoding="utf-8")
    assert recall("a-key") == Knowledge()
    remember("a-key", something_known())
    assert recall("a-key") == something_known()


def test_a_disk_that_refuses_is_no_reason_not_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LOWMEM_SEQ_CACHE", str(tmp_path / "file"))
    remember("a-key", something_known())
    assert recall("a-key") == Knowledge()


def test_every_part_of_a_subject_decides_its_key() -> None:
    subject = {"cores": 2, "model": {"layers": [4, 3]}}
    assert key_of(subject) == key_of({"model": {"layers": [4, 3]}, "cores": 2})
    assert key_of(subject) != key_of({**subject, "cores": 4})
    assert key_of(subject) != key_of({**subject, "model": {"layers": [4, 4]}})
