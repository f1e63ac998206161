"""What the events of a run say to people, each in one wording, whoever shows it.

The screen of a session, `watch`, `status` and reports take their words from here. A line begins in small letters
and has no full stop, so that a time may stand before it. Each event that is recorded has a teller, or is named as
silent; a test goes through them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from lowmem_seq.runs.events import Event, time_of
from lowmem_seq.text import harmless
from lowmem_seq.units import format_bytes, format_network, format_rate, format_seconds

Kind = Literal["began", "ended", "died", "memory", "smaller", "larger", "paused", "machines", "figure", "note"]
"""What an event is about. A `figure` is worth a line where lines are read as they come; else a curve has it."""
SILENT = frozenset(
    {
        *("train", "memory", "checkpoint", "round", "member_round", "peers_present"),  # figures, told as such
        *("session_opened", "cluster_ready", "member_welcome"),  # session_started tells that all went well
        *("finished", "member_hub_stops"),  # session_ended, member_alone
        *("standing", "member_begins", "member_ends"),  # a report's table of machines
    }
)
"""Events that say nothing in words, on purpose: what else tells of them."""
LONGEST_LINE = 1000
MOST_RANKS_TOLD = 8
GOES_ON = {"power": "when it is plugged in", "hours": "in its hours"}
SETTING_WORDS = {"micro_batch": "micro-batch", "workers": "workers", "recomputed_layers": "layers computed twice"}
ENDS_OF_A_PEER = ("finished", "stopped")
"""Causes for which a machine leaves that are none to worry about."""
UNSAID = "the trainer ended, and did not say why"


class Told(NamedTuple):
    """What an event says, and how it is to be shown."""

    kind: Kind
    text: str
    """One line, which a terminal can show as it is."""
    is_warning: bool = False
    """Whether it is what somebody should know who asks why."""


def tell(event: Event) -> Told | None:
    """Return what an event says; None where it says nothing to people.

    Raises:
        ValueError: the event is not as expected.
    """
    try:
        told = TELLERS.get(event["event"], _by_its_words)(event) if event["event"] not in SILENT else None
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"an event is not as expected ({type(error).__name__}: {error})") from error
    return None if told is None else told._replace(text=_line(told.text))


def why_paused(event: Event) -> str:
    """Return why a run is paused, and what ends that, of a `paused` event."""
    if "waits_for" not in event:
        free = f" ({format_bytes(event['free_bytes'])} are free on its disk)" if "free_bytes" in event else ""
        again = f" in {format_seconds(event['next_try_seconds'])}" if "next_try_seconds" in event else ""
        return _line(
            f"{event['what']} can't be written: {event['cause']}{free}; what was saved before stands; it is tried "
            f"again{again}, and as soon as there is more room"
        )
    until = time_of(event, "until_unix_seconds")
    if until is not None:
        return _line(f"{event['cause']}; the run goes on at {format_moment(until, time_of(event))}")
    awaited = [GOES_ON[what] for what in event["waits_for"] if what in GOES_ON]
    return _line(f"{event['cause']}; the run goes on {' and '.join(awaited) or 'by itself'}")


def paused_briefly(event: Event) -> str:
    """Return the same for a place that has room for some words only."""
    if "waits_for" not in event:
        return _line(f"paused, {event['what']} can't be written: {event['cause']}")
    until = time_of(event, "until_unix_seconds")
    if until is not None:
        return f"paused until {format_moment(until, time_of(event))}"
    return "paused on battery" if "power" in event["waits_for"] else "paused"


def why_crashed(event: Event) -> str:
    """Return why a session broke off, of a `session_ended` event."""
    return _line(str(event.get("cause") or UNSAID))


def ranks_in(world: Event) -> list[str]:
    """Return the ranks of a `world_formed` event, a line each: machine, device, speed, and part of each step."""
    ranks: Sequence[dict[str, Any]] = world["ranks"]
    batch, shown = sum(int(rank["samples"]) for rank in ranks), ranks[:MOST_RANKS_TOLD]
    names = [f"{number} on {_line(str(rank['machine']))}:" for number, rank in enumerate(shown)]
    width = max(map(len, names), default=0)
    lines = [
        f"{name:{width}} {rank['device']}, {rank['precision']}, {format_rate(rank['images_per_second'])}, "
        f"{rank['samples']:,} of {batch:,} images a step"
        for name, rank in zip(names, shown, strict=True)
    ]
    more = len(ranks) - len(shown)
    return [_line(line) for line in (*lines, *([f"and {more:,} more"] if more else ()))]


def fetch_in(message: Event) -> str:
    """Return how far the host's images are fetched, of a `fetching` message."""
    done, total, rate = message["done"], message["total"], message["bytes_per_second"]
    left = f", about {format_seconds((total - done) / rate)} left" if rate else ""
    told = f"{format_bytes(done)} of {format_bytes(total)}, {format_bytes(round(rate))}/s{left}"
    return f"fetching the host's images: {told}"


