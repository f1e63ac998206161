from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from benchmarks.report import invented_events
from lowmem_seq.files import write_json, write_text
from lowmem_seq.report.page import page_of
from lowmem_seq.report.plots.outcome import MOST_IN_A_MATRIX
from lowmem_seq.runs.folder import RunFolder
from tests.builders import NEEDS_LINKS
from tests.report.builders import TESTED_WEIGHTS, finish, record_memory, restart, start_session, tell, train_to
from tests.report.predictions import write_predictions

LARGEST_PAGE_BYTES = 6_000_000
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"' onload='alert(1)",
    "<!--<script>",
    "%{x}{{ 7 * 7 }}",
    "\u202eright to left \u05d0\u05d1",
    "x" * 10_000,
]


class Texts(HTMLParser):
    """What a page shows as text, and what elements it has; scripts and styles apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


def figures_of(page: str) -> list[dict[str, Any]]:
    """The plots that a page holds."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    figures: list[dict[str, Any]] = json.loads(found[1])
    return figures


def tell_a_story(run: RunFolder) -> None:
    """A run with everything in it: planned, begun, made smaller, died, gone on, finished."""
    tell(run, "session_opened", at=1000.0)
    tell(run, "planned", at=1005.0, predicted_peak_bytes=500, predicted_images_per_second=90.0, micro_batch=16)
    start_session(run, at=1010.0)
    train_to(run, 20, learning_rate=0.1, wall_seconds=1.0, at=1030.0)
    record_memory(run, tree=500, peak=600, at=1040.0)
    changed = {"micro_batch_before": 16, "micro_batch": 8, "cause": "memory was short"}
    tell(run, "setting_changed", at=1041.0, **changed)
    restart(run, "the trainer was ended by SIGKILL")
    start_session(run, step=20)
    finish(run)


def test_a_finished_run_s_page_has_all_its_parts(run: RunFolder) -> None:
    tell_a_story(run)
    write_predictions(run.path, ["a", "b"])
    page = page_of([run])
    assert [figure["name"] for figure in figures_of(page)] == [
        *("loss", "accuracy", "learning-rate", "memory", "speed", "timeline", "spent", "classes", "confusion"),
    ]
    told = Texts(page)
    for words in (
        *("finished", "60.00%", "peak RAM", "another one starts in 1 s", "computes smaller: micro-batch 16"),
        *("taken for", "is b, and it said", "lowmem-seq train", "config.yaml", "predicted", "actual"),
    ):
        assert words in told.text, words
    assert sum(tag == "img" for tag, _ in told.elements) == 3
    assert len(page.encode()) < LARGEST_PAGE_BYTES


def test_a_run_that_goes_on_after_its_test_takes_it_back(run: RunFolder) -> None:
    tell_a_story(run)
    write_predictions(run.path, ["a", "b"])
    start_session(run, step=60)
    train_to(run, 80)
    page = page_of([run])
    assert {"classes", "confusion"}.isdisjoint(figure["name"] for figure in figures_of(page))
    told = Texts(page)
    assert "No test of the present weights was recorded" in told.text
    assert "no test left its predictions of the present weights" in told.text
    assert "img" not in [tag for tag, _ in told.elements]
    assert "On the test part it was 60.00% at step 60" in told.text


def test_pictures_that_other_weights_got_wrong_are_not_shown(run: RunFolder) -> None:
    tell_a_story(run)
    write_predictions(run.path, ["a", "b"], weights_sha256="of an earlier end")
    told = Texts(page_of([run]))
    assert "img" not in [tag for tag, _ in told.elements]
    assert "no test left its predictions of the present weights" in told.text


def test_a_run_that_got_all_right_says_so(run: RunFolder) -> None:
    tell_a_story(run)
    write_predictions(run.path, ["a", "b"], mistakes=0)
    assert "It got none of them wrong." in Texts(page_of([run])).text


@pytest.mark.parametrize(
    ("changes", "repeats"),
    [
        ({"recipe.epochs": 60}, "config.yaml"),
        ({"steps": 9}, "config.yaml"),
        ({"machine.max_ram_bytes": "1GB"}, "tiny -q"),
    ],
)
def test_a_run_of_another_length_than_it_was_begun_with_is_repeated_by_its_settings(
    run: RunFolder, changes: dict[str, Any], repeats: str
) -> None:
    write_json(run.environment_file, {"command": ["x", "train", "tiny", "-q"]})
    tell(run, "config_changed", changes=changes)
    found = re.search(r'<pre class="command"><code>lowmem-seq train (.*?)</code>', page_of([run]))
    assert found is not None
    assert found[1].endswith(repeats)


def test_each_plot_has_a_place_a_title_and_a_text(run: RunFolder) -> None:
    tell_a_story(run)
    page = page_of([run])
    ids = [attributes["id"] for _, attributes in Texts(page).elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for figure in figures_of(page):
        assert {figure["name"], f"{figure['name']}-title", f"{figure['name']}-text"} <= set(ids)
        assert figure["text"]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: name[:12])
