"""Sleep, battery and heat: by a fake, and by each system's recorded answers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from lowmem_seq.doctor import power
from lowmem_seq.doctor.power import Battery, Heat, Sleep, ask, check_battery, check_heat, check_sleep, read_battery
from lowmem_seq.doctor.power_linux import LinuxPower
from lowmem_seq.doctor.power_macos import MacPower
from lowmem_seq.doctor.power_windows import ProcessorPower, WindowsPower
from tests.doctor.builders import the_only, verdicts


class FakePower:
    stay_awake = "stay-awake COMMAND"
    full_speed = "cool down"

    def __init__(self, sleep: Sleep | None = None, heat: Heat | None = None) -> None:
        self._sleep, self._heat = sleep or Sleep(), heat or Heat()

    def sleep(self) -> Sleep:
        return self._sleep

    def heat(self) -> Heat:
        return self._heat


class FakeWakefulness:
    def __init__(self, by: str | None = None) -> None:
        self._by, self.is_held = by, False

    def hold(self) -> str | None:
        self.is_held = self._by is not None
        return self._by

    def let_go(self) -> None:
        self.is_held = False


class Answers:
    """Programs of a system, by the words that they are asked with."""

    def __init__(self, **told: str) -> None:
        self._told = told

    def __call__(self, words: Sequence[str]) -> str:
        line = " ".join(words)
        return next((answer for key, answer in self._told.items() if key.replace("_", "-") in line), "")


@pytest.mark.parametrize(
    ("sleep", "verdict", "words"),
    [
        (Sleep(900, 300), "note", "after 15 min 00 s plugged in and after 5 min 00 s on battery"),
        (Sleep(0, 300), "note", "when nobody types, after 5 min 00 s on battery; a run can't keep it awake ("),
        (Sleep(0, 0), "pass", "stays awake"),
        (Sleep(0, None), "pass", "stays awake"),
        (Sleep(), "pass", "does not say"),
    ],
)
def test_a_machine_that_falls_asleep_is_told_with_what_keeps_it_awake(
    sleep: Sleep, verdict: str, words: str
) -> None:
    finding = the_only(check_sleep(FakePower(sleep), FakeWakefulness()))
    assert finding.verdict == verdict
    assert words in finding.told
    assert finding.fix == ("stay-awake COMMAND" if verdict == "note" else "")


def test_a_machine_that_a_run_keeps_awake_has_nothing_to_mend() -> None:
    wakefulness = FakeWakefulness("caffeinate")
    finding = the_only(check_sleep(FakePower(Sleep(900, 300)), wakefulness))
    assert finding.verdict == "pass"
    assert "on battery; a run that trains keeps it awake (caffeinate)" in finding.told
    assert not wakefulness.is_held


def test_what_closing_the_lid_does_is_told() -> None:
    assert verdicts(check_sleep(FakePower(Sleep(0, 0, True)), FakeWakefulness())) == [
        ("sleep", "pass"),
        ("lid", "pass"),
    ]


@pytest.mark.parametrize(
    ("battery", "verdict", "words"),
    [
        (None, "pass", "none"),
        (Battery(80.0, True), "pass", "plugged in, 80%"),
        (Battery(80.0, None), "pass", "80%"),
        (Battery(43.2, False), "note", "on battery, 43% left"),
    ],
)
def test_a_machine_on_its_battery_is_told(battery: Battery | None, verdict: str, words: str) -> None:
    finding = the_only(check_battery(battery))
    assert finding.verdict == verdict
    assert words in finding.told


def test_a_system_whose_battery_psutil_can_t_read_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(percent=51, power_plugged=False)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: state, raising=False)
    assert read_battery() == Battery(51.0, False)
    monkeypatch.delattr(psutil, "sensors_battery")
    assert read_battery() is None


@pytest.mark.parametrize(
    ("before", "now", "verdict", "words"),
    [
        (Heat(), Heat(), "pass", "does not say"),
        (Heat(12, 1.0), Heat(12, 1.0), "pass", "not slowed down now; 12 times since the start"),
        (Heat(12, None), Heat(15, None), "note", "slowed itself down 3 times within these few seconds"),
        (Heat(None, 0.5), Heat(None, 0.5), "note", "50% of its full speed"),
    ],
)
def test_a_processor_that_is_held_back_is_told(before: Heat, now: Heat, verdict: str, words: str) -> None:
    finding = the_only(check_heat(FakePower(heat=now), before))
    assert finding.verdict == verdict
    assert words in finding.told


def test_a_program_that_is_missing_or_fails_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(["no-such-program-here"]) == ""
    monkeypatch.setattr(power, "SECONDS_TO_ANSWER", 0.2)
    assert ask(["python", "-c", "import time; time.sleep(9)"]) == ""
    assert ask(["python", "-c", "print('x'); raise SystemExit(1)"]) == ""


GNOME = {
    "ac_type": "'suspend'\n",
    "ac_timeout": "1200\n",
    "battery_type": "'nothing'\n",
    "battery_timeout": "900\n",
}
LOGIND = "# /etc/systemd/logind.conf\n[Login]\n#HandleLidSwitch=suspend\n"


def linux(tmp_path: Path, desktop: str = "ubuntu:GNOME", **told: str) -> LinuxPower:
    return LinuxPower(Answers(**told), tmp_path / "sys", desktop)


def test_gnome_says_when_linux_sleeps(tmp_path: Path) -> None:
    assert linux(tmp_path, **GNOME).sleep() == Sleep(1200, 0, None)
    assert linux(tmp_path).sleep() == Sleep(None, None, None)


def test_systemd_says_when_linux_sleeps_and_the_sooner_counts(tmp_path: Path) -> None:
    own = "# /etc/systemd/logind.conf.d/own.conf\nIdleAction=suspend\nIdleActionSec=10min\n"
    idle = f"{LOGIND}IdleAction=ignore\n{own}"
    assert linux(tmp_path, cat_config=LOGIND).sleep() == Sleep(0, 0, None)
    assert linux(tmp_path, cat_config=idle, **GNOME).sleep() == Sleep(600, 600, None)
    assert linux(tmp_path, cat_config=LOGIND + "IdleAction=suspend\n").sleep() == Sleep(1800, 1800, None)


def test_when_other_desktops_sleep_is_not_known(tmp_path: Path) -> None:
    assert linux(tmp_path, "KDE", cat_config=LOGIND, **GNOME).sleep() == Sleep(None, None, None)
    assert linux(tmp_path, "KDE", cat_config=LOGIND + "IdleAction=suspend\n").sleep() == Sleep(1800, 1800, None)
    assert linux(tmp_path, "", **GNOME).sleep() == Sleep(1200, 0, None)


def test_a_lid_is_what_logind_makes_of_it_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "sys/bus/acpi/devices/PNP0C0D:00").mkdir(parents=True)
    assert linux(tmp_path, cat_config=LOGIND).sleep().lid_sleeps is True
    assert linux(tmp_path, cat_config=LOGIND + "HandleLidSwitch=ignore\n").sleep().lid_sleeps is False
    plugged_in = LOGIND + "HandleLidSwitchExternalPower=ignore\n"
    assert linux(tmp_path, cat_config=plugged_in).sleep().lid_sleeps is False


def test_linux_whose_sleep_is_masked_stays_awake(tmp_path: Path) -> None:
    assert linux(tmp_path, LoadState="masked\n", **GNOME).sleep() == Sleep(0, 0, None)


def test_the_kernel_tells_of_heat(tmp_path: Path) -> None:
    assert linux(tmp_path).heat() == Heat(None, None)
    for number, (count, allowed) in enumerate([(3, 2_000_000), (3, 4_000_000)]):
        processor = tmp_path / f"sys/devices/system/cpu/cpu{number}"
        (processor / "thermal_throttle").mkdir(parents=True)
        (processor / "cpufreq").mkdir()
        (processor / "thermal_throttle/package_throttle_count").write_text(f"{count}\n")
        (processor / "cpufreq/scaling_max_freq").write_text(f"{allowed}\n")
        (processor / "cpufreq/cpuinfo_max_freq").write_text("4000000\n")
    assert linux(tmp_path).heat() == Heat(3, 0.5)


CUSTOM = """Battery Power:
 lowpowermode         0
 displaysleep         2
 sleep                1
