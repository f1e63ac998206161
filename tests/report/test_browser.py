from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from benchmarks.browser import NO_BROWSER, SECONDS_TO_DRAW, Browser, open_browser
from lowmem_seq.files import write_text
from lowmem_seq.report.page import page_of
from lowmem_seq.runs.folder import RunFolder, create_run
from tests.builders import tiny_config
from tests.report.builders import TESTED_WEIGHTS
from tests.report.predictions import write_predictions
from tests.report.test_page import HOSTILE, tell_a_story
from tests.report.test_plots import history_of_a_story

pytestmark = pytest.mark.skipif(NO_BROWSER is not None, reason=str(NO_BROWSER))
PLOTS = ("loss", "accuracy", "learning-rate", "classes", "confusion", "memory", "speed", "timeline", "spent")
LEAST_CONTRAST = 4.5
"""Of text, as WCAG's level AA asks."""
CONTRASTS = """
const parse = (text) => text.match(/[0-9.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((one) => one / 255)
  .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
  .reduce((sum, one, index) => sum + one * [0.2126, 0.7152, 0.0722][index], 0);
const ground = (element) => {
  for (; element; element = element.parentElement) {
    const colour = parse(getComputedStyle(element).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour;
  }
};
const TEXTS = "h1, h2, h3, p, td, th, li, a, dt, dd, summary, code, button, figcaption, .state";
return [...document.querySelectorAll(TEXTS)]
  .filter((element) => element.offsetParent && element.textContent.trim())
  .map((element) => {
    const [one, other] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
    return [(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), element.outerHTML.slice(0, 80)];
  });
"""


RECTANGLES = """
return [...document.querySelectorAll(arguments[0])].map((element) => element.getBoundingClientRect())
  .map(({ left, top, right, bottom }) => [left, top, right, bottom]);
"""
Rectangle = tuple[float, float, float, float]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with everything in it."""
    folder = tmp_path_factory.mktemp("page")
    run = create_run(folder / "run", tiny_config())
    tell_a_story(run)
    write_predictions(run.path, ["a", "b"])
    write_text(folder / "report.html", page_of([run]))
    return folder / "report.html"


@pytest.fixture(scope="module")
def page_of_many_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that was validated once, and tested on 37 classes with long names, the first ones alike."""
    folder = tmp_path_factory.mktemp("many")
    run = create_run(folder / "run", tiny_config())
    classes = [
        f"{'a name that is cut where it differs' if index < 2 else 'a long name'} {index}" for index in range(37)
    ]
    run.events.append("session_started", step=0, effective_batch=40, train_images=400, classes=classes)
    run.events.append("validation", step=60, val_loss=1.0, val_accuracy=0.5)
    matrix = [[50 if one == other else 1 for other in range(37)] for one in range(37)]
    told = {"test_loss": 1.0, "test_accuracy": 0.5, "class_accuracies": [0.5] * 37, "confusion": matrix}
    run.events.append("test", step=60, **told)
    write_text(folder / "report.html", page_of([run]))
    return folder / "report.html"


def rectangles(browser: Browser, selector: str) -> list[Rectangle]:
    """Where elements are that are seen."""
    found: list[Rectangle] = browser.run(RECTANGLES, selector)
    return [one for one in found if one[2] > one[0]]


def covered(one: Rectangle, other: Rectangle) -> float:
    """How many pixels two rectangles share on the side on which they share fewer."""
    return min(min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1]))


def x_range(browser: Browser, plot: str) -> list[float]:
    """What a plot shows from left to right."""
    shown: list[float] = browser.run("return document.getElementById(arguments[0])._fullLayout.xaxis.range", plot)
    return shown


def drawn_colour(browser: Browser, plot: str) -> str:
    """The colour of a plot's letters."""
    colour: str = browser.run("return document.getElementById(arguments[0])._fullLayout.font.color", plot)
    return colour


