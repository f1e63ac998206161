"""Pauses of a run: on battery and by the hour, with trainers that live given lives."""

from __future__ import annotations

import sys
from datetime import timedelta

import pytest

from lowmem_seq.config import MachineConfig
from lowmem_seq.supervisor.child import Message
from tests.supervisor.lives import CHECKPOINT, KILLED, Life, Supervise, Supervised
from tests.supervisor.machines import NOON

if sys.platform == "win32":
    pytest.skip("the exit codes here are those of POSIX", allow_module_level=True)

ON_BATTERY = MachineConfig(keep_awake=False, pause_on_battery=True)
AT_NIGHT = MachineConfig(keep_awake=False, only_between="22:00-07:00")


def kinds(one: Supervised) -> list[str]:
    """What is in the events, but for the memory."""
    return [event["event"] for event in one.run.events if event["event"] != "memory"]


def unplugged(one: Supervised, after: float, until: float) -> Supervised:
    """Let a machine run on battery for a while."""
    one.machine.at(after, lambda: one.machine.plug(False))
    one.machine.at(until, lambda: one.machine.plug(True))
    return one


def test_on_battery_the_trainer_saves_and_ends_and_another_goes_on_when_it_is_plugged_in(
    supervise: Supervise,
) -> None:
    one = supervise(Life(4, says=(CHECKPOINT,), seconds=60), Life(0), settings=ON_BATTERY)
    assert unplugged(one, after=20, until=300).train() == 0
    assert one.children[0].words == ["stop"]
    assert one.children[1].words == []
    (paused,), (unpaused,) = one.events("paused"), one.events("unpaused")
    assert (paused["waits_for"], paused["cause"]) == (["power"], "this machine runs on battery")
    assert paused["until_unix_seconds"] is None
    assert unpaused["seconds"] == pytest.approx(
        252, abs=3
    )  # from 60, when the trainer had ended, to 10 s after 300
    assert kinds(one) == ["paused", "unpaused"]
    shown = [message["event"] for message in one.screen.shown]
    assert shown == ["checkpoint", "pausing", "paused", "unpaused"]


def test_what_is_held_while_a_run_is_paused_is_recorded(supervise: Supervise) -> None:
    one = supervise(Life(4, seconds=60), Life(0), settings=ON_BATTERY)
    unplugged(one, after=20, until=100).train()
    at = [event["event"] for event in one.run.events].index("paused")
    memory = list(one.run.events)[at - 1]
    assert memory["event"] == "memory"
    assert 0 < memory["tree_bytes"] <= memory["peak_tree_bytes"]
    assert memory["cap_bytes"] == 2 * 10**9


def test_a_plug_that_is_moved_is_no_reason_to_pause(supervise: Supervise) -> None:
    one = supervise(Life(0, seconds=60), settings=ON_BATTERY)
    assert unplugged(one, after=20, until=28).train() == 0
    assert one.children[0].words == []
    assert kinds(one) == []


def test_without_being_asked_for_nothing_pauses_on_battery(supervise: Supervise) -> None:
    one = supervise(Life(0, seconds=60))
    one.machine.plugged = False
    assert one.train() == 0
    assert one.children[0].words == kinds(one) == []


def test_a_machine_without_a_battery_says_so_and_trains(supervise: Supervise) -> None:
    one = supervise(Life(0, seconds=60), settings=ON_BATTERY)
    one.machine.plugged = None
    assert one.train() == 0
    assert kinds(one) == ["no_battery"]
    assert one.screen.shown[0]["event"] == "no_battery"


def test_a_start_on_battery_waits_at_once(supervise: Supervise) -> None:
    one = supervise(Life(0), settings=ON_BATTERY)
    one.machine.plugged = False
    one.machine.at(50, lambda: one.machine.plug(True))
    assert one.train() == 0
    assert kinds(one) == ["paused", "unpaused"]
    assert len(one.stops.waits) == pytest.approx(61, abs=3)


def test_a_trainer_that_ends_for_a_pause_that_is_over_is_followed_by_another(supervise: Supervise) -> None:
    one = supervise(Life(4, says=(CHECKPOINT,), seconds=120), Life(0), settings=ON_BATTERY)
    assert unplugged(one, after=20, until=60).train() == 0  # while it still saved
    assert kinds(one) == ["paused", "unpaused"]
    assert one.children[0].words == ["stop"]


def test_a_trainer_that_finishes_while_it_is_asked_to_pause_has_finished(supervise: Supervise) -> None:
    one = supervise(Life(0, seconds=60), settings=ON_BATTERY)
    assert unplugged(one, after=20, until=10**6).train() == 0
    assert kinds(one) == []


