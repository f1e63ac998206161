"""The program on a laptop whose plug is in while a file exists: `python tests/plugged.py FILE ARGUMENTS...`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from lowmem_seq.cli.main import main
from lowmem_seq.supervisor import laptop, power


def program(plug: Path) -> tuple[str, ...]:
    """What runs the program's arguments on such a laptop."""
    return sys.executable, __file__, str(plug)


if __name__ == "__main__":
    plug = Path(sys.argv.pop(1))
    system: Any = psutil
    system.sensors_battery = lambda: SimpleNamespace(power_plugged=plug.exists())
    power.SETTLE_SECONDS = power.SECONDS_BETWEEN_LOOKS = 0.0
    laptop.SECONDS_BETWEEN_LOOKS = 0.1  # the tests' runs take a few seconds
    main()
