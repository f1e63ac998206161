from __future__ import annotations

from typing import Any

import pytest

from lowmem_seq.report.happenings import LONGEST_SENTENCE, Happening, tell

NO_ROOM = {"what": "the checkpoint of step 40", "cause": "No space left on device"}


@pytest.mark.parametrize(
    ("event", "kind", "text"),
    [
        (
            {"event": "session_started", "step": 0, "micro_batch": 64, "workers": 2},
            "began",
            "Training began, with micro-batch 64, 2 workers.",
        ),
        (
            {"event": "session_started", "step": 1200, "micro_batch": 8, "workers": 1, "recomputed_layers": 3},
            "began",
            "Training went on after step 1,200, with micro-batch 8, 1 worker, 3 layers computed twice.",
        ),
        ({"event": "session_ended", "state": "finished"}, "ended", "The run was finished."),
        ({"event": "session_ended", "state": "stopped", "step": 7}, "ended", "It was stopped after step 7."),
        (
            {"event": "session_ended", "state": "crashed", "cause": "the trainer was ended by SIGKILL"},
            "died",
            "The trainer ended: the trainer was ended by SIGKILL",
        ),
        (
            {"event": "trainer_restarted", "cause": "killed", "deaths_in_a_row": 2, "max_restarts": 10},
            "began",
            "The trainer was started again (2 in a row of 10 at the most): killed",
        ),
        (
            {"event": "setting_changed", "recomputed_layers_before": 0, "recomputed_layers": 4, "cause": "short"},
            "smaller",
            "It computes smaller: recomputed layers 0 → 4 (short)",
        ),
        (
            {"event": "setting_changed", "workers_before": 1, "workers": 2, "micro_batch": 8, "cause": "calm"},
            "larger",
            "It computes larger: workers 1 → 2 (calm)",
        ),
        (
            {"event": "out_of_memory", "step": 5, "saved": True, "held_bytes": 10**9, "cause": "x"},
            "memory",
            "Memory ran out at step 5, at 1.00 GB; all was saved.",
        ),
        ({"event": "paused", **NO_ROOM}, "paused", "Paused: the checkpoint of step 40: No space left on device"),
        ({"event": "unpaused", "seconds": 90.0}, "paused", "It went on after a pause of 1 min 30 s."),
        ({"event": "slept", "seconds": 7200.0}, "paused", "The machine slept for 2 h 00 min."),
        (
            {"event": "slowed", "images_per_second": 500.0, "best_images_per_second": 1200.0, "plugged_in": None},
            "note",
            "It slowed down to 500 images/s, from 1,200.",
        ),
        (
            {"event": "recovered", "images_per_second": 1100.0, "best_images_per_second": 1200.0},
            "note",
            "It is as fast as before again: 1,100 images/s.",
        ),
        ({"event": "config_changed", "changes": {"steps": 9}}, "note", "Settings were changed: steps = 9."),
        (
            {"event": "environment_changed", "changes": {"torch": ["2.12", "2.13"]}},
            "note",
            "Another machine or other versions: torch 2.12 → 2.13.",
        ),
        ({"event": "peer_joined", "machine": "1", "name": "mac"}, "machines", "The machine mac joined."),
        ({"event": "peer_lost", "name": "mac", "cause": "silent"}, "machines", "The machine mac left: silent"),
        ({"event": "leak_noticed", "message": "it grows"}, "note", "Leak noticed: it grows"),
        ({"event": "of_a_later_release", "cause": "who knows"}, "note", "Of a later release: who knows"),
    ],
    ids=lambda value: value["event"] if isinstance(value, dict) else "",
)
def test_an_event_is_told_in_a_sentence(event: dict[str, Any], kind: str, text: str) -> None:
    assert tell(event, 5.0) == Happening(5.0, kind, text)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["train", "memory", "checkpoint", "validation", "round", "of_a_later_release"])
def test_figures_are_no_happenings(kind: str) -> None:
    assert tell({"event": kind, "step": 3, "seconds": 1.0}, None) is None


def test_a_sentence_is_one_line_without_commands_and_not_endless() -> None:
    told = tell({"event": "peer_joined", "name": "a\x1b[2J\nb" + "c" * 10_000}, None)
    assert told is not None
    assert told.text.isprintable()
    assert len(told.text) <= LONGEST_SENTENCE + 4
