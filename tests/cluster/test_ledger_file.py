from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.split import absorb, fork, go_alone
from tests.cluster.clocks import Clock

FIXTURE: dict[str, Any] = {
    "format_version": 1,
    "total": 1000,
    "epoch_size": 300,
    "accepted": [[0, 40], [60, 80]],
    "given_before": [[40, 60]],
    "lost": {"hp": [[40, 60]]},
    "leases": [{"id": 3, "machine": "mac", "start": 80, "end": 120, "reached": 90}],
    "next_lease": 4,
    "counts": {"hp": [40, 0, 0], "mac": [20, 5, 7]},
    "branches": [
        {"name": "0123456789abcdef", "generation": 0, "begun": {}},
        {"name": "00000000000000ff", "generation": 2, "begun": {"hp": [40, 0, 0]}},
    ],
    "given_up": [
        {"name": "00000000000000aa", "begun": {"hp": [40, 0, 0]}, "reached": {"hp": [50, 0, 3]}},
    ],
    "alone": {"machine": "mac", "machines": ["hp", "mac"]},
}


def test_a_file_of_version_1_is_read_as_what_it_tells() -> None:
    ledger = Ledger.from_json(FIXTURE, Clock(7.0), 10.0)
    assert (ledger.total, ledger.epoch_size, ledger.accepted) == (1000, 300, 60)
    assert list(ledger.positions.free) == [(40, 60), (120, 1000)]
    (lease,) = ledger.leases
    assert (lease.id, lease.machine, lease.start, lease.reached, lease.end) == (3, "mac", 80, 90, 120)
    assert (lease.since, lease.until) == (7.0, 17.0)
    assert ledger.branch == ("00000000000000ff", 2)
    standing = ledger.standing().by_machine
    assert (standing["hp"].accepted, standing["hp"].discarded) == (40, 13)
    assert (standing["mac"].in_flight, standing["mac"].repeated, standing["mac"].discarded) == (40, 5, 7)
    assert ledger.takes("hp", [(40, 60)])


def test_what_was_read_is_written_the_same() -> None:
    assert json.dumps(Ledger.from_json(FIXTURE).to_json()) == json.dumps(FIXTURE)


def test_a_ledger_with_a_past_comes_back_equal() -> None:
    clock = Clock()
    hub = Ledger(5000, 700, clock, 10.0)
    for machine in "abc":
        hub.lease(machine, 32, 10.0, 30.0)
    hub.accept("a", [(0, 100)])
    alone = go_alone(hub, "b", ["a", "b", "c"])
    alone.lease("b", 32, 10.0, 60.0)
    alone.accept("b", [(alone.leases[0].start, alone.leases[0].end)])
    hub.lose("b")
    hub.lease("c", 32, 10.0, 90.0)
    absorb(alone, fork(hub))
    for ledger in (hub, alone):
        again = Ledger.from_json(json.loads(json.dumps(ledger.to_json())), clock, 10.0)
        assert again == ledger
        assert again.standing() == ledger.standing()
        assert again.faults() == []
    assert alone != hub


def test_machines_may_go_on_with_a_ledger_that_was_read() -> None:
    clock = Clock()
    ledger = Ledger.from_json(FIXTURE, clock, 10.0)
    clock.go_on(9.0)
    assert ledger.heartbeat("mac", {3: 120}) == []
    assert ledger.accept("mac", [(80, 120)])
    clock.go_on(9.0)
    assert ledger.expire() == []


def changed(path: str, value: Any) -> dict[str, Any]:
    whole: Any = copy.deepcopy(FIXTURE)
    *way, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    part = whole
    for step in way:
        part = part[step]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    assert isinstance(whole, dict)
    return whole