def test_a_hostile_name_is_text_wherever_it_stands(run: RunFolder, name: str) -> None:
    config = run.config.to_settings()
    config["data"]["source"] = name
    write_text(run.config_file, json.dumps(config))  # which is YAML, too
    tell(run, "session_started", step=0, classes=[name, "b"], total_steps=60, effective_batch=40, train_images=400)
    tell(run, "peer_joined", machine="1", name=name)
    restart(run, name)
    finish(run)
    write_predictions(run.path, [name, "b"])
    write_json(run.environment_file, {"command": ["x", "train", name], "packages": {name: name}})
    page = page_of([run])
    told, plain = Texts(page), Texts(run_page_of_nothing(run))
    added = [element for element in told.elements if element[0] in ("script", "iframe", "object", "embed", "link")]
    assert added == [element for element in plain.elements if element[0] in ("script", "link")]
    assert not [key for _, attributes in told.elements for key in attributes if key.startswith("on")]
    shown = name[:100].replace("\u202e", " ")
    assert shown in told.text
    assert len(page.encode()) < LARGEST_PAGE_BYTES
    labels = json.dumps([figure["layout"] for figure in figures_of(page)])
    assert "<script" not in labels
    assert "<img" not in labels


def run_page_of_nothing(run: RunFolder) -> str:
    """The page of the same folder without its events."""
    kept = run.events.path.read_bytes()
    run.events.path.unlink()
    page = page_of([run])
    run.events.path.write_bytes(kept)
    return page


def test_the_policy_allows_the_page_s_own_scripts_and_loads_nothing(run: RunFolder) -> None:
    start_session(run)
    page = page_of([run])
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert found is not None
    policy = dict(part.strip().split(" ", 1) for part in html.unescape(found[1]).split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["img-src"] == "data: blob:"
    scripts = Texts(page).scripts[1:]  # the first is the plots' JSON, which is not run
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy["script-src"].split() == [f"'sha256-{one}'" for one in hashes]
    assert len(scripts) == 2


def test_before_the_first_event_every_part_says_that_there_is_nothing(run: RunFolder) -> None:
    run.environment_file.unlink()
    run.plan_file.unlink()
    page = page_of([run])
    assert figures_of(page) == []
    assert Texts(page).text.count("yet.") >= 4
    assert "lowmem-seq resume" in page


def test_a_running_run_is_told_to_be_one(run: RunFolder) -> None:
    start_session(run)
    train_to(run, 20)
    with run.locked():
        told = Texts(page_of([run])).text
    assert "The run was running when this page was made" in told
    assert "time left" in told


def break_config(run: RunFolder) -> None:
    write_text(run.config_file, "format_version: 9\n")


def lose_config(run: RunFolder) -> None:
    run.config_file.unlink()


def break_plan(run: RunFolder) -> None:
    write_text(run.plan_file, "{")


def break_events(run: RunFolder) -> None:
    tell(run, "train", step="many", train_loss=[], images_per_second=1.0)


def break_predictions(run: RunFolder) -> None:
    write_predictions(run.path, ["a", "b"]).write_bytes(b"torn")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_config, "format version 9"),
        (lose_config, "config.yaml can't be read"),
        (break_plan, "plan.json can't be read"),
        (break_events, "1 of 13 events are not as expected"),
        (break_predictions, "predictions.safetensors can't be used"),
    ],
)
def test_a_broken_folder_s_page_says_what_is_broken_and_shows_the_rest(
    run: RunFolder, damage: Any, said: str
) -> None:
    tell_a_story(run)
    damage(run)
    page = page_of([run])
    assert said in Texts(page).text
    assert {"loss", "memory", "timeline"} <= {figure["name"] for figure in figures_of(page)}


@NEEDS_LINKS
def test_a_folder_with_a_link_is_not_read(run: RunFolder) -> None:
    (run.path / "elsewhere").symlink_to("/")
    tell_a_story(run)
    page = page_of([run])
    assert "is a link" in Texts(page).text
    assert figures_of(page) == []


def test_the_largest_page_is_not_too_large(run: RunFolder) -> None:
    classes = [f"{index} {'x' * 1000}" for index in range(MOST_IN_A_MATRIX)]
    for event in invented_events(6_000):
        run.events.append(event.pop("event"), **{key: value for key, value in event.items() if "time" not in key})
    count = len(classes)
    tell(run, "session_started", step=0, classes=classes, effective_batch=40, train_images=400)
    figures: dict[str, Any] = {"class_accuracies": [0.123456] * count, "confusion": [[123] * count] * count}
    tell(run, "test", step=60, test_loss=1.0, test_accuracy=0.5, weights_sha256=TESTED_WEIGHTS, **figures)
    write_predictions(run.path, classes, mistakes=24, side=96)
    page = page_of([run])
    assert [figure["name"] for figure in figures_of(page)][-1] == "confusion"
    assert len(page.encode()) < LARGEST_PAGE_BYTES


def test_several_runs_share_a_page(run: RunFolder, tmp_path: Any) -> None:
    tell_a_story(run)
    missing = RunFolder(tmp_path / "<b>broken")
    page = page_of([run, run, missing])
    assert [figure["name"] for figure in figures_of(page)][-1] == "memory"
    told = Texts(page)
    assert "60.00%" in told.text
    assert "<b>broken" in told.text
    assert "unreadable" in told.text


def test_a_page_of_many_runs_stays_small(run: RunFolder) -> None:
    start_session(run)
    for step in range(2000):
        train_to(run, step, loss=1 / (step + 1), learning_rate=0.1)
    assert len(page_of([run] * 60).encode()) < LARGEST_PAGE_BYTES
