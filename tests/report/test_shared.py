from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.files import append_line
from lowmem_seq.report.machines import NOT_KNOWN, lines_of, markdown_machines, terminal_tables
from lowmem_seq.report.notes import notes_of
from lowmem_seq.report.part import MOST_MACHINES, MOST_ROWS, OF_A_CLUSTER, Part
from lowmem_seq.report.reading import read_run
from lowmem_seq.report.shared import UNKNOWN_MACHINE, Reported, SharedRun, reported
from lowmem_seq.report.summary import UNKNOWN
from lowmem_seq.report.table import csv_table
from lowmem_seq.runs.folder import RunFolder
from tests.report.builders import start_session, train_to
from tests.report.machines import BEGIN, CLUSTER, Machines, a_night


def read(*runs: RunFolder) -> list[Reported]:
    return reported([read_run(run) for run in runs])


def shared_of(*runs: RunFolder) -> SharedRun:
    (one,) = read(*runs)
    assert one.shared is not None
    return one.shared


def figures(shared: SharedRun, key: str) -> list[Any]:
    """A figure of each machine, in the order of the table."""
    return [machine.figures[key] for machine in shared.machines]


def cells(shared: SharedRun) -> dict[str, tuple[list[str], str]]:
    return {line.title: (line.cells, line.together) for line in lines_of(shared)}


def test_two_folders_of_one_run_are_one_run_with_two_machines(tmp_path: Path) -> None:
    night = a_night(tmp_path)
    for order in (night.runs, night.runs[::-1]):
        shared = shared_of(*order)
        assert [machine.label for machine in shared.machines] == ["macbook", "hp"]
        assert figures(shared, "samples_accepted") == [1300, 300]
        assert figures(shared, "share") == [1300 / 1600, 300 / 1600]
        assert figures(shared, "samples_discarded") == [0, 150]
        assert figures(shared, "rounds") == [4, 3]
        assert figures(shared, "host") == [True, False]
        assert figures(shared, "peers_lost") == [1, 1]
        assert figures(shared, "peak_tree_bytes") == [4 * 10**8, 5 * 10**8]
        assert figures(shared, "clock_ahead_seconds") == [None, 0.0]
        assert notes_of(shared) == []


def test_what_crossed_the_line_is_counted_once_at_each_end(tmp_path: Path) -> None:
    shared = shared_of(*a_night(tmp_path).runs)
    assert figures(shared, "bytes_sent") == figures(shared, "bytes_received") == [4000, 4000]
    assert figures(shared, "bytes_per_sample") == [8000 / 1300, 8000 / 300]
    assert cells(shared)["bytes a sample"][1] == "5 B"  # each byte was sent once


def test_times_alone_and_stalls_are_each_machine_s_own(tmp_path: Path) -> None:
    shared = shared_of(*a_night(tmp_path).runs)
    assert figures(shared, "times_alone") == [2, 1]  # the host also until the other came, a second later
    assert figures(shared, "alone_seconds") == [pytest.approx(181.0), pytest.approx(180.0)]
    assert figures(shared, "stalled_seconds") == [2.0, 2.0]
    assert figures(shared, "longest_stall_seconds") == [1.0, 1.0]


def test_the_figures_of_the_run_are_those_of_all(tmp_path: Path) -> None:
    night = a_night(tmp_path)
    (one,) = read(*night.runs)
    summary = one.summary
    assert list(summary) == list(UNKNOWN)
    assert summary["run"] == str(night.runs[0].path)
    assert (summary["state"], summary["sessions"], summary["restarts"]) == ("finished", 2, 0)
    assert summary["images_per_second"] == pytest.approx(400 / 60)
    assert (summary["peak_tree_bytes"], summary["cap_bytes"]) == (5 * 10**8, 10**9)  # the one nearest its cap
    assert [list(machine) for machine in summary["machines"]] == [list(UNKNOWN_MACHINE)] * 2
    json.dumps(summary, allow_nan=False)


