"""One HTML page of one run or of several, which needs nothing but itself: no network, no other file.

The texts are Jinja's templates in web/, with every name escaped; the plots are drawn by Plotly's script, which is
written into the page. The page's own policy lets a browser run these two scripts, known by their hashes, and load
nothing: what a name in a run might smuggle in could neither run nor speak to anybody.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowmem_seq import __version__
from lowmem_seq.errors import LowmemSeqError, UsageError
from lowmem_seq.files import read_limited
from lowmem_seq.report.facts import environment_rows, name_of, predicted_and_actual, repeating_command, tiles
from lowmem_seq.report.history import MOST_HAPPENINGS, History
from lowmem_seq.report.mistakes import FILE, Mistake, PredictionsError, read_mistakes
from lowmem_seq.report.plots.figure import Figure, clock_text
from lowmem_seq.report.plots.learning import learning_figures
from lowmem_seq.report.plots.machine import machine_figures, spent_figure, timeline_figure
from lowmem_seq.report.plots.outcome import confusions, outcome_figures, read_outcome
from lowmem_seq.report.plots.several import comparison_figures
from lowmem_seq.report.series import MOST_STRETCHES
from lowmem_seq.report.summary import UNKNOWN, Summary, summarise
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


def read_run(run: RunFolder, most_stretches: int = MOST_STRETCHES) -> tuple[Summary, History]:
    """Return the figures of a run and what its events tell over time, read in one pass.

    Of a run that can't be read `state` says why, and the history has what its events tell all the same.
    """
    history = History(most_stretches)
    try:
        run.refuse_links()  # a read would wait for ever at a pipe, or read a device without end
    except (LowmemSeqError, OSError) as error:
        return _unreadable(run, error), history
    try:
        return summarise(run, history.listening(run.events)), history
    except (LowmemSeqError, OSError) as error:
        history = History(most_stretches)
        with contextlib.suppress(OSError):
            for event in run.events:
                history.take(event)
        return _unreadable(run, error), history


def _unreadable(run: RunFolder, error: LowmemSeqError | OSError) -> Summary:
    fault = error.message if isinstance(error, LowmemSeqError) else f"it can't be read: {error}"
    return dict(UNKNOWN, run=str(run.path), state=f"unreadable: {fault}")


def run_page(run: RunFolder) -> str:
    """Return the page of one run, also while it runs or where something is missing or broken."""
    summary, history = read_run(run)
    faults: list[str] = []
    environment = _read_json(run, run.environment_file, faults)
    plan = _read_json(run, run.plan_file, faults) or history.last.get("planned") or {}
    tested = history.last.get("test", {})
    outcome = read_outcome(tested, history.last.get("session_started"))
    mistakes = _read_mistakes(run, tested.get("weights_sha256"), faults)
    timeline, spent = timeline_figure(history), spent_figure(history)
    drawn = {
        "learning": learning_figures(history),
        "machine": machine_figures(history),
        "story": [] if timeline is None else [timeline],
        "time": [] if spent is None else [spent],
        "tested": [] if outcome is None else outcome_figures(outcome),
    }
    state, _, why = str(summary["state"]).partition(": ")
    if history.odd_count:
        faults.append(
            f"{history.odd_count:,} of {history.event_count:,} events are not as expected; they were left out."
        )
    return _render(
        "run.html",
        drawn,
        title=name_of(run),
        summary=summary,
        data_name=data_name(summary),
        state=state,
        faults=[why, *faults] if why else faults,
        tiles=tiles(summary, history),
        happenings=[(clock_text(one.at), one) for one in history.happenings],
        happenings_left_out=max(0, history.counts.total() - MOST_HAPPENINGS),
        compared=predicted_and_actual(plan, history),
        confusions=[] if outcome is None else confusions(outcome),
        mistakes=mistakes,
        command=repeating_command(run, None if history.has_another_length else environment),
        config=_read_config(run),
        environment=environment_rows(environment),
        resume_command=run.resume_command,
    )


def runs_page(runs: Sequence[RunFolder]) -> str:
    """Return the page of several runs: the table, and their curves over each other."""
    most = max(LEAST_STRETCHES, min(MOST_STRETCHES, MOST_STRETCHES_OF_ALL // len(runs)))
    read = [read_run(run, most) for run in runs]
    named = [(name_of(run), history) for run, (_, history) in zip(runs, read, strict=True)]
    return _render(
        "runs.html",
        {"learning": comparison_figures(named)},
        title=f"{len(runs)} runs",
        columns=COLUMNS,
        rows=rows([summary for summary, _ in read]),
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
