from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lowmem_seq.cli.happenings import NEWS, WARNINGS, happening
from lowmem_seq.cli.laptop import Said
from lowmem_seq.cli.screen import SessionScreen
from lowmem_seq.runs.folder import RunFolder

RUN = Path("runs") / "small"
CHANGE = {"micro_batch_before": 32, "workers_before": 2, "recomputed_layers_before": 0, "recomputed_layers": 4}
DISK = {"what": "the checkpoint of step 40", "cause": "No space left", "free_bytes": 5, "next_try_seconds": 2.0}
TOLD: list[tuple[dict[str, Any], str, bool]] = [
    (
        {"event": "validation", "step": 20, "epoch": 2.0, "val_accuracy": 0.5, "val_loss": 1.25},
        "epoch 2: validation accuracy 50.00%, loss 1.2500",
        False,
    ),
    (
        {"event": "setting_changed", **CHANGE, "micro_batch": 16, "workers": 2, "cause": "memory is short"},
        "micro-batch 32 -> 16, layers computed twice 0 -> 4: memory is short",
        False,
    ),
    (
        {
            "event": "trainer_restarted",
            "cause": "it died",
            "wait_seconds": 2,
            "deaths_in_a_row": 1,
            "max_restarts": 3,
        },
        "it died; another one starts in 2 s from the newest checkpoint (restart 1 of at most 3 without a save in "
        "between)",
        True,
    ),
    (
        {"event": "paused", **DISK},
        f"paused: the checkpoint of step 40 can't be written: No space left (5 B are free on {RUN}); what was "
        "saved before stands; next try in 2 s, or as soon as there is more room",
        True,
    ),
    (
        {"event": "paused", "waits_for": ["power"], "cause": "on battery", "until_unix_seconds": None},
        "paused: on battery; the run goes on when it is plugged in",
        False,
    ),
    (
        {"event": "unpaused", "what": "the checkpoint", "seconds": 90.0},
        "the checkpoint is written after 1 min 30 s; going on",
        False,
    ),
    ({"event": "unpaused", "seconds": 90.0}, "going on after a pause of 1 min 30 s", False),
    ({"event": "peer_lost", "name": "b", "cause": "finished"}, "b has finished", False),
    (
        {"event": "peer_lost", "name": "b", "cause": "silent"},
        "b is gone: silent; what it had on lease goes to the others",
        True,
    ),
    (
        {"event": "reunion", "discarded": 1200},
        "the machines have found each other again; the work of 1,200 samples done apart is discarded",
        False,
    ),
    ({"event": "member_reunion"}, "the machines have found each other again", False),
    (
        {"event": "fetched", "fingerprint": "0f", "bytes": 160_000_000, "had_bytes": 24_000_000, "seconds": 32.0},
        "the host's images are here: 160 MB came in 32 s, 24.0 MB were here from before",
        False,
    ),
    (
        {"event": "pack_wanted", "machine": "0", "name": "b", "bytes": 10**6},
        "b fetches the images (1.00 MB)",
        False,
    ),
    ({"event": "pack_not_sent", "name": "b", "message": "torn"}, "b asked for the images: torn", True),
    (
        {"event": "fetch_cut_off"},
        "the host is gone, and its images are not all here; dialling again and again",
        True,
    ),
    (
        {"event": "tracking_failed", "tracker": "wandb", "cause": "no network"},
        "wandb is told nothing more: no network",
        True,
    ),
]


@pytest.mark.parametrize(("event", "text", "is_warning"), TOLD, ids=[event["event"] for event, _, _ in TOLD])
def test_what_happened_is_told_in_words(event: dict[str, Any], text: str, is_warning: bool) -> None:
    assert happening(event, RUN) == Said(text, is_warning)


@pytest.mark.parametrize("kind", ["train", "memory", "checkpoint", "progress", "something new"])
def test_figures_are_not(kind: str) -> None:
    assert happening({"event": kind}, RUN) is None


def test_nothing_is_both_news_and_a_warning() -> None:
    assert not NEWS.keys() & WARNINGS.keys()


@pytest.mark.parametrize(("event", "text", "is_warning"), TOLD, ids=[event["event"] for event, _, _ in TOLD])
def test_the_screen_of_a_session_tells_them_too(
    run: RunFolder, event: dict[str, Any], text: str, is_warning: bool
) -> None:
    console = Console(file=io.StringIO(), width=80, soft_wrap=True)
    with SessionScreen(console, run, run.config, quiet=False) as screen:
        screen.show(event)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue().rstrip("\n")
    assert said == ("warning: " if is_warning else "") + text.replace(str(RUN), str(run.path))


def test_how_far_the_images_are_fetched_is_said_now_and_then(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=200)
    with SessionScreen(console, run, run.config, quiet=False) as screen:
        for second in range(12):
            now += 1.0
            done = 5_000_000 * second
            screen.show(
                {"event": "fetching", "done": done, "total": 184_000_000, "bytes_per_second": 5e6 * (second > 0)}
            )
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "fetching the host's images: 0 B of 184 MB, 0 B/s",
        "fetching the host's images: 50.0 MB of 184 MB, 5.00 MB/s, about 27 s left",
    ]
