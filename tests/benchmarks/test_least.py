from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import caps, least, page
from benchmarks.least import (
    DISTANCES,
    RUNS_AT_THE_LEAST,
    STEP,
    arguments,
    ask_for_a_cap,
    broken_promises,
    least_working,
    next_cap,
    search,
    table,
    tried,
    try_cap,
)
from benchmarks.page import machine
from benchmarks.watched import TOO_SMALL
from lowmem_seq.config import preset_names

NAMED = 500
FAR = max(DISTANCES)


def found_by(goes_through: Callable[[int], bool], named: int = NAMED) -> dict[int, list[bool]]:
    """What is tried, in this order, where a cap goes through that this says."""
    runs: dict[int, list[bool]] = {}
    while (cap := next_cap(named, runs)) is not None:
        runs.setdefault(cap, []).append(goes_through(cap))
        assert sum(map(len, runs.values())) < 20
    return runs


@pytest.mark.parametrize("true_least", range(NAMED - FAR + STEP, NAMED + FAR + STEP, STEP))
def test_the_least_cap_around_the_named_one_is_found_and_proven_in_few_runs(true_least: int) -> None:
    runs = found_by(lambda cap: cap >= true_least)
    assert least_working(runs) == true_least
    assert runs[true_least] == [True] * RUNS_AT_THE_LEAST
    assert runs[true_least - STEP] == [False]
    assert sum(map(len, runs.values())) <= 7


def test_a_named_cap_that_is_the_least_takes_three_runs() -> None:
    assert found_by(lambda cap: cap >= NAMED) == {NAMED: [True, True], NAMED - STEP: [False]}


def test_beyond_some_distance_the_least_is_not_looked_for() -> None:
    assert list(found_by(lambda cap: False)) == [500, 510, 530, 560]
    assert least_working(found_by(lambda cap: False)) is None
    assert list(found_by(lambda cap: True)) == [500, 490, 470, 440]
    assert list(found_by(lambda cap: True, named=40)) == [40, 30, 10]


def test_a_cap_under_which_the_second_run_fails_is_not_the_least() -> None:
    left = [True, False]  # of the runs under 500 MB
    runs = found_by(lambda cap: left.pop(0) if cap == NAMED else cap > NAMED)
    assert runs == {500: [True, False], 490: [False], 510: [True, True]}
    assert least_working(runs) == 510


def ran(cap: int, **change: Any) -> dict[str, Any]:
    """A run under a cap, that went through unless a change says otherwise."""
    return {
        **{"cap_megabytes": cap, "fresh": True, "commit": "abc1234", "planned_images_per_second": 27.2},
        **{"exit_code": 0, "above": 0, "beside_above": 0, "excesses": [], "cap_bytes": cap * 10**6},
        **{"highest_bytes": (cap - 20) * 10**6, "highest_beside_bytes": 0, "count": 1000, "seconds": 60.0},
        **{"group_oom_kills": 0, "machine_oom_kills": 0, "swapped_out_bytes": 0, "out_of_memory": []},
        **{"trainer_restarted": [], "smallest_cap": None, "last_words": "", "allocator": "lean"},
        **{"setting": {"micro_batch": 1, "workers": 1, "recomputed_layers": 7}, **change},
    }


def refused(cap: int) -> dict[str, Any]:
    """A run that was refused."""
    return ran(cap, exit_code=TOO_SMALL, smallest_cap=f"{cap + 10}MB", setting={}, allocator=None)


def state_of(**presets: Any) -> dict[str, Any]:
    return {"machine": machine(), "no_groups": None, "presets": presets}


def test_the_table_tells_the_least_cap_and_what_is_computed_there() -> None:
    small = {
        "named_megabytes": 510,
        "tries": [ran(510), ran(500), refused(490), ran(500, highest_bytes=490 * 10**6)],
    }
    tiny = {"named_megabytes": 340, "tries": [ran(cap, above=1) for cap in (340, 350, 370, 400)]}
    vanilla = {"named_megabytes": 500, "tries": [ran(cap) for cap in (500, 490, 470, 440)]}
    lines = table(state_of(vanilla=vanilla, tiny=tiny, small=small)).splitlines()
    assert lines[2:5] == [
        "| small | 32x32 | 128 | **500 MB** | 510 MB | refused | 98.0% | 1x1 r7 lean | 27.2 |",
        "| tiny | 32x32 | 32 | more than 400 MB | 340 MB | - | - | - | - |",
        "| vanilla | 32x32 | 128 | at most 440 MB | 500 MB | not tried | 95.5% | 1x1 r7 lean | 27.2 |",
    ]
    assert lines[6].startswith(
        "n = 12 runs, 12,000 samples, **4** above the cap; 2 runs went through at each least"
    )
    assert "at abc1234;" in lines[8]