def result_in(figures: dict[str, Any]) -> str:
    """Return the result of a `test` event, or of a run's summary."""
    return f"test accuracy {figures['test_accuracy']:.2%}, test loss {figures['test_loss']:.4f}"


def format_moment(unix_seconds: float, now: float | None = None) -> str:
    """Return a moment in local time: its time of day, with the day's name if that is not the day of `now`."""
    at, today = time.localtime(unix_seconds), time.localtime(time.time() if now is None else now)
    clock = time.strftime("%H:%M", at)
    return clock if at[:3] == today[:3] else f"{time.strftime('%a', at)} {clock}"


def _line(text: str) -> str:
    """Return text from elsewhere as one line without commands to a terminal, and not endless."""
    line = harmless(text, one_line=True)
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


# A session: its plan, its begin and its end.


def _planned(event: Event) -> Told:
    peak, rate = event.get("predicted_peak_bytes"), event.get("predicted_images_per_second")
    foretold = [] if peak is None else [f"{format_bytes(peak)} at its peak"]
    foretold += [] if rate is None else [format_rate(rate)]
    return Told("note", f"planned: {_setting(event)}; predicted {' and '.join(foretold) or 'nothing'}")


def _started(event: Event) -> Told:
    step = int(event["step"])
    begun = "training went on" if event.get("resumed", step > 0) else "training began"
    place, setting = f" after step {step:,}" if step else "", _setting(event)
    return Told("began", f"{begun}{place}" + (f", with {setting}" if setting else ""))


def _setting(event: Event) -> str:
    workers, recomputed = int(event.get("workers") or 0), int(event.get("recomputed_layers") or 0)
    told = [f"micro-batch {int(event['micro_batch']):,}"] if "micro_batch" in event else []
    told += [f"{workers} worker{'s' * (workers > 1)}"] if workers else []
    return ", ".join(told + ([f"{recomputed} layers computed twice"] if recomputed else []))


def _ended(event: Event) -> Told:
    state, step = event.get("state"), event.get("step")
    if state == "finished":
        return Told("ended", "the run is finished")
    if state == "stopped":
        why = f": {event['cause']}" if event.get("cause") else " on request"
        return Told("ended", f"stopped{why}" if step is None else f"stopped after step {int(step):,}")
    return Told("died", f"crashed: {why_crashed(event)}", is_warning=True)


def _restarted(event: Event) -> Told:
    return Told(
        "began",
        f"{event['cause']}; another one starts in {format_seconds(event['wait_seconds'])} from the newest "
        f"checkpoint (restart {event['deaths_in_a_row']} of at most {event['max_restarts']} without a save "
        "in between)",
        is_warning=True,
    )


def _changes(event: Event) -> str:
    return ", ".join(
        f"{name} {value[0]} -> {value[1]}" if isinstance(value, list) and len(value) == 2 else f"{name} = {value}"
        for name, value in event["changes"].items()
    )


def _initial_weights(event: Event) -> Told:
    head = "; the head is drawn anew, for the classes are other ones" if event["head_drawn_anew"] else ""
    return Told("note", f"begins with the weights of {event['path']}{head}")


def _validated(event: Event) -> Told:
    place = f"epoch {event['epoch']:.0f}: " if "epoch" in event else ""
    return Told("figure", f"{place}validation accuracy {event['val_accuracy']:.2%}, loss {event['val_loss']:.4f}")


# Memory.


