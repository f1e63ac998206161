"""What happens to a run beside its steps, in words: for the screen of its session, and for who else watches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lowmem_seq.cli.laptop import Said, describe, describe_pause
from lowmem_seq.runs.events import Event
from lowmem_seq.units import format_bytes, format_seconds

SETTING_WORDS = {"micro_batch": "micro-batch", "workers": "workers", "recomputed_layers": "layers computed twice"}
ENDS_OF_A_PEER = ("finished", "stopped")
"""Causes for which a machine leaves that are none to worry about."""


def happening(event: Event, run_path: Path) -> Said | None:
    """Return what an event tells, or None where it is told by figures, or not at all.

    Args:
        event: one of a run.
        run_path: the run's folder.

    Raises:
        KeyError, TypeError, ValueError: the event is not as this release writes it.
    """
    kind = event["event"]
    if kind in WARNINGS:
        return Said(WARNINGS[kind](event), is_warning=True)
    if kind in NEWS:
        return Said(NEWS[kind](event))
    if kind == "paused":
        return _paused(event, run_path)
    if kind == "peer_lost":
        return _peer_lost(event)
    return describe(event)


def _setting_changed(event: Event) -> str:
    told = ", ".join(
        f"{words} {event[f'{name}_before']} -> {event[name]}"
        for name, words in SETTING_WORDS.items()
        if event[name] != event[f"{name}_before"]
    )
    return f"{told}: {event['cause']}"


def _trainer_restarted(event: Event) -> str:
    return (
        f"{event['cause']}; another one starts in {format_seconds(event['wait_seconds'])} from the newest "
        f"checkpoint (restart {event['deaths_in_a_row']} of at most {event['max_restarts']} without a save in "
        "between)"
    )


def _paused(event: Event, run_path: Path) -> Said:
    if "waits_for" in event:
        return Said(
            f"paused: {describe_pause(event['cause'], event['waits_for'], event.get('until_unix_seconds'))}"
        )
    return Said(
        f"paused: {event['what']} can't be written: {event['cause']} ({format_bytes(event['free_bytes'])} are free "
        f"on {run_path}); what was saved before stands; next try in {format_seconds(event['next_try_seconds'])}, "
        "or as soon as there is more room",
        is_warning=True,
    )


def _unpaused(event: Event) -> str:
    if "what" not in event:
        return f"going on after a pause of {format_seconds(event['seconds'])}"
    return f"{event['what']} is written after {format_seconds(event['seconds'])}; going on"


def _initial_weights(event: Event) -> str:
    head = "; the head is drawn anew, for the classes are other ones" if event["head_drawn_anew"] else ""
    return f"begins with the weights of {event['path']}{head}"


def _peer_lost(event: Event) -> Said:
    if event["cause"] in ENDS_OF_A_PEER:
        return Said(f"{event['name']} has {event['cause']}")
    told = f"{event['name']} is gone: {event['cause']}; what it had on lease goes to the others"
    return Said(told, is_warning=True)


def _reunion(event: Event) -> str:
    discarded = int(event.get("discarded", 0))
    lost = f"; the work of {discarded:,} samples done apart is discarded" if discarded else ""
    return f"the machines have found each other again{lost}"


NEWS: dict[str, Callable[[Event], str]] = {
    "validation": lambda event: (
        f"epoch {event['epoch']:.0f}: validation accuracy {event['val_accuracy']:.2%}, loss {event['val_loss']:.4f}"
    ),
    "checkpoint_recovered": lambda event: str(event["message"]),
    "setting_changed": _setting_changed,
    "initial_weights": _initial_weights,
    "pausing": lambda event: f"pausing: {event['cause']}; saving the last complete step",
    "unpaused": _unpaused,
    "tracking_started": lambda event: f"{event['tracker']} is told the figures too: {event['folder']}",
    "peer_joined": lambda event: f"{event['name']} has joined",
    "reunion": _reunion,
    "member_reunion": _reunion,
}
"""What is as it should be."""
WARNINGS: dict[str, Callable[[Event], str]] = {
    "checkpoint_passed_over": lambda event: str(event["message"]),
    "trainer_restarted": _trainer_restarted,
    "planning_cut": lambda event: (
        f"only {format_bytes(event['available_bytes'])} are left on this machine: what needs more is not measured"
    ),
    "setting_kept": lambda event: str(event["cause"]),
    "leak_noticed": lambda event: str(event["message"]),
    "tracking_failed": lambda event: f"{event['tracker']} is told nothing more: {event['cause']}",
    "refused": lambda event: (
        f"{event['name']} was not let in: its {event['field']} is another one; it was told what to do"
    ),
    "hub_not_saved": lambda event: f"the common weights could not be saved: {event['message']}",
    "hub_failed": lambda event: f"{event['cause']}, and is not started again; each machine goes on alone",
    "hub_restarted": lambda event: f"{event['cause']}; it was started again",
    "member_alone": lambda _event: "the host is gone; this machine trains on alone, and dials again and again",
    "member_refused": lambda event: f"{event['cause']}; this machine goes on alone",
    "member_begins_anew": lambda event: f"this machine begins anew at the common weights: {event['cause']}",
    "result_missing": lambda _event: (
        "the host is gone before it wrote the final weights; those of this machine are taken"
    ),
}
"""What somebody should know who asks why."""
