from __future__ import annotations

import json
from typing import Any

import pytest

from lowmem_seq.report.history import MOST_HAPPENINGS, History
from lowmem_seq.report.plots.figure import LONGEST_LABEL, Figure, label, paragraph, time_unit
from lowmem_seq.report.plots.learning import learning_figures
from lowmem_seq.report.plots.machine import machine_figures, spent_figure, timeline_figure
from lowmem_seq.report.plots.outcome import (
    MOST_BARS,
    MOST_IN_A_MATRIX,
    Outcome,
    confusions,
    outcome_figures,
    read_outcome,
)
from lowmem_seq.report.plots.several import comparison_figures
from lowmem_seq.runs.folder import RunFolder
from tests.report.builders import start_session, tell, train_to
from tests.report.test_history import SMALLER, history_of


def history_of_a_story(run: RunFolder) -> History:
    """Begun, made smaller and larger, died, gone on, stopped, and begun again the next day."""
    tell(run, "session_opened", at=1000.0)
    start_session(run, at=1010.0)
    for at, held in ((1020.0, 500), (1040.0, 900), (1060.0, 300)):
        tell(run, "memory", at=at, tree_bytes=held * 10**6, peak_tree_bytes=held * 10**6, cap_bytes=10**9)
    train_to(run, 20, loss=2.0, rate=100.0, learning_rate=0.1, at=1070.0)
    tell(run, "setting_changed", at=1080.0, **SMALLER)
    tell(run, "setting_changed", at=1090.0, micro_batch_before=8, micro_batch=16, cause="calm")
    train_to(run, 40, loss=1.0, rate=80.0, learning_rate=0.05, at=1100.0)
    tell(run, "session_ended", at=1105.0, state="crashed", cause="the trainer was ended by SIGKILL")
    start_session(run, step=20, at=1110.0)
    tell(run, "session_ended", at=1120.0, state="stopped", step=30)
    return history_of(run)