def _setting_changed(event: Event) -> Told:
    before: dict[str, Any] = {name: event.get(f"{name}_before", event.get(name)) for name in SETTING_WORDS}
    changes = [
        f"{words} {int(before[name]):,} -> {int(event[name]):,}"
        for name, words in SETTING_WORDS.items()
        if before[name] != event.get(name)
    ]
    kind: Kind = "larger" if _is_larger(event, before) else "smaller"
    return Told(kind, f"computes {kind}: {', '.join(changes) or 'as before'} ({event['cause']})")


def _is_larger(event: Event, before: dict[str, Any]) -> bool:
    """Whether a change of setting needs more memory than what was before."""
    grown = {name: int(event[name]) - int(before[name]) for name in SETTING_WORDS if name in event}
    grown["recomputed_layers"] = -grown.get("recomputed_layers", 0)
    return next((one > 0 for one in grown.values() if one), False)


def _out_of_memory(event: Event) -> Told:
    held = "" if event.get("held_bytes") is None else f", at {format_bytes(event['held_bytes'])}"
    saved = "all was saved" if event.get("saved") else "nothing could be saved"
    when = "while the trainer began" if event["step"] is None else f"at step {int(event['step']):,}"
    return Told("memory", f"memory ran out {when}{held}; {saved}", is_warning=True)


# Pauses, and the machine's own life.


def _paused(event: Event) -> Told:
    return Told("paused", f"paused: {why_paused(event)}", is_warning="waits_for" not in event)


def _unpaused(event: Event) -> Told:
    took = format_seconds(event["seconds"])
    if "what" not in event:
        return Told("paused", f"going on after a pause of {took}")
    return Told("paused", f"{event['what']} is written after {took}; going on")


def _in_background(event: Event) -> Told:
    how = ["at a lower priority"] if event["lowered"] else ["the system lets it lower no priority"]
    how += ["a core is left free"] if event["leaves_a_core"] else []
    return Told("note", f"in the background: {', '.join(how)}")


def _slowed(event: Event) -> Told:
    rate, best = event["images_per_second"], event["best_images_per_second"]
    why = "on battery machines save power" if event.get("plugged_in") is False else "heat, or another program"
    return Told(
        "note",
        f"slow for {format_seconds(event['seconds'])}: {format_rate(rate)}, {rate / best:.0%} of the best, with "
        f"nothing changed here ({why}?)",
        is_warning=True,
    )


# Other machines.


def _world_formed(event: Event) -> Told:
    ranks = "; ".join(" ".join(line.split()) for line in ranks_in(event))
    return Told(
        "machines", f"{len(event['ranks']):,} ranks compute each step together by {event['backend']}: {ranks}"
    )


def _fetched(event: Event) -> str:
    came, had = format_bytes(event["bytes"]), format_bytes(event["had_bytes"])
    before = f", {had} were here from before" if event["had_bytes"] else ""
    return f"the host's images are here: {came} came in {format_seconds(event['seconds'])}{before}"


def _ranks_met(event: Event) -> Told:
    machines, rate = [_line(str(name)) for name in event["machines"]], event["network_bytes_per_second"]
    told = ", ".join(f"{machines.count(name)} on {name}" for name in dict.fromkeys(machines))
    network = "" if rate is None else f"; the network between them carries {format_network(rate)}"
    return Told("machines", f"{len(machines)} processes have met: {told}{network}")


def _peer_lost(event: Event) -> Told:
    if event["cause"] in ENDS_OF_A_PEER:
        return Told("machines", f"{event['name']} has {event['cause']}")
    lost = f"{event['name']} is gone: {event['cause']}; what it had on lease goes to the others"
    return Told("machines", lost, is_warning=True)


def _reunion(event: Event) -> Told:
    discarded = int(event.get("discarded", 0))
    lost = f"; the work of {discarded:,} samples done apart is discarded" if discarded else ""
    return Told("machines", f"the machines have found each other again{lost}")


def _by_its_words(event: Event) -> Told | None:
    """Tell an event that brings its own sentence, as one of a later release may; its figures are passed over."""
    words = event.get("message") or event.get("cause")
    return Told("note", f"{event['event'].replace('_', ' ')}: {words}") if isinstance(words, str) else None


def _note(say: Callable[[Event], object]) -> Callable[[Event], Told]:
    return lambda event: Told("note", str(say(event)))


def _warning(say: Callable[[Event], object], kind: Kind = "note") -> Callable[[Event], Told]:
    return lambda event: Told(kind, str(say(event)), is_warning=True)