def widest(browser: Browser) -> float:
    """The pixels of the widest plot."""
    return max(float(plot.size["width"]) for plot in browser.driver.find_elements(By.CLASS_NAME, "main-svg"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_plot_is_drawn_without_an_error_and_without_a_request(
    browser: Browser, page: Path, theme: str
) -> None:
    browser.open(page, theme=theme)
    assert browser.requests() == [page.as_uri()]
    assert browser.complaints() == []
    places = browser.driver.find_elements(By.CLASS_NAME, "plot")
    assert sorted(str(place.get_attribute("id")) for place in places) == sorted(PLOTS)
    for place in places:
        svg = place.find_element(By.CLASS_NAME, "main-svg")
        assert svg.size["width"] > 300
        assert place.find_elements(By.CSS_SELECTOR, ".trace, .hm"), place.get_attribute("id")


def test_plots_follow_the_system_s_colours_and_the_button(browser: Browser, page: Path) -> None:
    browser.open(page, theme="dark")
    assert browser.run("return document.documentElement.dataset.theme") == "dark"
    dark = drawn_colour(browser, "loss")
    button = browser.driver.find_element(By.ID, "theme")
    assert (button.text, button.get_attribute("aria-label")) == ("Light", "Show in light colours")
    button.click()
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"
    assert drawn_colour(browser, "loss") != dark
    browser.open(page, theme="dark")
    assert browser.run("return document.documentElement.dataset.theme") == "light"  # as chosen
    browser.run("localStorage.clear()")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_has_contrast(browser: Browser, page: Path, theme: str) -> None:
    browser.open(page, theme=theme)
    contrasts: list[tuple[float, str]] = browser.run(CONTRASTS)
    assert len(contrasts) > 50
    assert [one for one in contrasts if one[0] < LEAST_CONTRAST] == []


def test_a_drag_zooms_and_a_double_click_goes_back(browser: Browser, page: Path) -> None:
    browser.open(page)
    place = browser.driver.find_element(By.ID, "memory")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", place)
    drag = place.find_element(By.CSS_SELECTOR, ".nsewdrag")
    begin, end = x_range(browser, "memory")
    ActionChains(browser.driver).move_to_element_with_offset(drag, -100, 0).click_and_hold().move_by_offset(
        200, 2
    ).release().perform()
    zoomed = x_range(browser, "memory")
    assert begin < zoomed[0] < zoomed[1] < end
    ActionChains(browser.driver).double_click(drag).perform()
    assert x_range(browser, "memory") == pytest.approx([begin, end])


def test_the_keyboard_zooms_moves_and_goes_back(browser: Browser, page: Path) -> None:
    browser.open(page)
    for plot in ("loss", "timeline"):
        place = browser.driver.find_element(By.ID, plot)
        whole = x_range(browser, plot)
        place.send_keys("+")
        zoomed = x_range(browser, plot)
        assert zoomed[0] > whole[0]
        assert zoomed[1] < whole[1]
        place.send_keys(Keys.ARROW_RIGHT)
        assert x_range(browser, plot)[1] > zoomed[1]
        place.send_keys("0")
        assert x_range(browser, plot) == whole


def test_no_button_sends_a_plot_to_anybody(browser: Browser, page: Path) -> None:
    browser.open(page)
    buttons = browser.driver.find_elements(By.CSS_SELECTOR, "#loss .modebar-btn")
    assert {str(button.get_attribute("data-title")) for button in buttons} == {
        *("Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"),
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_narrow_screen_nothing_is_wider_than_it(browser: Browser, page: Path, theme: str) -> None:
    browser.open(page, width=375, theme=theme)
    assert browser.run("return document.documentElement.scrollWidth") == 375
    for place in browser.driver.find_elements(By.CLASS_NAME, "main-svg"):
        assert place.rect["x"] + place.rect["width"] <= 375


def test_on_a_narrow_screen_no_legend_lies_under_the_buttons(browser: Browser, page: Path) -> None:
    browser.open(page, width=375)
    for plot in PLOTS:
        (buttons,) = rectangles(browser, f"#{plot} .modebar")
        assert all(covered(legend, buttons) <= 0 for legend in rectangles(browser, f"#{plot} .legend .bg")), plot
    assert len(rectangles(browser, ".legend .bg")) >= 4
    assert browser.run("return document.documentElement.scrollWidth") == 375


@pytest.mark.parametrize("width", [375, 1200])
def test_names_of_many_classes_do_not_cover_each_other(
    browser: Browser, page_of_many_classes: Path, width: int
) -> None:
    browser.open(page_of_many_classes, width=width)
    assert browser.complaints() == []
    for axis, place in (("x", 0), ("y", 1)):
        labels = sorted(rectangles(browser, f"#confusion .{axis}tick text"), key=lambda one: one[place])
        assert len(labels) >= 5
        assert all(covered(one, other) < 4 for one, other in pairwise(labels)), axis
    rows, columns = browser.run(
        "const {x, y} = document.getElementById('confusion')._fullData[0]; return [y.length, new Set(x).size]"
    )
    assert (rows, columns) == (37, 37)


def test_no_accuracy_above_all_is_shown(browser: Browser, page_of_many_classes: Path) -> None:
    browser.open(page_of_many_classes)
    shown: Any = browser.run("return document.getElementById('accuracy')._fullLayout.yaxis.range")
    assert 0 <= shown[0] < 0.5 < shown[1] <= 1


def test_paper_is_light_and_its_plots_fit(browser: Browser, page: Path) -> None:
    browser.open(page, theme="dark")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("return document.documentElement.dataset.theme") == "light"
    assert widest(browser) < 680
    assert all(one.get_attribute("open") for one in browser.driver.find_elements(By.TAG_NAME, "details"))
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("return document.documentElement.dataset.theme") == "dark"
    until = time.monotonic() + SECONDS_TO_DRAW
    while widest(browser) < 680:
        assert time.monotonic() < until


def test_hostile_names_are_shown_and_do_nothing(browser: Browser, tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", tiny_config("data.source='<img src=x onerror=alert(1)>'"))
    count = len(HOSTILE)
    classes = {"classes": HOSTILE, "class_accuracies": [0.5] * count, "confusion": [[1] * count] * count}
    started = {"step": 0, "total_steps": 60, "effective_batch": 40, "train_images": 400}
    run.events.append("session_started", **started, classes=HOSTILE)
    run.events.append("peer_joined", machine="1", name=HOSTILE[1])
    run.events.append("test", step=1, test_loss=1.0, test_accuracy=0.5, weights_sha256=TESTED_WEIGHTS, **classes)
    write_predictions(run.path, HOSTILE, mistakes=count)
    page = tmp_path / "report.html"
    write_text(page, page_of([run]))
    browser.open(page, width=375)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.run("return document.documentElement.scrollWidth") == 375
    labels = browser.run("return [...document.querySelectorAll('#classes .ytick')].map((one) => one.textContent)")
    assert any("<script>alert(1)</script>" in one for one in labels)
    assert not browser.driver.find_elements(By.CSS_SELECTOR, "img:not([src^='data:'])")


def test_several_runs_are_drawn(browser: Browser, run: RunFolder, tmp_path: Path) -> None:
    history_of_a_story(run)
    page = tmp_path / "report.html"
    write_text(page, page_of([run, run]))
    browser.open(page)
    assert browser.complaints() == []
    legend: Any = browser.run(
        "return [...document.querySelectorAll('#memory .legendtext')].map((one) => one.textContent)"
    )
    assert [name.strip("\u2068\u2069") for name in legend] == ["run", "run"]
    assert browser.run("return document.documentElement.scrollWidth") <= 1200