def named(figures: list[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


def traces(figure: Figure) -> dict[str, Any]:
    return {trace["name"]: trace for trace in figure.data}


def test_before_the_first_event_nothing_is_drawn() -> None:
    history = History()
    assert learning_figures(history) == machine_figures(history) == comparison_figures([("a", history)]) == []
    assert timeline_figure(history) is spent_figure(history) is None


def test_learning_is_drawn_and_told(run: RunFolder) -> None:
    history = History()
    for step, loss in ((0, 2.5), (10, 2.0)):
        history.take(
            {"event": "train", "step": step, "train_loss": loss, "learning_rate": 1e-3, "images_per_second": 1}
        )
    history.take({"event": "validation", "step": 10, "val_loss": 1.5, "val_accuracy": 0.25})
    history.take({"event": "test", "step": 10, "test_loss": 1.6, "test_accuracy": 0.2})
    figures = named(learning_figures(history))
    assert list(figures) == ["loss", "accuracy", "learning-rate"]
    assert list(traces(figures["loss"])) == ["training", "validation", "test"]
    assert (traces(figures["loss"])["training"]["x"], traces(figures["loss"])["training"]["y"]) == (
        [0, 10],
        [2.5, 2],
    )
    assert "went from 2.500 to 2.000 within 10 steps" in figures["loss"].text
    assert (
        figures["accuracy"].text
        == "Validation accuracy was highest, 25.00%, at step 10. On the test part it was 20.00% at step 10."
    )


def test_memory_has_its_cap_and_the_changes_on_its_curve(run: RunFolder) -> None:
    figure = named(machine_figures(history_of_a_story(run)))["memory"]
    drawn = traces(figure)
    assert list(drawn) == ["held", "highest of the session", "cap", "computes smaller", "computes larger"]
    assert set(drawn["cap"]["y"]) == {1.0}
    assert (drawn["computes smaller"]["x"], drawn["computes smaller"]["y"]) == ([80.0], [0.3])
    assert "(memory was short)" in drawn["computes smaller"]["text"][0]
    assert "held 900 MB at the most, 90% of the cap of 1.00 GB" in figure.text
    assert "to a smaller setting once, to a larger one once" in figure.text


def test_a_speed_that_was_rare_is_not_the_usual_one() -> None:
    history = History(2)  # of whose curves the first, lowest, highest and last points alone stay
    for step, rate in enumerate((100.0, 900.0, *[100.0] * 97, 500.0)):
        history.take({"event": "train", "step": step, "train_loss": 1.0, "images_per_second": rate})
    assert named(machine_figures(history))["speed"].text.startswith("The median speed was 100 images/s")


def test_the_timeline_has_a_lane_for_each_kind(run: RunFolder) -> None:
    figure = timeline_figure(history_of_a_story(run))
    assert figure is not None
    assert figure.layout["yaxis"]["categoryarray"][::-1] == [
        *("the run", "died", "computes smaller", "computes larger", "ended"),
    ]
    assert [len(trace["y"]) for trace in figure.data] == [2, 2, 1, 1, 1, 1]


def test_all_that_happened_is_counted_however_much_is_drawn() -> None:
    history = History()
    history.take({"event": "session_opened", "time_unix_seconds": 1.0})
    for number in range(2 * MOST_HAPPENINGS):
        history.take({"event": "memory", "tree_bytes": 5, "cap_bytes": 9})
        history.take({"event": "setting_changed", **SMALLER})
        history.take({"event": "session_ended", "state": "crashed", "time_unix_seconds": 2.0 + number})
    timeline = timeline_figure(history)
    assert timeline is not None
    assert timeline.text.endswith("its trainer died 600 times.")
    assert "to a smaller setting 600 times" in named(machine_figures(history))["memory"].text


def test_the_time_that_was_spent_is_one_bar(run: RunFolder) -> None:
    figure = spent_figure(history_of_a_story(run))
    assert figure is not None
    assert {trace["name"] for trace in figure.data} == {"training", "starting"}
    assert "training took" in figure.text


@pytest.mark.parametrize(("seconds", "unit"), [(0, "seconds"), (119, "seconds"), (600, "minutes"), (9000, "hours")])
def test_time_is_drawn_in_a_unit_that_fits(seconds: float, unit: str) -> None:
    assert time_unit(seconds)[1] == unit


def test_several_runs_are_drawn_over_each_other_and_told_apart(run: RunFolder) -> None:
    history = history_of_a_story(run)
    figures = named(comparison_figures([(f"run-{index}", history) for index in range(24)] + [("empty", History())]))
    assert list(figures) == ["train-loss", "memory"]
    lines = [json.dumps(trace["line"], sort_keys=True) for trace in figures["train-loss"].data]
    assert len(lines) == len(set(lines)) == 24
    assert figures["train-loss"].text.startswith("Training loss of 24 of 25 runs")


def test_a_name_is_shown_letter_by_letter_and_cut() -> None:
    assert label("<b>&lt;") == "\u2068&lt;b&gt;&amp;lt;\u2069"
    assert len(label("x" * 10_000)) == LONGEST_LABEL + 3
    assert paragraph("<i> " + "word " * 1000).count("<br>") == 7
    assert "<i>" not in paragraph("<i> x")


TESTED = Outcome(["a", "b"], [0.9, 0.5], [[9, 1], [5, 5]])


def test_the_hardest_class_comes_first_and_the_matrix_shows_shares() -> None:
    figures = named(outcome_figures(TESTED))
    (bars,) = figures["classes"].data
    assert (bars["x"], bars["customdata"]) == ([0.5, 0.9], [label("b"), label("a")])
    (matrix,) = figures["confusion"].data
    assert matrix["z"] == [[0.9, 0.1], [0.5, 0.5]]
    assert matrix["text"] == matrix["customdata"] == [[9, 1], [5, 5]]
    assert "Most often b was taken for a: 5 times, 50.0% of them." in figures["confusion"].text


def test_confusions_are_counted_the_most_frequent_first() -> None:
    assert confusions(TESTED) == [("b", "a", 5, 0.5), ("a", "b", 1, 0.1)]


def test_of_very_many_classes_the_hardest_are_shown_and_no_matrix() -> None:
    count = MOST_IN_A_MATRIX + 1
    tested = Outcome([str(i) for i in range(count)], [i / count for i in range(count)], [[1] * count] * count)
    (figure,) = outcome_figures(tested)
    assert len(figure.data[0]["x"]) == MOST_BARS
    assert f"The {MOST_BARS} hardest of {count} classes are shown." in figure.text


def test_a_class_without_pictures_has_no_bar() -> None:
    figures = named(outcome_figures(Outcome(["a", "b"], [None, None], [[0, 0], [0, 0]])))
    assert figures["classes"].text == "No class was tested."
    assert figures["confusion"].data[0]["z"] == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": None},
        {"classes": ["a"]},
        {"class_accuracies": [0.5]},
        {"class_accuracies": [0.5, "x"]},
        {"confusion": [[1, 2], [3]]},
        {"confusion": [[1, 2], [3, -4]]},
        {"confusion": [[1, 2], 3]},
    ],
    ids=str,
)
def test_a_test_that_is_not_whole_is_not_drawn(changes: dict[str, Any]) -> None:
    told = {"classes": ["a", "b"], "class_accuracies": [0.9, 0.5], "confusion": [[9, 1], [5, 5]]}
    assert read_outcome(told, told) == TESTED
    assert read_outcome(told | changes, told | changes) is None
    assert read_outcome(None, None) is None
