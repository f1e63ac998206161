"""What a run's events say in a sentence each: begun, gone on, died, smaller, larger, paused, joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from lowmem_seq.runs.events import Event
from lowmem_seq.text import harmless
from lowmem_seq.units import format_bytes, format_seconds

Kind = Literal["began", "ended", "died", "memory", "smaller", "larger", "paused", "machines", "note"]
LONGEST_SENTENCE = 400


class Happening(NamedTuple):
    """Something to tell of a run."""

    at: float | None
    """In seconds since 1970."""
    kind: Kind
    text: str


def tell(event: Event, at: float | None) -> Happening | None:
    """Return what an event says in a sentence; None where it is a figure, or has nothing to say to people.

    Raises:
        KeyError, TypeError, ValueError: the event is not as expected.
    """
    teller = _TELLERS.get(event["event"])
    kind, text = teller(event) if teller is not None else ("note", _by_its_words(event))
    line = harmless(text, one_line=True)
    line = line if len(line) <= LONGEST_SENTENCE else f"{line[:LONGEST_SENTENCE]} ..."
    return Happening(at, kind, line) if line else None


Told = tuple[Kind, str]


def _started(event: Event) -> Told:
    step, setting = int(event["step"]), _setting(event)
    begun = "Training began" if not step else f"Training went on after step {step:,}"
    return "began", f"{begun}, with {setting}." if setting else f"{begun}."


def _setting(event: Event) -> str:
    told = []
    if "micro_batch" in event:
        told.append(f"micro-batch {int(event['micro_batch']):,}")
    if event.get("workers"):
        told.append(f"{int(event['workers'])} worker{'s' * (int(event['workers']) > 1)}")
    if event.get("recomputed_layers"):
        told.append(f"{int(event['recomputed_layers'])} layers computed twice")
    return ", ".join(told)


def _ended(event: Event) -> Told:
    state, step = event.get("state"), event.get("step")
    if state == "finished":
        return "ended", "The run was finished."
    if state == "stopped":
        return (
            "ended",
            "It was stopped on request." if step is None else f"It was stopped after step {int(step):,}.",
        )
    return "died", f"The trainer ended: {_cause(event, 'it did not say why')}"


def _restarted(event: Event) -> Told:
    death, most = event.get("deaths_in_a_row"), event.get("max_restarts")
    count = "" if death is None or most is None else f" ({death} in a row of {most} at the most)"
    return "began", f"The trainer was started again{count}: {_cause(event, 'it did not say why')}"


def _changed_setting(event: Event) -> Told:
    names = ("micro_batch", "workers", "recomputed_layers")
    changes = [
        f"{name.replace('_', ' ')} {int(event[f'{name}_before']):,} → {int(event[name]):,}"
        for name in names
        if f"{name}_before" in event and event[f"{name}_before"] != event[name]
    ]
    what: Kind = "larger" if _is_larger(event) else "smaller"
    return what, f"It computes {what}: {', '.join(changes) or 'as before'} ({_cause(event, 'no cause was told')})"


def _is_larger(event: Event) -> bool:
    """Whether a `setting_changed` needs more memory than what was before."""

    def change(name: str) -> int:
        now = int(event.get(name, 0))
        return now - int(event.get(f"{name}_before", now))

    grown = (change("micro_batch"), change("workers"), -change("recomputed_layers"))
    return next((one > 0 for one in grown if one), False)


def _out_of_memory(event: Event) -> Told:
    held = event.get("held_bytes")
    told = f"Memory ran out at step {int(event['step']):,}" + ("" if held is None else f", at {format_bytes(held)}")
    return "memory", f"{told}; {'all was saved' if event.get('saved') else 'nothing could be saved'}."


def _paused(event: Event) -> Told:
    words = [str(event[key]) for key in ("what", "cause") if event.get(key)]
    return "paused", f"Paused: {': '.join(words) or 'it did not say why'}"


def _unpaused(event: Event) -> Told:
    return "paused", f"It went on after a pause of {format_seconds(float(event['seconds']))}."


def _slept(event: Event) -> Told:
    return "paused", f"The machine slept for {format_seconds(float(event['seconds']))}."


def _slowed(event: Event) -> Told:
    now, best = float(event["images_per_second"]), float(event["best_images_per_second"])
    return "note", f"It slowed down to {now:,.0f} images/s, from {best:,.0f}."


def _recovered(event: Event) -> Told:
    return "note", f"It is as fast as before again: {float(event['images_per_second']):,.0f} images/s."


def _changes(event: Event) -> str:
    return ", ".join(
        f"{name} {value[0]} → {value[1]}" if isinstance(value, list) and len(value) == 2 else f"{name} = {value}"
        for name, value in event["changes"].items()
    )


def _planned(event: Event) -> Told:
    peak, rate = event.get("predicted_peak_bytes"), event.get("predicted_images_per_second")
    foretold = [] if peak is None else [f"{format_bytes(peak)} at its peak"]
    foretold += [] if rate is None else [f"{float(rate):,.0f} images/s"]
    return "note", f"Planned: {_setting(event)}; predicted {' and '.join(foretold) or 'nothing'}."


def _tested(event: Event) -> Told:
    return "note", f"Tested: accuracy {float(event['test_accuracy']):.2%}, loss {float(event['test_loss']):.4f}."


def _joined(event: Event) -> Told:
    return "machines", f"The machine {event['name']} joined."


def _lost(event: Event) -> Told:
    return "machines", f"The machine {event['name']} left: {_cause(event, 'it did not say why')}"


def _reunited(event: Event) -> Told:
    return (
        "machines",
        f"A machine came back after a split; {int(event['discarded']):,} of its samples were discarded.",
    )


def _refused(event: Event) -> Told:
    return "machines", f"The machine {event['name']} was refused: {event['field']} is {event['theirs']} there."


def _cause(event: Event, unknown: str) -> str:
    return str(event.get("cause") or unknown)


def _by_its_words(event: Event) -> str:
    """Return the sentence of an event that brings its own, as later releases may; their figures are passed over."""
    words = event.get("message") or event.get("cause")
    return f"{event['event'].replace('_', ' ').capitalize()}: {words}" if isinstance(words, str) else ""


_TELLERS: dict[str, Callable[[Event], Told]] = {
    "session_started": _started,
    "session_ended": _ended,
    "trainer_restarted": _restarted,
    "setting_changed": _changed_setting,
    "micro_batch_changed": _changed_setting,
    "out_of_memory": _out_of_memory,
    "paused": _paused,
    "unpaused": _unpaused,
    "slept": _slept,
    "slowed": _slowed,
    "recovered": _recovered,
    "planned": _planned,
    "test": _tested,
    "config_changed": lambda event: ("note", f"Settings were changed: {_changes(event)}."),
    "environment_changed": lambda event: ("note", f"Another machine or other versions: {_changes(event)}."),
    "peer_joined": _joined,
    "peer_lost": _lost,
    "reunion": _reunited,
    "refused": _refused,
    "member_alone": lambda _: ("machines", "The host was silent; this machine went on alone."),
    "member_cut_off": lambda _: ("machines", "The line to the host was cut."),
}
