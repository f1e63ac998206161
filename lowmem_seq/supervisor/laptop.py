"""A session's life on a laptop: kept awake, paused on battery or by the hour, in the background, asleep, slow.

The trainer knows nothing of it: to pause it is asked to save and end, as for a stop, and another one goes on from
its checkpoint later. So a pause gives the memory back, and changes no bit of the run. What happens is recorded and
shown.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from lowmem_seq.config import MachineConfig
from lowmem_seq.memory.cores import usable_cores
from lowmem_seq.runs.clocks import awake_seconds, slept_seconds
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.awake import SystemWakefulness, Wakefulness, why_not
from lowmem_seq.supervisor.background import lower_priority, lower_session
from lowmem_seq.supervisor.child import Child, Message
from lowmem_seq.supervisor.conditions import Conditions, Hindrance
from lowmem_seq.supervisor.power import Power, SettledPower, SystemPower
from lowmem_seq.supervisor.screen import Screen
from lowmem_seq.supervisor.signals import StopSignals
from lowmem_seq.supervisor.speed import SpeedWatch
from lowmem_seq.supervisor.watch import MemoryWatch

SECONDS_BETWEEN_LOOKS = 1.0
SHORTEST_SLEEP_SECONDS = 2.0
"""Less is no sleep: two clocks are read one after the other, and macOS bends one of them."""


class Laptop:
    """What a session does about the machine that it runs on, from its start to its end.

    Args:
        run: where the events go.
        settings: what was asked for.
        screen: shows what happens.
        stops: end a pause.
        power: where the machine's power comes from.
        wakefulness: what keeps it awake.
        now: the local time.
        clock: seconds awake.
        slept: seconds asleep.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: MachineConfig,
        screen: Screen,
        stops: StopSignals,
        power: Power | None = None,
        wakefulness: Wakefulness | None = None,
        now: Callable[[], datetime] = datetime.now,
        clock: Callable[[], float] = awake_seconds,
        slept: Callable[[], float] = slept_seconds,
    ) -> None:
        self._run, self._settings, self._screen, self._stops = run, settings, screen, stops
        self._power = power or SystemPower()
        self._settled = SettledPower(self._power, clock) if settings.pause_on_battery else None
        self._conditions = Conditions(self._settled, settings.hours, now)
        self._wakefulness = wakefulness or SystemWakefulness()
        self._kept_awake_by: str | None = None
        self._speed = SpeedWatch(clock)
        self._clock, self._slept = clock, slept
        self._slept_before = slept()
        self._looked_at = float("-inf")
        self._hindrance: Hindrance | None = None

    def __enter__(self) -> Laptop:
        if self._settings.background:
            leaves_a_core = self._settings.threads is None and usable_cores(None) > 1
            self.record("in_background", lowered=lower_priority(), leaves_a_core=leaves_a_core)
        if self._settled is not None and not self._settled.is_known:
            self.record("no_battery")
        if self._settings.keep_awake:
            self._hold_awake(is_first=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._wakefulness.let_go()

    def started(self, trainer: Child) -> None:
        """Hear that a trainer has begun its life."""
        if self._settings.background:
            lower_session(trainer.process.pid)

    def hear(self, message: Message, memory_is_short: bool) -> None:
        """Take in what a trainer said, for its speed.

        Args:
            message: any.
            memory_is_short: whether the machine has little memory left, which is slow by itself.
        """
        if message.get("event") in ("session_started", "setting_changed"):
            self._speed.start_anew()
        elif message.get("event") == "train":
            change = self._speed.hear(float(message["images_per_second"]), memory_is_short)
            if change is not None and change.slowed:
                self.record(
                    "slowed",
                    images_per_second=change.images_per_second,
                    best_images_per_second=change.best_images_per_second,
                    seconds=change.seconds,
                    plugged_in=self._power.plugged_in(),
                )
            elif change is not None:
                self.record("recovered", images_per_second=change.images_per_second, seconds=change.seconds)

    def look(self) -> Hindrance | None:
        """Return what is in the way of training now, if anything; may be called many times a second."""
        now = self._clock()
        if now - self._looked_at >= SECONDS_BETWEEN_LOOKS:
            self._looked_at = now
            self._note_sleep()
            self._hindrance = self._conditions.hindrance
        return self._hindrance

    def wait(self, cap_bytes: int, meanwhile: Callable[[], None], ended_for: Hindrance | None = None) -> bool:
        """Wait as long as something is in the way; return False as soon as a stop is asked for.

        Args:
            cap_bytes: what the run may hold, for the screen.
            meanwhile: called every second.
            ended_for: what was in the way when a trainer was asked to end; it may be gone by now.
        """
        hindrance = self.look() or ended_for
        if hindrance is None:
            return True
        began = self._clock() + self._slept()
        watch = MemoryWatch(self._run, cap_bytes, None, self._screen)
        watch.sample()
        watch.record()
        told: Hindrance | None = None
        while hindrance is not None and not self._stops.count:
            if told is None or hindrance.waits_for != told.waits_for:
                told = hindrance
                self._pause(hindrance)
            watch.sample(records=False)
            meanwhile()
            self._stops.wait(SECONDS_BETWEEN_LOOKS)
            hindrance = self.look()
        if self._stops.count:
            return False
        self.record("unpaused", seconds=self._clock() + self._slept() - began)
        if self._settings.keep_awake:
            self._hold_awake()
        return True

    def _pause(self, hindrance: Hindrance) -> None:
        """Say what is waited for. Only on battery may the machine sleep meanwhile: nothing would wake it at ten."""
        until = None if hindrance.until is None else hindrance.until.timestamp()
        self.record("paused", waits_for=list(hindrance.waits_for), cause=hindrance.cause, until_unix_seconds=until)
        if "power" in hindrance.waits_for:
            self._wakefulness.let_go()
        elif self._settings.keep_awake:
            self._hold_awake()

    def _hold_awake(self, is_first: bool = False) -> None:
        """Keep the machine awake, and say so where it is news."""
        before, self._kept_awake_by = self._kept_awake_by, self._wakefulness.hold()
        if self._kept_awake_by is not None and self._kept_awake_by != before:
            self.record("kept_awake", by=self._kept_awake_by)
        elif self._kept_awake_by is None and (is_first or before is not None):
            self.record("not_kept_awake", cause=why_not())

    def _note_sleep(self) -> None:
        """Record that the machine slept since the last look."""
        before, self._slept_before = self._slept_before, self._slept()
        seconds = self._slept_before - before
        if seconds >= SHORTEST_SLEEP_SECONDS:
            self.record("slept", seconds=round(seconds, 1))

    def record(self, event: str, **details: object) -> None:
        """Write an event down, and show it."""
        self._screen.show(self._run.events.append(event, **details))