def test_a_cap_that_fails_without_being_refused_is_told_so_in_the_table() -> None:
    killed = ran(490, trainer_restarted=["it died"])
    small = {"named_megabytes": 500, "tries": [ran(500), killed, ran(500)]}
    assert "| **500 MB** | 500 MB | fails |" in table(state_of(small=small))


def test_what_breaks_a_promise_is_told() -> None:
    good = {"named_megabytes": 500, "tries": [ran(500), refused(490), ran(500)]}
    assert broken_promises(state_of(small=good)) == []
    killed = {"named_megabytes": 500, "tries": [ran(500), ran(490, trainer_restarted=["it died"]), ran(500)]}
    assert broken_promises(state_of(small=killed)) == [
        "small under 490 MB: 1 kills, restarts or failed allocations: it died"
    ]
    nothing = {"named_megabytes": 340, "tries": [refused(cap) for cap in (340, 350, 370, 400)]}
    assert broken_promises(state_of(tiny=nothing)) == [
        "tiny: nothing goes through up to 400 MB, and 340 MB was named"
    ]


@pytest.mark.parametrize(("preset", "promised"), [("small", 600), ("sequencer2d_l", 1800)])
def test_a_preset_that_takes_more_than_was_promised_breaks_it(preset: str, promised: int) -> None:
    for cap, wrong in ((promised, []), (promised + 10, [f"{preset}: it takes {promised + 10} MB"])):
        one = {"named_megabytes": cap, "tries": [ran(cap), refused(cap - 10), ran(cap)]}
        assert [words.partition(",")[0] for words in broken_promises(state_of(**{preset: one}))] == wrong


def test_small_images_are_shapes_and_large_ones_pictures_in_small_steps() -> None:
    assert arguments("small") == ["small", "--data", "shapes", "--effective-batch", "128", "--steps", "2"]
    words = ["--effective-batch", "16", "--steps", "2"]
    assert arguments("sequencer2d_l") == ["sequencer2d_l", "--data", str(caps.PICTURES), *words]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the benchmark works, and nothing is drawn."""
    monkeypatch.setattr(least, "PLACE", tmp_path / "least")
    monkeypatch.setattr(least, "STATE_FILE", tmp_path / "least" / "state.json")
    monkeypatch.setattr(least, "DATA_FILE", tmp_path / "least.json")
    monkeypatch.setattr(least, "PICTURES", tmp_path / "caps" / "pictures")
    monkeypatch.setattr(least, "make_pictures", lambda: None)
    monkeypatch.setattr(least, "available", lambda: "none here")
    monkeypatch.setattr(page, "PAGE", tmp_path / "results.md")
    page.PAGE.write_text("<!-- least: begin -->\nNot measured yet.\n<!-- least: end -->\n", encoding="utf-8")
    return tmp_path


class Fake:
    """Runs of which only the outcome is known: a preset goes through from some cap on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **leasts: int) -> None:
        self.leasts, self.tries = leasts, list[tuple[str, int, int]]()
        self.ends_after = 1000
        monkeypatch.setattr(least, "ask_for_a_cap", lambda preset: leasts[preset])
        monkeypatch.setattr(least, "try_cap", self.try_cap)

    def try_cap(self, preset: str, cap: int, turn: int, no_groups: str | None) -> dict[str, Any]:
        if len(self.tries) == self.ends_after:
            raise KeyboardInterrupt
        assert no_groups == "none here"
        self.tries.append((preset, cap, turn))
        return ran(cap, fresh=turn == 0) if cap >= self.leasts[preset] else refused(cap)


def test_a_search_that_was_broken_off_goes_on_where_it_was(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, tiny=340, small=500)
    fake.ends_after = 4
    with pytest.raises(KeyboardInterrupt):
        search(["tiny", "small"], 25.0)
    fake.ends_after = 1000
    state, left = search(["tiny", "small"], 25.0)
    assert fake.tries == [
        (name, cap, turn)
        for name, cap, turn in (
            ("tiny", 340, 0),
            ("tiny", 330, 0),
            ("tiny", 340, 1),
            ("small", 500, 0),
            ("small", 490, 0),
            ("small", 500, 1),
        )
    ]
    assert left == []
    assert tried(state["presets"]["small"]["tries"]) == {500: [True, True], 490: [False]}
    assert json.loads(least.STATE_FILE.read_text(encoding="utf-8")) == state


