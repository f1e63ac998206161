"""Windows: what `powercfg` says of sleep, and what the processor may take (CallNtPowerInformation, powrprof.h)."""

from __future__ import annotations

import ctypes
import os
import re
from typing import Any

from lowmem_seq.doctor.power import Ask, Heat, Sleep

PROCESSOR_INFORMATION = 11
LID_DOES_NOTHING = 0


class ProcessorPower(ctypes.Structure):
    """PROCESSOR_POWER_INFORMATION of one logical processor."""

    _fields_ = tuple(
        (name, ctypes.c_uint32)
        for name in ("number", "max_mhz", "current_mhz", "mhz_limit", "max_idle_state", "current_idle_state")
    )


class WindowsPower:
    """Windows' figures.

    Args:
        ask: has a program of the system answer.
        library: powrprof, or a fake of it.
        processors: how many logical ones there are.
    """

    stay_awake = "powercfg /change standby-timeout-ac 0"
    full_speed = "plug it in; Settings, System, Power: Best performance; let it cool down"

    def __init__(self, ask: Ask, library: Any = None, processors: int | None = None) -> None:
        self._ask = ask
        self._library = getattr(ctypes, "WinDLL")("powrprof") if library is None else library  # noqa: B009
        self._processors = processors or os.cpu_count() or 1

    def sleep(self) -> Sleep:
        """See Power."""
        plugged, battery = self._indices("SUB_SLEEP", "STANDBYIDLE")
        lid, _ = self._indices("SUB_BUTTONS", "LIDACTION")
        return Sleep(plugged, battery, None if lid is None else lid != LID_DOES_NOTHING)

    def heat(self) -> Heat:
        """See Power. The limit is that of the power plan, or of the firmware where it is too hot."""
        told = (ProcessorPower * self._processors)()
        if self._library.CallNtPowerInformation(
            PROCESSOR_INFORMATION, None, 0, ctypes.byref(told), ctypes.sizeof(told)
        ):
            return Heat()
        shares = [one.mhz_limit / one.max_mhz for one in told if one.max_mhz]
        return Heat(speed_share=min(shares, default=None))

    def _indices(self, group: str, setting: str) -> tuple[int | None, int | None]:
        """Return a setting plugged in and on battery: the last two numbers, in whatever language they are told."""
        told = self._ask(["powercfg", "/query", "SCHEME_CURRENT", group, setting])
        numbers = [int(text, 16) for text in re.findall(r"\b0x([0-9a-fA-F]{8})\b", told)]
        return (numbers[-2], numbers[-1]) if len(numbers) >= 2 else (None, None)