AC Power:
 lowpowermode         0
 disksleep            10
 sleep                0 (sleep prevented by powerd)
"""


def test_pmset_says_when_a_mac_sleeps() -> None:
    assert MacPower(Answers(custom=CUSTOM)).sleep() == Sleep(0, 60, True)
    assert MacPower(Answers(custom=CUSTOM[CUSTOM.index("AC") :])).sleep() == Sleep(0, None, None)
    assert MacPower(Answers()).sleep() == Sleep(None, None, None)


@pytest.mark.parametrize(
    ("told", "heat"),
    [
        (
            "2026-11-23 CPU Power notify\n\tCPU_Scheduler_Limit \t= 100\n\tCPU_Speed_Limit \t= 62\n",
            Heat(None, 0.62),
        ),
        ("Note: No thermal warning level has been recorded\n", Heat(None, 1.0)),
        ("", Heat()),
    ],
)
def test_pmset_tells_of_heat(told: str, heat: Heat) -> None:
    assert MacPower(Answers(therm=told)).heat() == heat


QUERY = """GUID des Energieschemas: 381b4222-f694-41f0-9685-ff5bb260df2e  (Ausbalanciert)
    GUID der Untergruppe: 238c9fa8-0aad-41ed-83f4-97be242c8f20
      Minimal moegliche Einstellung: 0x00000000
      Maximal moegliche Einstellung: 0xffffffff
    Index der aktuellen Wechselstromeinstellung: 0x00000708
    Index der aktuellen Gleichstromeinstellung: 0x0000012c
"""


class PowrProf:
    """Windows' library: what two processors may take."""

    def __init__(self, limit_mhz: int, error: int = 0) -> None:
        self._limit_mhz, self._error = limit_mhz, error

    def CallNtPowerInformation(self, kind: int, _in: Any, _size: int, out: Any, size: int) -> int:  # noqa: N802
        assert (kind, size) == (11, 2 * 24)
        told = (ProcessorPower * 2)(
            *(ProcessorPower(0, 2800, 1400, limit, 2, 1) for limit in (2800, self._limit_mhz))
        )
        ctypes.memmove(out, told, size)
        return self._error


def test_powercfg_says_when_windows_sleeps_in_any_language() -> None:
    windows = WindowsPower(
        Answers(STANDBYIDLE=QUERY, LIDACTION=QUERY.replace("00000708", "00000001")), PowrProf(1), 2
    )
    assert windows.sleep() == Sleep(1800, 300, True)
    assert WindowsPower(Answers(), PowrProf(1), 2).sleep() == Sleep(None, None, None)


def test_windows_tells_of_heat() -> None:
    assert WindowsPower(Answers(), PowrProf(1400), 2).heat() == Heat(None, 0.5)
    assert WindowsPower(Answers(), PowrProf(1400, error=-1), 2).heat() == Heat()
