"""What a run was made with: versions, processor, memory. Read without importing the packages."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from lowmem_seq.compiled import description

PACKAGES = ("lowmem-seq", "torch", "torchvision", "accelerate", "safetensors", "numpy", "pillow")

VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "NVIDIA_TF32_OVERRIDE"),
)
"""By these a user tells torch and its libraries which instructions to take: other speed, other last bits."""


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """Return the processor's name for people, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


DECISIVE = ("python", "packages", "compiled", "variables", "system", "release", "machine", "processor")
"""What may change the last bits of a result."""
NAMED = ("packages", "variables")
"""Those of them that have names and values of their own."""


def environment_changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """Return what differs between two descriptions: [before, now] by name, packages and variables one by one."""

    def flat(described: dict[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for key in DECISIVE:
            value = described.get(key)
            told |= value if isinstance(value, dict) else {} if key in NAMED else {key: value}
        return told

    old, new = flat(before), flat(now)
    return {
        key: [old.get(key), new.get(key)] for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
    }


def planned_for(described: dict[str, Any]) -> str:
    """Return the machine and the torch that a plan is measured on; on others it says nothing."""
    names = ("system", "machine", "processor", "logical_cores", "memory_bytes")
    return ", ".join(str(one) for one in (*(described[name] for name in names), described["packages"]["torch"]))


def describe_environment() -> dict[str, Any]:
    """Return what environment.json holds; a value that is not known is null."""
    return {
        "format_version": 1,
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "compiled": description(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "processor": processor_name(),
        "logical_cores": os.cpu_count(),
        "physical_cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "command": sys.argv,
    }