def test_a_piece_ends_with_its_time_and_says_what_is_left(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, tiny=340, small=500)
    assert search(["tiny", "small"], 0.0)[1] == ["tiny", "small"]
    assert fake.tries == []
    search(["tiny"], 25.0)
    assert search(["tiny", "small"], 0.0)[1] == ["small"]


def test_what_was_found_elsewhere_is_not_gone_on_with(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fake(monkeypatch, tiny=340)
    search(["tiny"], 25.0)
    monkeypatch.setattr(least, "available", lambda: None)
    with pytest.raises(SystemExit, match="is of another no_groups"):
        search(["tiny"], 25.0)


def test_only_presets_that_are_done_go_into_the_docs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, tiny=340, small=500)
    fake.ends_after = 4
    with pytest.raises(KeyboardInterrupt):
        search(["tiny", "small"], 25.0)
    monkeypatch.setattr(sys, "argv", ["least", "--presets", "tiny", "small", "--minutes", "0"])
    least.main()
    assert list(json.loads(least.DATA_FILE.read_text(encoding="utf-8"))["presets"]) == ["tiny"]
    assert "| tiny | 32x32 | 32 | **340 MB** |" in page.PAGE.read_text(encoding="utf-8")
    assert "| small |" not in page.PAGE.read_text(encoding="utf-8")


def test_where_no_preset_is_done_the_docs_stay_as_they_are(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fake(monkeypatch, tiny=340)
    monkeypatch.setattr(sys, "argv", ["least", "--minutes", "0"])
    least.main()
    assert not least.DATA_FILE.exists()
    assert "Not measured yet." in page.PAGE.read_text(encoding="utf-8")


def test_every_preset_that_is_shipped_is_searched_for() -> None:
    assert {path.stem for path in (page.ROOT / "configs").glob("*.yaml")} == set(preset_names())


def test_the_first_run_under_a_cap_finds_an_empty_cache_and_the_second_what_is_known(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = least.PLACE / "tiny" / "cache"
    seen: list[tuple[list[str], str, bool]] = []

    def train_watched(
        words: list[str], cap: str, folder: Path, used: Path, no_groups: str | None
    ) -> dict[str, Any]:
        assert folder.is_dir()
        seen.append((words, cap, (used / "plans").exists()))
        (used / "plans").mkdir(parents=True, exist_ok=True)
        return {key: value for key, value in ran(340).items() if key not in ("cap_megabytes", "fresh", "commit")}

    monkeypatch.setattr(least, "train_watched", train_watched)
    (cache / "plans").mkdir(parents=True)
    one, two = (try_cap("tiny", 340, turn, None) for turn in (0, 1))
    words = ["train", *arguments("tiny"), "--quiet"]
    assert seen == [(words, "340MB", False), (words, "340MB", True)]
    assert [(run["fresh"], run["cap_megabytes"]) for run in (one, two)] == [(True, 340), (False, 340)]
    assert not list((least.PLACE / "tiny").glob("340MB-*"))


def test_a_run_that_broke_the_promise_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least, "train_watched", lambda *_: ran(340, above=1))
    try_cap("tiny", 340, 0, None)
    assert (least.PLACE / "tiny" / "340MB-0").is_dir()


@pytest.mark.parametrize("code", [1, 2, None, -11])
def test_an_end_that_says_nothing_about_the_cap_ends_the_search(
    code: int | None, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(least, "train_watched", lambda *_: ran(340, exit_code=code, last_words="a defect"))
    with pytest.raises(RuntimeError, match=f"340MB-0: ended with code {code}: a defect"):
        try_cap("tiny", 340, 0, None)


def says(words: str, code: int) -> list[str]:
    """A program that says this and ends so; what it was called with goes before it."""
    return [sys.executable, "-c", f"import sys; print(*sys.argv[1:]); print({words!r}); sys.exit({code})"]


def test_the_cap_that_a_refusal_names_is_where_the_search_begins(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hint = "hint: the smallest cap that would do is about --max-ram 340MB"
    monkeypatch.setattr(least, "PROGRAM", says(hint, TOO_SMALL))
    assert ask_for_a_cap("tiny") == 340
    monkeypatch.setattr(least, "PROGRAM", says(hint, 0))
    with pytest.raises(RuntimeError, match="tiny under 200MB: code 0, plan tiny --data shapes"):
        ask_for_a_cap("tiny")
    monkeypatch.setattr(least, "PROGRAM", says("out of luck", TOO_SMALL))
    with pytest.raises(RuntimeError, match="out of luck"):
        ask_for_a_cap("tiny")