def test_a_folder_alone_tells_its_part_and_that_the_other_is_missing(tmp_path: Path) -> None:
    night = a_night(tmp_path)
    for index, (own, other) in enumerate((("macbook", "hp"), ("hp", "macbook"))):
        shared = shared_of(night.runs[index])
        assert [machine.label for machine in shared.machines] == [own, other]
        assert sorted(figures(shared, "samples_accepted")) == [300, 1300]
        for key in ("stalled_seconds", "peak_tree_bytes", "peers_lost", "state", "alone_seconds"):
            assert figures(shared, key)[1] is None
        (note,) = notes_of(shared)
        assert note.startswith(f"This is what {own} told; the folder of {other} would make it whole: ")
        assert f"lowmem-seq report {night.runs[index].path} OTHER_FOLDER" in note
        told = cells(shared)
        assert told["all stalls"][0][1] == told["peak RAM"][0][1] == NOT_KNOWN
    hosts, joiners = shared_of(night.runs[0]), shared_of(night.runs[1])
    assert figures(hosts, "bytes_sent") == [4000, 4000]  # the host counts what each sends
    assert figures(joiners, "bytes_sent") == [4000, None]
    assert figures(hosts, "rounds") == [4, 3]
    assert figures(joiners, "rounds") == [3, None]


def test_other_folders_beside_them_stay_runs_of_their_own(tmp_path: Path, run: RunFolder) -> None:
    night = a_night(tmp_path / "first")
    another = a_night(tmp_path / "second", cluster="d" * 16)
    start_session(run)
    found = read(night.runs[0], run, another.runs[1], night.runs[1], run, another.runs[0])
    assert [one.lead.run.path for one in found] == [
        *(night.runs[0].path, run.path, another.runs[0].path, run.path),
    ]
    assert [one.shared is not None for one in found] == [True, False, True, False]
    assert all(one.summary["machines"] is None for one in found if one.shared is None)


def test_folders_of_one_name_and_machines_of_one_name_are_told_apart(tmp_path: Path) -> None:
    night = a_night(tmp_path, "laptop", "laptop")
    for index, run in enumerate(night.runs):
        (tmp_path / f"copy-{index}").mkdir()
        shutil.move(run.path, tmp_path / f"copy-{index}" / "small")
    shared = shared_of(*(RunFolder(tmp_path / f"copy-{index}" / "small") for index in (0, 1)))
    assert [machine.label for machine in shared.machines] == [f"laptop ({one[:4]})" for one in night.ids]


def test_a_copy_of_a_folder_is_counted_once_and_the_newer_one_counts(tmp_path: Path) -> None:
    machines = Machines(tmp_path, "macbook", "hp")
    machines.open()
    machines.train(300, 100)
    older = RunFolder(shutil.copytree(machines.runs[1].path, tmp_path / "older"))
    machines.train(300, 100)
    for order in ((older, *machines.runs), (*machines.runs, older)):
        shared = shared_of(*order)
        assert figures(shared, "samples_accepted") == [600, 200]
        assert figures(shared, "rounds") == [2, 2]
        assert notes_of(shared) == [
            f"{older.path} is another copy of the folder of hp, and older: it was left out."
        ]


def test_a_machine_that_joined_twice_is_one_machine(tmp_path: Path) -> None:
    machines = Machines(tmp_path, "macbook", "hp")
    machines.open()
    machines.train(300, 100)
    machines.tell(1, "session_ended", state="stopped", step=machines.step)
    machines.moved[machines.ids[1]] = [0, 0]  # its counters begin anew
    machines.stalled[1] = 0.0
    machines.join(1)
    machines.train(300, 100)
    shared = shared_of(*machines.runs)
    assert figures(shared, "samples_accepted") == [600, 200]
    assert figures(shared, "sessions") == [1, 2]
    assert figures(shared, "bytes_sent")[1] == 2000
    assert figures(shared, "stalled_seconds")[1] == 1.0


def test_three_machines(tmp_path: Path) -> None:
    machines = Machines(tmp_path, "macbook", "hp", "dell")
    machines.open()
    machines.train(300, 100, 200)
    shared = shared_of(*machines.runs)
    assert figures(shared, "samples_accepted") == [300, 100, 200]
    assert figures(shared, "bytes_sent") == [2000, 1000, 1000]
    shared = shared_of(machines.runs[2], machines.runs[1])
    assert sorted(machine.label for machine in shared.machines) == ["dell", "hp", "macbook"]
    assert [machine.label for machine in shared.missing] == ["macbook"]


def test_machines_that_have_parted_are_said_to_have(tmp_path: Path) -> None:
    machines = Machines(tmp_path, "macbook", "hp")
    machines.open()
    machines.train(300, 100)
    machines.part(1, 150)
    machines.train(400, 0)
    shared = shared_of(*machines.runs)
    assert figures(shared, "samples_accepted") == [700, 100]
    (note,) = notes_of(shared)
    assert "have parted and not met again. hp's side has 550 samples, 150 of them since then" in note
    assert "with 800" in note


