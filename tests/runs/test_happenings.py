from __future__ import annotations

import ast
import io
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import lowmem_seq
from lowmem_seq.cli.screen import IN_ITS_PLACE, LABELS, SessionScreen
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.runs.happenings import (
    LONGEST_LINE,
    MOST_RANKS_TOLD,
    SILENT,
    TELLERS,
    Told,
    format_moment,
    paused_briefly,
    ranks_in,
    tell,
    why_crashed,
    why_paused,
)
from lowmem_seq.supervisor.cluster import UNRECORDED

PACKAGE = Path(lowmem_seq.__file__).parent
PAGE = PACKAGE.parent / "docs" / "concepts" / "checkpoints.md"
FOR_THE_SCREEN = {"fetching", "joining", "member_peers", "packed", "packing"}
"""Of what machines tell, what is turned into something else, or not written down."""
BY_EARLIER_RELEASES = {"micro_batch_changed"}
BATTERY = "this machine runs on battery"
NOON, NIGHT = datetime(2026, 11, 23, 12).timestamp(), datetime(2026, 11, 23, 22).timestamp()
CHANGE = {"micro_batch_before": 32, "workers_before": 2, "recomputed_layers_before": 0, "recomputed_layers": 4}
DISK = {"what": "the checkpoint of step 40", "cause": "No space left", "free_bytes": 5, "next_try_seconds": 2.0}
DEATH = {"cause": "it died", "wait_seconds": 2, "deaths_in_a_row": 1, "max_restarts": 3}
SLOWED = {"images_per_second": 312.4, "best_images_per_second": 540.0, "seconds": 300.0}
RANK = {"machine": "hp", "device": "cpu", "precision": "fp32", "images_per_second": 300.0, "samples": 96}
WORLD = {
    "backend": "gloo",
    "ranks": [RANK, {**RANK, "machine": "mac", "images_per_second": 0.25, "samples": 32}],
}
TOLD: list[tuple[str, dict[str, Any], Told]] = [
    (
        "planned",
        {"micro_batch": 16, "predicted_peak_bytes": 500, "predicted_images_per_second": 90.0},
        Told("note", "planned: micro-batch 16; predicted 500 B at its peak and 90 images/s"),
    ),
    (
        "planning_cut",
        {"available_bytes": 300_000_000},
        Told("note", "only 300 MB are left here: what needs more is not measured", True),
    ),
    (
        "session_started",
        {"step": 0, "micro_batch": 64, "workers": 2},
        Told("began", "training began, with micro-batch 64, 2 workers"),
    ),
    (
        "session_started",
        {"step": 1200, "micro_batch": 8, "workers": 1, "recomputed_layers": 3},
        Told("began", "training went on after step 1,200, with micro-batch 8, 1 worker, 3 layers computed twice"),
    ),
    (
        "session_started",
        {"step": 1200, "resumed": False},
        Told("began", "training began after step 1,200"),
    ),
    ("session_ended", {"state": "finished", "step": 60}, Told("ended", "the run is finished")),
    ("session_ended", {"state": "stopped", "step": 7}, Told("ended", "stopped after step 7")),
    (
        "session_ended",
        {"state": "stopped", "cause": "asked for while the run was paused"},
        Told("ended", "stopped: asked for while the run was paused"),
    ),
    (
        "session_ended",
        {"state": "crashed", "cause": "the trainer was ended by SIGKILL"},
        Told("died", "crashed: the trainer was ended by SIGKILL", True),
    ),
    (
        "session_ended",
        {"state": "crashed"},
        Told("died", "crashed: the trainer ended, and did not say why", True),
    ),
    (
        "trainer_restarted",
        DEATH,
        Told(
            "began",
            "it died; another one starts in 2 s from the newest checkpoint (restart 1 of at most 3 without a save "
            "in between)",
            True,
        ),
    ),
    (
        "config_changed",
        {"changes": {"steps": 9, "data.source": "x"}},
        Told("note", "settings were changed: steps = 9, data.source = x"),
    ),
    (
        "environment_changed",
        {"changes": {"torch": ["2.12", "2.13"]}},
        Told("note", "not as at the start, so the last bits may differ: torch 2.12 -> 2.13", True),
    ),
    (
        "initial_weights",
        {"path": "runs/a", "tensors": 5, "head_drawn_anew": True},
        Told(
            "note",
            "begins with the weights of runs/a; the head is drawn anew, for the classes are other ones",
        ),
    ),
    (
        "validation",
        {"step": 20, "epoch": 2.0, "val_accuracy": 0.5, "val_loss": 1.25},
        Told("figure", "epoch 2: validation accuracy 50.00%, loss 1.2500"),
    ),
    ("test", {"test_accuracy": 0.6, "test_loss": 1.1}, Told("note", "test accuracy 60.00%, test loss 1.1000")),
    ("checkpoint_recovered", {"message": "it was whole"}, Told("note", "it was whole")),
    ("checkpoint_passed_over", {"message": "it was not"}, Told("note", "it was not", True)),
    (
        "tracking_started",
        {"tracker": "tensorboard", "folder": "logs"},
        Told("note", "tensorboard is told the figures too: logs"),
    ),
    (
        "tracking_failed",
        {"tracker": "wandb", "cause": "no network"},
        Told("note", "wandb is told nothing more: no network", True),
    ),
    (
        "setting_changed",
        {**CHANGE, "micro_batch": 16, "workers": 2, "cause": "memory is short"},
        Told("smaller", "computes smaller: micro-batch 32 -> 16, layers computed twice 0 -> 4 (memory is short)"),
    ),
    (
        "setting_changed",
        {"recomputed_layers_before": 4, "recomputed_layers": 0, "cause": "calm"},
        Told("larger", "computes larger: layers computed twice 4 -> 0 (calm)"),
    ),
    (
        "micro_batch_changed",
        {"micro_batch_before": 8, "micro_batch": 16, "cause": "calm"},
        Told("larger", "computes larger: micro-batch 8 -> 16 (calm)"),
    ),
    (
        "evaluation_cut",
        {"step": 1, "images": 2, "images_before": 4, "cause": "somebody opened a browser"},
        Told("note", "evaluating 2 images at a time instead of 4: somebody opened a browser", False),
    ),
    ("setting_kept", {"cause": "nothing smaller is left"}, Told("note", "nothing smaller is left", True)),
    (
        "out_of_memory",
        {"step": 5, "saved": True, "held_bytes": 10**9, "cause": "x"},
        Told("memory", "memory ran out at step 5, at 1.00 GB; all was saved", True),
    ),
    (
        "out_of_memory",
        {"step": 5, "saved": False, "held_bytes": None},
        Told("memory", "memory ran out at step 5; nothing could be saved", True),
    ),
    (
        "out_of_memory",
        {"step": None, "saved": False, "held_bytes": 10**9, "cause": "x"},
        Told("memory", "memory ran out while the trainer began, at 1.00 GB; nothing could be saved", True),
    ),
    ("leak_noticed", {"message": "it grows"}, Told("note", "it grows", True)),
    (
        "paused",
        DISK,
        Told(
            "paused",
            "paused: the checkpoint of step 40 can't be written: No space left (5 B are free on its disk); what "
            "was saved before stands; it is tried again in 2 s, and as soon as there is more room",
            True,
        ),
    ),
    (
        "paused",
        {"waits_for": ["power"], "cause": BATTERY, "until_unix_seconds": None},
        Told("paused", f"paused: {BATTERY}; the run goes on when it is plugged in"),
    ),
    (
        "unpaused",
        {"what": "the checkpoint", "seconds": 90.0},
        Told("paused", "the checkpoint is written after 1 min 30 s; going on"),
    ),
    ("unpaused", {"seconds": 90.0}, Told("paused", "going on after a pause of 1 min 30 s")),
    ("kept_awake", {"by": "caffeinate"}, Told("note", "kept from going to sleep by itself (caffeinate)")),
    ("not_kept_awake", {"cause": "nobody is there"}, Told("note", "not kept awake: nobody is there")),
    (
        "in_background",
        {"lowered": True, "leaves_a_core": True},
        Told("note", "in the background: at a lower priority, a core is left free"),
    ),
    (
        "in_background",
        {"lowered": False, "leaves_a_core": False},
        Told("note", "in the background: the system lets it lower no priority"),
    ),
    ("no_battery", {}, Told("note", "no battery is known here, so --pause-on-battery has no effect")),
    ("slept", {"seconds": 7980.0}, Told("paused", "this machine slept for 2 h 13 min; going on")),
    (
        "slowed",
        {**SLOWED, "plugged_in": None},
        Told(
            "note",
            "slow for 5 min 00 s: 312 images/s, 58% of the best, with nothing changed here (heat, or another "
            "program?)",
            True,
        ),
    ),
    (
        "slowed",
        {**SLOWED, "plugged_in": False},
        Told(
            "note",
            "slow for 5 min 00 s: 312 images/s, 58% of the best, with nothing changed here (on battery machines "
            "save power?)",
            True,
        ),
    ),
    (
        "recovered",
        {"images_per_second": 1500.0, "seconds": 300.0},
        Told("note", "fast again after 5 min 00 s: 1,500 images/s"),
    ),
    (
        "ranks_met",
        {"machines": ["hp", "hp", "mac"], "network_bytes_per_second": 117.5e6},
        Told("machines", "3 processes have met: 2 on hp, 1 on mac; the network between them carries 940 Mbit/s"),
    ),
    (
        "ranks_met",
        {"machines": ["hp", "hp"], "network_bytes_per_second": None},
        Told("machines", "2 processes have met: 2 on hp"),
    ),
    (
        "world_formed",
        WORLD,
        Told(
            "machines",
            "2 ranks compute each step together by gloo: 0 on hp: cpu, fp32, 300 images/s, 96 of 128 images a "
            "step; 1 on mac: cpu, fp32, 0.25 images/s, 32 of 128 images a step",
        ),
    ),
    ("cluster_open", {"port": 29500}, Told("machines", "listening on port 29500")),
    (
        "fetched",
        {"fingerprint": "0f", "bytes": 160_000_000, "had_bytes": 24_000_000, "seconds": 32.0},
        Told("machines", "the host's images are here: 160 MB came in 32 s, 24.0 MB were here from before"),
    ),
    (
        "fetch_cut_off",
        {},
        Told("machines", "the host is gone, and its images are not all here; dialling again and again", True),
    ),
    (
        "pack_wanted",
        {"machine": "0", "name": "b", "bytes": 10**6},
        Told("machines", "b fetches the images (1.00 MB)"),
    ),
    ("pack_not_sent", {"name": "b", "message": "torn"}, Told("machines", "b asked for the images: torn", True)),
    ("peer_joined", {"machine": "1", "name": "mac"}, Told("machines", "mac has joined")),
    ("peer_lost", {"name": "b", "cause": "finished"}, Told("machines", "b has finished")),
    (
        "peer_lost",
        {"name": "b", "cause": "silent"},
        Told("machines", "b is gone: silent; what it had on lease goes to the others", True),
    ),
    (
        "reunion",
        {"discarded": 1200},
        Told(
            "machines",
            "the machines have found each other again; the work of 1,200 samples done apart is discarded",
        ),
    ),
    ("member_reunion", {}, Told("machines", "the machines have found each other again")),
    (
        "refused",
        {"name": "b", "field": "experiment", "ours": "1", "theirs": "2"},
        Told("machines", "b was not let in: its experiment is another one; it was told what to do", True),
    ),
    (
        "hub_not_saved",
        {"message": "no room"},
        Told("machines", "the common weights could not be saved: no room", True),
    ),
    (
        "average_unusable",
        {"message": "torn"},
        Told("machines", "the final weights can't be sent to the other machines: torn", True),
    ),
    ("hub_restarted", {"cause": "the hub died"}, Told("machines", "the hub died; it was started again", True)),
    (
        "hub_failed",
        {"cause": "the hub died"},
        Told("machines", "the hub died, and is not started again; each machine goes on alone", True),
    ),
    (
        "member_cut_off",
        {},
        Told("machines", "the line to the host was cut; this machine trains on, and dials again"),
    ),
    (
        "member_alone",
        {},
        Told("machines", "the host is gone; this machine trains on alone, and dials again and again", True),
    ),
    (
        "member_refused",
        {"cause": "another run"},
        Told("machines", "another run; this machine goes on alone", True),
    ),
    (
        "member_begins_anew",
        {"cause": "too old"},
        Told("machines", "this machine begins anew at the common weights: too old", True),
    ),
    (
        "result_missing",
        {},
        Told(
            "machines",
            "the host is gone before it wrote the final weights; those of this machine are taken",
            True,
        ),
    ),
    ("of_a_later_release", {"cause": "who knows"}, Told("note", "of a later release: who knows")),
]
ALL = pytest.mark.parametrize(("name", "details", "told"), TOLD, ids=[name for name, _, _ in TOLD])
HOSTILE = "\x1b]0;x\x07[bold]<b>\u202e\n\x1b[2J" + "%{x}{{ 7 }}"


