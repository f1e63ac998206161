"""The rest of a machine's life: awake, in the background, asleep, slow."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from lowmem_seq.config import MachineConfig
from lowmem_seq.memory.cores import usable_cores
from lowmem_seq.supervisor import laptop as module
from lowmem_seq.supervisor.background import BELOW_NORMAL, NICENESS, lower_priority, lower_session
from lowmem_seq.supervisor.child import Message
from lowmem_seq.supervisor.power import SettledPower, SystemPower
from tests.supervisor.lives import Life, Supervise
from tests.supervisor.machines import FakeMachine

if sys.platform == "win32":
    pytest.skip("the exit codes here are those of POSIX", allow_module_level=True)

KEPT_AWAKE = MachineConfig()


def test_a_machine_is_kept_awake_while_it_trains_and_no_longer(supervise: Supervise) -> None:
    one = supervise(Life(0, seconds=30), settings=KEPT_AWAKE)
    held: list[bool] = []
    one.machine.at(10, lambda: held.append(one.machine.is_held))
    assert one.train() == 0
    assert held == [True]
    assert not one.machine.is_held
    assert [event["by"] for event in one.events("kept_awake")] == ["a fake"]


def test_a_machine_that_can_t_be_kept_awake_says_so_once_and_trains(supervise: Supervise) -> None:
    one = supervise(Life(-9), Life(0), settings=KEPT_AWAKE)
    one.machine.means = None
    assert one.train() == 0
    (told,) = one.events("not_kept_awake")
    assert told["cause"]


def test_a_machine_is_left_alone_where_that_is_asked_for(supervise: Supervise) -> None:
    one = supervise(Life(0, seconds=5), settings=MachineConfig(keep_awake=False))
    held: list[bool] = []
    one.machine.at(2, lambda: held.append(one.machine.is_held))
    one.train()
    assert held == [False]
    assert one.events("kept_awake") == one.events("not_kept_awake") == []


def test_sleep_is_recorded_with_its_length(supervise: Supervise) -> None:
    one = supervise(Life(0, seconds=60))
    one.machine.at(10, lambda: one.machine.sleep(7200.0))
    one.machine.at(30, lambda: one.machine.sleep(1.5))  # no sleep: two clocks that were read one after the other
    one.train()
    assert [event["seconds"] for event in one.events("slept")] == [7200.0]


def rate(images_per_second: float) -> Message:
    return {"event": "train", "images_per_second": images_per_second}


def test_a_slow_machine_is_told_of_with_where_its_power_comes_from(supervise: Supervise) -> None:
    one = supervise(Life(0))
    one.machine.plugged = False
    laptop = one.laptop()
    for images_per_second in [100.0] * 10 + [50.0] * 40:
        laptop.hear(rate(images_per_second), memory_is_short=False)
        one.machine.go_on(10.0)
    (slowed,) = one.events("slowed")
    assert (slowed["images_per_second"], slowed["best_images_per_second"]) == (50.0, 100.0)
    assert slowed["plugged_in"] is False
    for _ in range(5):
        laptop.hear(rate(95.0), memory_is_short=False)
    assert len(one.events("recovered")) == 1


@pytest.mark.parametrize("kind", ["session_started", "setting_changed"])
def test_another_setting_has_a_speed_of_its_own(supervise: Supervise, kind: str) -> None:
    one = supervise(Life(0))
    laptop = one.laptop()
    for number in range(60):
        laptop.hear({"event": kind} if number == 10 else rate(100.0 if number < 10 else 50.0), False)
        one.machine.go_on(10.0)
    assert one.events("slowed") == []


def test_a_run_in_the_background_lowers_itself_and_its_trainers(
    supervise: Supervise, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered: list[Any] = []

    def lower() -> bool:
        lowered.append("self")
        return True

    monkeypatch.setattr(module, "lower_priority", lower)
    monkeypatch.setattr(module, "lower_session", lowered.append)
    one = supervise(Life(0), settings=MachineConfig(keep_awake=False, background=True))
    one.train()
    assert lowered == ["self", one.children[0].process.pid]
    (told,) = one.events("in_background")
    assert (told["lowered"], told["leaves_a_core"]) == (True, usable_cores(None) > 1)


class FakeProcess:
    def __init__(self, niceness: int = 0, refuses: bool = False) -> None:
        self.niceness, self._refuses = niceness, refuses

    def nice(self, value: int | None = None) -> int:
        if value is not None and self._refuses:
            raise psutil.AccessDenied
        self.niceness = self.niceness if value is None else value
        return self.niceness


@pytest.mark.parametrize(
    ("platform", "before", "after"),
    [("linux", 0, NICENESS), ("darwin", 5, NICENESS), ("linux", 19, 19), ("win32", 32, BELOW_NORMAL)],
)
def test_a_priority_is_lowered_and_never_raised(platform: str, before: int, after: int) -> None:
    process = FakeProcess(before)
    assert lower_priority(process, platform)
    assert process.niceness == after


def test_a_system_that_refuses_a_lower_priority_is_no_error() -> None:
    assert not lower_priority(FakeProcess(refuses=True), "linux")


def test_the_session_of_a_trainer_is_lowered_where_the_system_has_that(tmp_path: Path) -> None:
    lower_session(7, tmp_path)
    (tmp_path / "7").mkdir()
    lower_session(7, tmp_path)
    assert (tmp_path / "7" / "autogroup").read_text() == str(NICENESS)


@pytest.mark.parametrize(
    ("battery", "plugged_in"),
    [
        (None, None),
        (SimpleNamespace(power_plugged=None), None),
        (SimpleNamespace(power_plugged=True), True),
        (SimpleNamespace(power_plugged=False), False),
    ],
)
def test_the_plug_is_what_psutil_says(battery: object, plugged_in: bool | None) -> None:
    assert SystemPower(SimpleNamespace(sensors_battery=lambda: battery)).plugged_in() is plugged_in


def test_a_system_that_does_not_tell_has_no_battery() -> None:
    def fails() -> None:
        raise OSError

    assert SystemPower(SimpleNamespace()).plugged_in() is None
    assert SystemPower(SimpleNamespace(sensors_battery=fails)).plugged_in() is None


def test_this_system_s_own_answers_can_be_had() -> None:
    assert SystemPower().plugged_in() in (None, True, False)


def test_a_battery_that_stops_telling_stays_as_it_was() -> None:
    machine = FakeMachine()
    power = SettledPower(machine, machine.clock)
    machine.plugged = None
    machine.go_on(60.0)
    assert power.is_known
    assert not power.on_battery