def test_of_two_sides_that_which_has_come_furthest_counts(tmp_path: Path) -> None:
    machines = Machines(tmp_path, "macbook", "hp")
    machines.open()
    machines.train(300, 100)
    machines.part(1, 900)
    shared = shared_of(*machines.runs)
    assert shared.lead.run.path == machines.runs[1].path
    assert dict(zip([one.label for one in shared.machines], figures(shared, "samples_accepted"), strict=True)) == {
        **{"hp": 1000, "macbook": 300},
    }
    (note,) = notes_of(shared)
    assert "macbook's side has 400 samples, 0 of them since then" in note


def test_an_old_copy_from_a_time_alone_is_no_other_side_once_they_have_met(tmp_path: Path) -> None:
    machines = Machines(tmp_path, "macbook", "hp")
    machines.open()
    machines.train(300, 100)
    machines.part(1, 150)
    old = RunFolder(shutil.copytree(machines.runs[1].path, tmp_path / "old"))
    machines.train(400, 0)
    machines.meet(1, 150)
    assert notes_of(shared_of(machines.runs[0], old)) == []


@pytest.mark.parametrize(
    ("ahead", "words"),
    [(0.5, None), (-3.0, None), (600.0, "10 min 00 s ahead of"), (-40.0, "40 s behind")],
)
def test_clocks_that_differ_are_told(tmp_path: Path, ahead: float, words: str | None) -> None:
    shared = shared_of(*a_night(tmp_path, ahead=(0.0, ahead)).runs)
    assert figures(shared, "clock_ahead_seconds")[1] == pytest.approx(ahead)
    told = notes_of(shared)
    assert told == [] if words is None else words in told[0]


def test_of_two_joiners_nobody_knows_whether_their_clocks_agree(tmp_path: Path) -> None:
    machines = Machines(tmp_path, "macbook", "hp", "dell")
    machines.open()
    machines.train(300, 100, 200)
    assert figures(shared_of(*machines.runs[1:]), "clock_ahead_seconds") == [None, None, None]


def test_two_models_at_the_end_are_told(tmp_path: Path) -> None:
    night = a_night(tmp_path)
    step = night.step
    tested = {"test_loss": 1.0, "test_accuracy": 0.5, "weights_sha256": "cd"}
    night.tell(1, "test", step=step, epoch=6.0, **tested)
    assert notes_of(shared_of(*night.runs)) == [
        "macbook and hp ended with different weights: each has a model of its own."
    ]


def test_a_machine_resumed_by_itself_is_alone(tmp_path: Path) -> None:
    night = a_night(tmp_path)
    night.tell(1, "session_opened", supervisor_pid=2)
    start_session(night.runs[1], night.step, at=night.now)
    train_to(night.runs[1], night.step + 5, at=night.now + 50)
    assert figures(shared_of(*night.runs), "times_alone")[1] == 2
    assert figures(shared_of(*night.runs), "alone_seconds")[1] == pytest.approx(230.0)


def test_a_broken_folder_is_said_to_be_and_the_other_one_is_told(tmp_path: Path) -> None:
    night = a_night(tmp_path)
    night.runs[0].config_file.write_text("name: [")
    shared = shared_of(*night.runs)
    assert shared.lead.run.path == night.runs[1].path
    assert figures(shared, "state") == ["finished", "unreadable"]
    assert figures(shared, "samples_accepted") == [300, 1300]
    assert shared.summary()["state"] == "finished"
    night.runs[0].events.path.unlink()
    assert shared_of(*night.runs[1:]).missing
    found = read(*night.runs)
    assert [one.shared is not None for one in found] == [False, True]  # nothing in it tells whose it is


def test_counts_of_a_folder_without_events_are_unknown_and_not_none(tmp_path: Path) -> None:
    night = a_night(tmp_path)
    lines = night.runs[1].events.path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not OF_A_CLUSTER & {json.loads(line)["event"]}]
    night.runs[1].events.path.write_text("".join(kept))
    reading = read_run(night.runs[1])
    reading.part.cluster, reading.part.machine = CLUSTER, night.ids[1]  # as its checkpoint tells
    shared = SharedRun([read_run(night.runs[0]), reading])
    for key in ("times_alone", "peers_lost", "stalled_seconds", "clock_ahead_seconds"):
        assert figures(shared, key)[1] is None
    assert figures(shared, "rounds")[1] == 3  # as the host counted
    assert figures(shared, "bytes_sent")[1] == 4000