TELLERS: dict[str, Callable[[Event], Told | None]] = {
    "planned": _planned,
    "planning_cut": _warning(
        lambda event: (
            f"only {format_bytes(event['available_bytes'])} are left here: what needs more is not measured"
        )
    ),
    "session_started": _started,
    "session_ended": _ended,
    "trainer_restarted": _restarted,
    "config_changed": _note(lambda event: f"settings were changed: {_changes(event)}"),
    "environment_changed": _warning(
        lambda event: f"not as at the start, so the last bits may differ: {_changes(event)}"
    ),
    "initial_weights": _initial_weights,
    "validation": _validated,
    "test": _note(result_in),
    "checkpoint_recovered": _note(lambda event: event["message"]),
    "checkpoint_passed_over": _warning(lambda event: event["message"]),
    "tracking_started": _note(lambda event: f"{event['tracker']} is told the figures too: {event['folder']}"),
    "tracking_failed": _warning(lambda event: f"{event['tracker']} is told nothing more: {event['cause']}"),
    "setting_changed": _setting_changed,
    "micro_batch_changed": _setting_changed,  # as releases before wrote it
    "evaluation_cut": _note(
        lambda event: (
            f"evaluating {event['images']:,} images at a time instead of {event['images_before']:,}: "
            f"{event['cause']}"
        )
    ),
    "setting_kept": _warning(lambda event: event["cause"]),
    "out_of_memory": _out_of_memory,
    "leak_noticed": _warning(lambda event: event["message"]),
    "paused": _paused,
    "unpaused": _unpaused,
    "kept_awake": _note(lambda event: f"kept from going to sleep by itself ({event['by']})"),
    "not_kept_awake": _note(lambda event: f"not kept awake: {event['cause']}"),
    "in_background": _in_background,
    "no_battery": _note(lambda _event: "no battery is known here, so --pause-on-battery has no effect"),
    "slept": lambda event: Told("paused", f"this machine slept for {format_seconds(event['seconds'])}; going on"),
    "slowed": _slowed,
    "recovered": _note(
        lambda event: (
            f"fast again after {format_seconds(event['seconds'])}: {format_rate(event['images_per_second'])}"
        )
    ),
    "ranks_met": _ranks_met,
    "world_formed": _world_formed,
    "cluster_open": lambda event: Told("machines", f"listening on port {event['port']}"),
    "fetched": lambda event: Told("machines", _fetched(event)),
    "fetch_cut_off": _warning(
        lambda _event: "the host is gone, and its images are not all here; dialling again and again", "machines"
    ),
    "pack_wanted": lambda event: Told(
        "machines", f"{event['name']} fetches the images ({format_bytes(event['bytes'])})"
    ),
    "pack_not_sent": _warning(
        lambda event: f"{event['name']} asked for the images: {event['message']}", "machines"
    ),
    "peer_joined": lambda event: Told("machines", f"{event['name']} has joined"),
    "peer_lost": _peer_lost,
    "reunion": _reunion,
    "member_reunion": _reunion,
    "refused": _warning(
        lambda event: (
            f"{event['name']} was not let in: its {event['field']} is another one; it was told what to do"
        ),
        "machines",
    ),
    "hub_not_saved": _warning(
        lambda event: f"the common weights could not be saved: {event['message']}", "machines"
    ),
    "average_unusable": _warning(
        lambda event: f"the final weights can't be sent to the other machines: {event['message']}", "machines"
    ),
    "hub_restarted": _warning(lambda event: f"{event['cause']}; it was started again", "machines"),
    "hub_failed": _warning(
        lambda event: f"{event['cause']}, and is not started again; each machine goes on alone", "machines"
    ),
    "member_cut_off": lambda _event: Told(
        "machines", "the line to the host was cut; this machine trains on, and dials again"
    ),
    "member_alone": _warning(
        lambda _event: "the host is gone; this machine trains on alone, and dials again and again", "machines"
    ),
    "member_refused": _warning(lambda event: f"{event['cause']}; this machine goes on alone", "machines"),
    "member_begins_anew": _warning(
        lambda event: f"this machine begins anew at the common weights: {event['cause']}", "machines"
    ),
    "result_missing": _warning(
        lambda _event: "the host is gone before it wrote the final weights; those of this machine are taken",
        "machines",
    ),
}
"""What is told, by the event's name."""