HP = [40, 0, 0]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format_version", 2),
        ("format_version", "1"),
        ("format_version", ...),
        ("format_version", True),
        ("total", 100),  # a lease lies outside
        ("total", 0),
        ("total", 10**15 + 1),
        ("total", 2**200),
        ("total", 1000.0),
        ("total", True),
        ("total", "1000"),
        ("epoch_size", 0),
        ("epoch_size", -5),
        ("accepted", ...),
        ("accepted", None),
        ("accepted", [[0, 40], [60, 81]]),  # on lease, too
        ("accepted", [[0, 40], [60, 79]]),  # counted otherwise
        ("accepted", [[60, 80], [0, 40]]),
        ("accepted", [[0, 20], [20, 40], [60, 80]]),
        ("accepted", [[0, 40], [30, 80]]),
        ("accepted", [[40, 0], [60, 80]]),
        ("accepted", [[0, 40], [50, 50], [60, 80]]),
        ("accepted", [[-20, 20], [60, 80]]),
        ("accepted", [[0, 40], [60, 80, 90]]),
        ("given_before", [[30, 60]]),
        ("given_before", []),
        ("lost", {"hp": [[40, 61]]}),
        ("lost", {"hp": [[40, 60]], "mac": [[50, 60]]}),
        ("lost", {"h p": [[40, 60]]}),
        ("leases", [FIXTURE["leases"][0], {**FIXTURE["leases"][0], "start": 500, "end": 600, "reached": 500}]),
        ("leases/0/start", 79),
        ("leases/0/start", 120),
        ("leases/0/end", 1001),
        ("leases/0/reached", 79),
        ("leases/0/reached", 121),
        ("leases/0/id", 4),
        ("leases/0/machine", "stranger"),
        ("leases/0/machine", "a\x1b[2J"),
        ("leases/0/note", "?"),
        ("leases/0/reached", ...),
        ("next_lease", -1),
        ("next_lease", 10**19),
        ("counts/hp", [41, 0, 0]),
        ("counts/hp", [40, 0]),
        ("counts/hp", [40, 0, -1]),
        ("counts/hp", [40, 0, 0.5]),
        ("counts", {"hp": [20, 0, 0], "mac": [40, 5, 7]}),  # fewer than when the branch began
        ("counts", {f"m{number}": [0, 0, 0] for number in range(257)}),
        ("branches", []),
        ("branches", [FIXTURE["branches"][0]] * 2),
        ("branches/0/generation", 1),
        ("branches/0/begun", {"hp": HP}),
        ("branches/1/generation", 0),
        ("branches/1/name", "FFFFFFFFFFFFFFFF"),
        ("branches/1/name", "ff\n"),
        ("given_up/0/begun", {"hp": [51, 0, 0]}),
        ("given_up", [FIXTURE["given_up"][0]] * 2),
        ("alone", {"machine": "stranger", "machines": ["hp", "mac"]}),
        ("alone", {"machine": "mac", "machines": ["mac", "hp"]}),
        ("alone", {"machine": "mac", "machines": ["mac", "mac"]}),
        ("alone", {"machine": "mac", "machines": []}),
        ("alone", ...),
        ("something_else", 1),
    ],
)
def test_a_file_that_is_damaged_or_absurd_is_no_ledger(path: str, value: Any) -> None:
    with pytest.raises(ValueError, match="ledger"):
        Ledger.from_json(changed(path, value))


@pytest.mark.parametrize("value", [None, 3, "ledger", [], {}, [FIXTURE]])
def test_what_is_something_else_is_no_ledger(value: Any) -> None:
    with pytest.raises(ValueError, match="ledger"):
        Ledger.from_json(value)


def test_another_format_version_is_named() -> None:
    with pytest.raises(ValueError, match="has format version 2; this release reads 1"):
        Ledger.from_json(changed("format_version", 2))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_any_part_replaced_gives_a_sound_ledger_or_a_value_error(data: st.DataObject) -> None:
    whole: Any = copy.deepcopy(FIXTURE)
    part = whole
    while True:
        key = data.draw(st.sampled_from(list(part) if isinstance(part, dict) else range(len(part))))
        if not isinstance(part[key], dict | list) or not part[key] or data.draw(st.booleans()):
            break
        part = part[key]
    part[key] = data.draw(json_values | st.integers(0, 130))
    try:
        ledger = Ledger.from_json(whole)
    except ValueError:
        return
    assert ledger.faults() == []
    assert Ledger.from_json(ledger.to_json()) == ledger