@pytest.mark.parametrize("kind", sorted(OF_A_CLUSTER))
def test_odd_events_are_counted_and_do_no_harm(tmp_path: Path, kind: str) -> None:
    night = a_night(tmp_path)
    before = sorted(figures(shared_of(*night.runs), "samples_accepted"))
    odd: list[dict[str, Any]] = [
        {"machines": 5, "samples": "x", "seconds": None, "accepted": -1, "round": [], "own_samples": {}},
        {"machines": {"a": 1}, "branch": "x", "cluster": CLUSTER, "round": 1, "accepted": 1, "total": 1},
        {"cluster": 5, "machine": None, "name": ["x"], "hosts": "yes", "others": "many", "cause": {}},
        {"stalled_seconds": float(10**17), "bytes_sent": "1", "bytes_received": None},
    ]
    for details in odd:
        line = json.dumps({"time_unix_seconds": BEGIN + 1e4, "event": kind, **details})
        append_line(night.runs[1].events.path, line.encode())
    append_line(night.runs[1].events.path, json.dumps({"event": kind}).encode())
    shared = shared_of(*night.runs)
    assert sorted(figures(shared, "samples_accepted")) == before
    lines_of(shared)
    json.dumps(shared.summary(), allow_nan=False)


ODD_KEYS = st.sampled_from(["machine", "name", "cluster", "round", "machines", "accepted", "others", "cause"])
ODD_VALUES = st.none() | st.integers() | st.text() | st.dictionaries(st.text(), st.none())


@given(st.lists(st.dictionaries(ODD_KEYS, ODD_VALUES)), st.sampled_from(sorted(OF_A_CLUSTER)))
def test_whatever_is_in_an_event_a_part_takes_it(details: list[dict[str, Any]], kind: str) -> None:
    part = Part()
    for one in details:
        part.take({**one, "event": kind})
    assert part.odd_count <= len(details)


def test_what_is_kept_does_not_grow_with_the_events() -> None:
    part = Part()
    share = {"accepted": 1, "repeated": 0, "discarded": 0}
    for number in range(3000):
        told = {"cluster": CLUSTER, "branch": "b", "round": number, "accepted": number, "total": 9999}
        part.take({"event": "standing", "time_unix_seconds": BEGIN + number, **told, "machines": {"m": share}})
        machine = {"machine": f"{number}", "name": f"{number}", "cause": "silent", "round": 1, "accepted": number}
        for kind in ("peer_joined", "peer_lost", "reunion", "member_welcome"):
            part.take({"event": kind, "time_unix_seconds": BEGIN, **machine})
    assert len(part.rows) <= MOST_ROWS
    assert part.rows[0].at == BEGIN
    assert part.rows[-1].at == BEGIN + 2999
    for kept in (part.names, part.losses, part.joined, part.welcomed, part.reunions):
        assert len(kept) <= MOST_MACHINES


def test_the_tables_fit_the_terminal_and_escape_names(tmp_path: Path) -> None:
    from rich.console import Console

    names = ("\x1b[31mred|*x*", "<script>", "漢字" * 12, "dell")
    machines = Machines(tmp_path, *names)
    machines.open()
    machines.train(300, 100, 200, 50)
    shared = shared_of(*machines.runs)
    for width in (50, 80, 200):
        console = Console(width=width, record=True, force_terminal=False)
        for table in terminal_tables(shared, width):
            console.print(table)
        text = console.export_text()
        assert "\x1b" not in text
        assert text.count("samples accepted") == len(terminal_tables(shared, width))
        assert max(map(len, text.splitlines())) <= width
    markdown = markdown_machines(shared)
    assert "\x1b" not in markdown
    assert r"red\|\*x\*" in markdown
    assert r"\<script\>" in markdown


def test_csv_has_a_line_for_each_machine_below_its_run(tmp_path: Path, run: RunFolder) -> None:
    import csv
    import io

    night = a_night(tmp_path, "=1+1", "hp")
    told = list(csv.DictReader(io.StringIO(csv_table([one.summary for one in read(run, *night.runs)]))))
    assert [row["machine_name"] for row in told] == ["", "", "'=1+1", "hp"]
    assert [row["samples_accepted"] for row in told] == ["", "", "1300", "300"]
    assert {row["run"] for row in told[1:]} == {str(night.runs[0].path)}
    assert [row["machine_run"] for row in told[2:]] == [str(one.path) for one in night.runs]
    assert [row["peak_tree_bytes"] for row in told[1:]] == ["500000000", "400000000", "500000000"]