def test_outside_of_its_hours_a_run_waits_until_they_begin_and_pauses_when_they_end(supervise: Supervise) -> None:
    one = supervise(Life(4, says=(CHECKPOINT,), seconds=9 * 3600 + 60), Life(0), settings=AT_NIGHT)
    assert one.train() == 0
    first, second = one.events("paused")
    assert (first["waits_for"], first["cause"]) == (["hours"], "it is outside of 22:00-07:00")
    assert first["until_unix_seconds"] == (NOON + timedelta(hours=10)).timestamp()
    assert second["until_unix_seconds"] == (NOON + timedelta(hours=34)).timestamp()
    assert [event["seconds"] for event in one.events("unpaused")] == [
        pytest.approx(10 * 3600, abs=3),
        pytest.approx(15 * 3600 - 60, abs=3),
    ]
    assert one.children[0].words == ["stop"]


def test_both_conditions_must_hold(supervise: Supervise) -> None:
    settings = MachineConfig(keep_awake=False, pause_on_battery=True, only_between="22-7")
    one = supervise(Life(0), settings=settings)
    one.machine.plugged = False
    one.machine.at(3600, lambda: one.machine.plug(True))
    assert one.train() == 0
    first, second = one.events("paused")
    assert first["waits_for"] == ["power", "hours"]
    assert first["cause"] == "this machine runs on battery and it is outside of 22:00-07:00"
    assert first["until_unix_seconds"] is None
    assert second["waits_for"] == ["hours"]
    assert len(one.events("unpaused")) == 1
    assert one.machine.now() >= NOON + timedelta(hours=10)


def test_a_stop_while_a_run_is_paused_ends_it_in_order(supervise: Supervise) -> None:
    one = supervise(Life(4, says=(CHECKPOINT,), seconds=60), settings=ON_BATTERY)
    one.machine.at(20, lambda: one.machine.plug(False))
    one.machine.at(100, one.stops.hear)
    assert one.train() == 4
    (ended,) = one.events("session_ended")
    assert (ended["state"], ended["cause"]) == ("stopped", "asked for while the run was paused")
    assert kinds(one) == ["paused", "session_ended"]


def test_a_stop_while_a_trainer_ends_for_a_pause_is_a_stop(supervise: Supervise) -> None:
    one = supervise(Life(4, says=(CHECKPOINT,), seconds=60), settings=ON_BATTERY)
    one.machine.at(20, lambda: one.machine.plug(False))
    one.machine.at(50, one.stops.hear)
    assert one.train() == 4
    assert kinds(one) == []


def test_a_run_that_waits_for_its_disk_is_not_asked_to_pause(supervise: Supervise) -> None:
    paused: Message = {"event": "paused", "what": "the checkpoint of step 5", "cause": "No space left on device"}
    one = supervise(Life(0, says=(paused,), seconds=60), settings=ON_BATTERY)
    assert unplugged(one, after=20, until=10**6).train() == 0
    assert one.children[0].words == []


def test_a_disk_that_refuses_the_save_before_a_pause_ends_no_run(supervise: Supervise) -> None:
    said: Message = {"event": "error", "exit_code": 8, "message": "the disk is full.", "hint": "make room"}
    one = supervise(Life(8, says=(said,), seconds=60), Life(0), settings=ON_BATTERY)
    assert unplugged(one, after=20, until=100).train() == 0
    assert kinds(one) == ["session_ended", "paused", "unpaused"]
    (ended,) = one.events("session_ended")
    assert (ended["state"], ended["cause"]) == ("crashed", "the trainer said: the disk is full.")
    assert {"event": "pause_unsaved", "cause": ended["cause"]} in one.screen.shown


def test_deaths_before_a_pause_are_not_counted_after_it(supervise: Supervise) -> None:
    one = supervise(Life(KILLED), Life(4, seconds=60), Life(KILLED), Life(0), settings=ON_BATTERY)
    assert unplugged(one, after=20, until=100).train(max_restarts=1) == 0
    assert [event["deaths_in_a_row"] for event in one.events("trainer_restarted")] == [1, 1]


@pytest.mark.parametrize(("settings", "is_held"), [(ON_BATTERY, False), (AT_NIGHT, True)])
def test_a_machine_may_sleep_while_it_waits_for_power_and_not_while_it_waits_for_the_hour(
    supervise: Supervise, settings: MachineConfig, is_held: bool
) -> None:
    one = supervise(Life(0, seconds=100), settings=MachineConfig(**{**settings.to_settings(), "keep_awake": True}))
    one.machine.plugged = False
    held: list[bool] = []
    one.machine.at(100, lambda: held.append(one.machine.is_held))
    one.machine.at(200, lambda: one.machine.plug(True))
    one.machine.at(250, lambda: held.append(one.machine.is_held))
    one.train()
    assert held == [is_held, True]
    assert len(one.events("kept_awake")) == 1
    assert not one.machine.is_held