@ALL
def test_an_event_has_one_wording(name: str, details: dict[str, Any], told: Told) -> None:
    assert tell({"event": name, **details}) == told


# Each event that is recorded.


def names_in_the_code() -> set[str]:
    """The names of the events that the package's code writes to a run's events.jsonl."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        tells_the_hub_s = "cluster" in path.relative_to(PACKAGE).parts or path.name == "together.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                called, first = ast.unparse(node.func), node.args[0]
                if called == "tell" or called.endswith(("events.append", ".record", "._record")):
                    names |= texts(first)
            elif isinstance(node, ast.Dict) and tells_the_hub_s:
                for key, value in zip(node.keys, node.values, strict=True):
                    names |= texts(value) if key is not None and texts(key) == {"event"} else set()
    return names - UNRECORDED - FOR_THE_SCREEN


def texts(node: ast.expr) -> set[str]:
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def test_each_recorded_event_is_told_or_silent_on_purpose() -> None:
    recorded = names_in_the_code()
    assert recorded > {"train", "world_formed", "peer_lost", "member_alone", "checkpoint_recovered", "slowed"}
    assert TELLERS.keys() | SILENT == recorded | BY_EARLIER_RELEASES
    assert not TELLERS.keys() & SILENT


def test_each_recorded_event_is_documented() -> None:
    documented = set(re.findall(r"`(\w+)`", PAGE.read_text(encoding="utf-8").partition("## events.jsonl")[2]))
    assert names_in_the_code() - documented == set()


def test_each_teller_has_its_wording_tested() -> None:
    assert TELLERS.keys() == {name for name, _, _ in TOLD} - {"of_a_later_release"}


@pytest.mark.parametrize("name", [*sorted(SILENT), "of_a_later_release"])
def test_figures_and_what_others_tell_are_silent(name: str) -> None:
    assert tell({"event": name, "step": 3, "seconds": 1.0}) is None


# Whatever stands in it.


def hostile(value: Any) -> Any:
    """The same with every text in it as somebody who means harm would write it."""
    if isinstance(value, dict):
        return {key: hostile(one) for key, one in value.items()}
    if isinstance(value, list):
        return [hostile(one) for one in value]
    return HOSTILE if isinstance(value, str) else value


@ALL
def test_hostile_fields_come_out_as_text(run: RunFolder, name: str, details: dict[str, Any], told: Told) -> None:
    event = {"event": name, **{key: value if key == "state" else hostile(value) for key, value in details.items()}}
    said = tell(event)
    assert said is not None
    assert said.text.isprintable()
    if any(isinstance(value, str) and value in told.text for key, value in details.items() if key != "state"):
        assert "[bold]<b>" in said.text
        assert "%{x}{{ 7 }}" in said.text
    if name in TELLERS.keys() - IN_ITS_PLACE | {"world_formed"}:
        assert shown(run, event).replace("\n", "").isprintable()


@pytest.mark.parametrize("name", sorted(TELLERS))
@pytest.mark.parametrize(
    "value", [None, [], {}, "\x1b[2J", float("inf"), 10**400], ids=lambda value: repr(value)[:9]
)
def test_what_makes_no_sense_is_told_all_the_same_or_refused(name: str, value: Any) -> None:
    event = next(details for one, details, _ in TOLD if one == name)
    for key in event:
        try:
            said = tell({"event": name, **event, key: value})
        except ValueError:
            continue
        assert said is not None
        assert said.text.isprintable()


def test_a_line_is_not_endless() -> None:
    said = tell({"event": "peer_joined", "name": "c" * 10_000})
    assert said is not None
    assert len(said.text) == LONGEST_LINE + 4


# On the screen of a session.


@pytest.mark.parametrize(
    ("name", "details", "told"),
    [one for one in TOLD if one[0] in TELLERS.keys() - IN_ITS_PLACE],
    ids=[one[0] for one in TOLD if one[0] in TELLERS.keys() - IN_ITS_PLACE],
)
def test_the_screen_of_a_session_says_the_same(
    run: RunFolder, name: str, details: dict[str, Any], told: Told
) -> None:
    said = shown(run, {"event": name, **details})
    label = f"{LABELS[name]:8}" if name in LABELS else ""
    assert said == ("warning: " if told.is_warning else label) + told.text


def test_only_what_is_told_can_have_its_own_place() -> None:
    assert LABELS.keys() | IN_ITS_PLACE < TELLERS.keys()


def test_pauses_that_are_only_begun_are_told_on_the_screen_alone(run: RunFolder) -> None:
    pausing = shown(run, {"event": "pausing", "cause": BATTERY})
    assert pausing == f"pausing: {BATTERY}; saving the last complete step"
    unsaved = shown(run, {"event": "pause_unsaved", "cause": "it died"})
    assert unsaved == "warning: it died; what came after the newest checkpoint is computed again"


def shown(run: RunFolder, message: Event) -> str:
    console = Console(file=io.StringIO(), width=80, soft_wrap=True)
    with SessionScreen(console, run, run.config, quiet=False) as screen:
        screen.show(message)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip("\n")


# Pauses, and the ranks of a world.


def pause(*waits_for: str, until: float | None = None) -> Event:
    return {
        **{"event": "paused", "time_unix_seconds": NOON, "waits_for": list(waits_for)},
        **{"cause": BATTERY, "until_unix_seconds": until},
    }


def test_a_pause_says_what_ends_it() -> None:
    both = why_paused(pause("power", "hours"))
    assert both == f"{BATTERY}; the run goes on when it is plugged in and in its hours"
    assert why_paused(pause("hours", until=NIGHT)) == f"{BATTERY}; the run goes on at 22:00"
    assert why_paused(pause("rain", until=2.0**40)) == f"{BATTERY}; the run goes on by itself"
    told = "the plan can't be written: full; what was saved before stands; it is tried again, and as soon as"
    assert why_paused({"what": "the plan", "cause": "full"}).startswith(told)


def test_where_there_is_little_room_a_pause_is_told_in_a_few_words() -> None:
    assert paused_briefly(pause("power", "hours")) == "paused on battery"
    assert paused_briefly(pause("hours", until=NIGHT)) == "paused until 22:00"
    assert paused_briefly(pause("rain")) == "paused"
    assert paused_briefly({"event": "paused", **DISK}) == (
        "paused, the checkpoint of step 40 can't be written: No space left"
    )


def test_a_moment_has_its_day_if_that_is_another_one() -> None:
    assert format_moment(NIGHT, NOON) == "22:00"
    assert re.fullmatch(r"\w+\.? 22:00", format_moment(NIGHT + 86400, NOON))


def test_why_a_session_broke_off_is_a_line_without_commands() -> None:
    assert why_crashed({"event": "session_ended", "cause": "a\x1b[2J\nb"}) == "a [2J b"


def test_the_ranks_of_a_world_stand_in_line() -> None:
    assert ranks_in(WORLD) == [
        "0 on hp:  cpu, fp32, 300 images/s, 96 of 128 images a step",
        "1 on mac: cpu, fp32, 0.25 images/s, 32 of 128 images a step",
    ]


def test_of_many_ranks_some_are_told() -> None:
    lines = ranks_in({"backend": "nccl", "ranks": [RANK] * 1500})
    assert len(lines) == MOST_RANKS_TOLD + 1
    assert lines[1] == "1 on hp: cpu, fp32, 300 images/s, 96 of 144,000 images a step"
    assert lines[-1] == "and 1,492 more"


def test_the_screen_shows_the_ranks_in_its_head(run: RunFolder) -> None:
    assert shown(run, {"event": "world_formed", **WORLD}).splitlines() == [
        "ranks   0 on hp:  cpu, fp32, 300 images/s, 96 of 128 images a step (by gloo)",
        "        1 on mac: cpu, fp32, 0.25 images/s, 32 of 128 images a step",
    ]
