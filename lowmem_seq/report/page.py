"""One HTML page of one run or of several, which needs nothing but itself: no network, no other file.

The texts are Jinja's templates in web/, with every name escaped; the plots are drawn by Plotly's script, which is
written into the page. The page's own policy lets a browser run these two scripts, known by their hashes, and load
nothing: what a name in a run might smuggle in could neither run nor speak to anybody.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowmem_seq import __version__
from lowmem_seq.errors import UsageError
from lowmem_seq.files import read_limited
from lowmem_seq.report.facts import (
    environment_rows,
    machine_tile,
    name_of,
    predicted_and_actual,
    repeating_command,
    tiles,
)
from lowmem_seq.report.history import MOST_HAPPENINGS, Happening
from lowmem_seq.report.machines import Line, columns_of
from lowmem_seq.report.mistakes import FILE, Mistake, PredictionsError, read_mistakes
from lowmem_seq.report.notes import notes_of
from lowmem_seq.report.plots.figure import Figure, clock_text
from lowmem_seq.report.plots.learning import learning_figures
from lowmem_seq.report.plots.machine import machine_figures, spent_figure, timeline_figure
from lowmem_seq.report.plots.machines import (
    colours_of,
    drawn_of,
    samples_figure,
    shared_learning,
    shared_machines,
    shared_spent,
    shared_timeline,
)
from lowmem_seq.report.plots.outcome import confusions, outcome_figures, read_outcome
from lowmem_seq.report.plots.several import comparison_figures
from lowmem_seq.report.reading import read_run
from lowmem_seq.report.series import MOST_STRETCHES
from lowmem_seq.report.shared import Reported, SharedRun, reported
from lowmem_seq.report.table import COLUMNS, data_name, rows
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.text import harmless

if TYPE_CHECKING:
    from jinja2 import Environment

WEB = Path(__file__).resolve().parent / "web"
MOST_STRETCHES_OF_ALL = 6000
"""Of the curves of several runs together."""
LEAST_STRETCHES = 40
LONGEST_NAME = 300
"""Letters of a name that are shown where a table has no room for more; the settings have all of it."""
MOST_CONFIG_BYTES = 64_000


def page_of(runs: Sequence[RunFolder]) -> str:
    """Return the page of some folders: of the one run that they hold, or of several runs side by side.

    It is made of what there is, also while a run goes on, or where something is missing or broken.
    """
    most = max(LEAST_STRETCHES, min(MOST_STRETCHES, MOST_STRETCHES_OF_ALL // len(runs)))
    found = reported([read_run(run, most) for run in runs])
    return _page_of_one(found[0]) if len(found) == 1 else _page_of_several(found)


def _page_of_one(one: Reported) -> str:
    summary, history, run, shared = one.summary, one.lead.history, one.lead.run, one.shared
    faults = _faults(one)
    environment = _read_json(run, run.environment_file, faults)
    plan = _read_json(run, run.plan_file, faults) or history.last.get("planned") or {}
    tested = history.last.get("test", {})
    outcome = read_outcome(tested, history.last.get("session_started"))
    mistakes = _read_mistakes(run, tested.get("weights_sha256"), faults)
    drawn = {**_drawn(one), "tested": [] if outcome is None else outcome_figures(outcome)}
    happenings, left_out = _happenings(one)
    state, _, why = str(summary["state"]).partition(": ")
    return _render(
        "run.html",
        drawn,
        title=name_of(run),
        summary=summary,
        data_name=data_name(summary),
        state=state,
        faults=[why, *faults] if why else faults,
        tiles=[*tiles(summary, history), *machine_tile(summary)],
        machines=None if shared is None else _machines(shared),
        notes=[] if shared is None else notes_of(shared),
        happenings=happenings,
        happenings_left_out=left_out,
        compared=predicted_and_actual(plan, history),
        confusions=[] if outcome is None else confusions(outcome),
        mistakes=mistakes,
        command=repeating_command(run, None if history.has_another_length else environment),
        config=_read_config(run),
        environments=_environments(one, environment),
        resume_command=run.resume_command,
    )


def _drawn(one: Reported) -> dict[str, list[Figure]]:
    """Return the plots of a run, and of its machines over each other where there are several."""
    history, shared = one.lead.history, one.shared
    drawn = [] if shared is None else drawn_of(shared)
    samples = None if shared is None else samples_figure(shared)
    timeline = timeline_figure(history) if shared is None else shared_timeline(shared, drawn)
    spent = spent_figure(history) if len(drawn) < 2 else shared_spent(drawn)
    return {
        "samples": [] if samples is None else [samples],
        "learning": learning_figures(history) if len(drawn) < 2 else shared_learning(drawn, history),
        "machine": machine_figures(history) if len(drawn) < 2 else shared_machines(drawn),
        "story": [] if timeline is None else [timeline],
        "time": [] if spent is None else [spent],
    }


def _faults(one: Reported) -> list[str]:
    """Return what is wrong with the folders of a run, each with its name where there are several."""
    faults: list[str] = []
    for reading in one.readings:
        whose = f"{reading.run.path}: " if len(one.readings) > 1 else ""
        _, _, why = str(reading.summary["state"]).partition(": ")
        faults += [f"{whose}{why}"] if why else []
        history, odd = reading.history, reading.odd_count
        if odd:
            faults.append(
                f"{whose}{odd:,} of {history.event_count:,} events are not as expected; they were left out."
            )
    return faults


def _happenings(one: Reported) -> tuple[list[tuple[str, str, Happening]], int]:
    """Return what happened, in words, the newest; and how many lines were left out.

    Each is machine, time and what happened; no machine where there is one alone.
    """
    drawn = [] if one.shared is None else drawn_of(one.shared)
    told = [(machine.name, happening) for machine in drawn for happening in machine.history.happenings]
    if len(drawn) < 2:
        told = [("", happening) for happening in one.lead.history.happenings]
    told.sort(key=lambda pair: pair[1].at or 0.0)
    count = sum(reading.history.counts.total() for reading in one.readings)
    shown = [(name, clock_text(happening.at), happening) for name, happening in told[-MOST_HAPPENINGS:]]
    return shown, max(0, count - MOST_HAPPENINGS)


def _environments(one: Reported, lead: dict[str, Any] | None) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what each machine was, under its name where there are several."""
    drawn = (
        [] if one.shared is None else [machine for machine in one.shared.machines if machine.reading is not None]
    )
    if len(drawn) < 2:
        found = [("", environment_rows(lead))]
    else:
        found = [
            (machine.label, environment_rows(_read_json(run, run.environment_file, [])))
            for machine in drawn
            if machine.reading is not None and (run := machine.reading.run)
        ]
    return [(label, told) for label, told in found if told]


def _machines(shared: SharedRun) -> tuple[list[list[str]], list[Line], list[str]]:
    """Return the table of machines by its columns and lines, and the colours that machines have in the plots."""
    columns, lines = columns_of(shared)
    return columns, lines, colours_of(shared)


def _page_of_several(found: Sequence[Reported]) -> str:
    named = [(name_of(one.lead.run), one.lead.history) for one in found]
    return _render(
        "runs.html",
        {"learning": comparison_figures(named)},
        title=f"{len(found)} runs",
        columns=COLUMNS,
        rows=rows([one.summary for one in found]),
        shared=[
            (name_of(one.lead.run), _machines(one.shared), notes_of(one.shared))
            for one in found
            if one.shared is not None
        ],
    )


def _read_json(run: RunFolder, path: Path, faults: list[str]) -> dict[str, Any] | None:
    try:
        return run.read_json(path)
    except UsageError as error:
        faults.append(error.message)
        return None


def _read_mistakes(run: RunFolder, weights_sha256: object, faults: list[str]) -> list[Mistake] | None:
    try:
        run.refuse_links()
        return read_mistakes(run.path / FILE, weights_sha256)
    except (PredictionsError, UsageError, OSError) as error:
        faults.append(str(error))
        return None


def _read_config(run: RunFolder) -> str:
    try:
        return read_limited(run.config_file, MOST_CONFIG_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError) as error:
        return f"# config.yaml can't be read: {error}"


def _render(template: str, drawn: dict[str, list[Figure]], **told: Any) -> str:
    scripts = [_plotly_script(), (WEB / "report.js").read_text(encoding="utf-8")]
    return (
        _templates()
        .get_template(template)
        .render(
            **told,
            drawn=drawn,
            figures=_script_json([asdict(figure) for figures in drawn.values() for figure in figures]),
            style=(WEB / "report.css").read_text(encoding="utf-8"),
            scripts=scripts,
            script_hashes=[_policy_hash(script) for script in scripts],
            version=__version__,
            made=clock_text(time.time()),
        )
    )


def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(WEB),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["name"] = _shown_name
    return templates


def _shown_name(text: object) -> str:
    """Return a text from elsewhere without marks that a page could not show, not longer than there is room for."""
    line = harmless(str(text), one_line=True)
    return line if len(line) <= LONGEST_NAME else f"{line[:LONGEST_NAME]}… ({len(str(text)):,} letters)"


def _plotly_script() -> str:
    """Return Plotly's script, as its package ships it; nothing of it is imported, which would take a second."""
    return Path(str(distribution("plotly").locate_file("plotly/package_data/plotly.min.js"))).read_text(
        encoding="utf-8"
    )


def _script_json(value: object) -> str:
    """Return JSON that may stand in a <script>: no text in it can end it, or begin a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _policy_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
