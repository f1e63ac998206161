"""The tables of docs/results.md: each lies between two marks of its own, with the machine it was measured on."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from lowmem_seq.files import write_text
from lowmem_seq.runs.environment import describe_environment
from lowmem_seq.units import format_bytes

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"


def put_between_marks(name: str, text: str) -> None:
    """Replace what lies between the marks `name: begin` and `name: end` of the page."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"{PAGE} has no marks for {name}")
    write_text(PAGE, f"{before}{begin}\n{text}\n{end}{after}")


def machine() -> dict[str, Any]:
    """Return what a figure depends on: processor, memory, system, versions."""
    described = describe_environment()
    kept = ("processor", "logical_cores", "memory_bytes", "system", "release", "python")
    return {**{key: described[key] for key in kept}, "packages": described["packages"]}


def commit() -> str | None:
    """Return the commit that is measured, with a `+` where the checkout differs from it; None outside of git."""
    told = [
        subprocess.run(["git", *words], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
        for words in (("rev-parse", "--short=7", "HEAD"), ("status", "--porcelain", "--", "lowmem_seq"))
    ]
    if any(one.returncode for one in told):
        return None
    return told[0].stdout.strip() + ("+" if told[1].stdout else "")


def describe_machine(one: dict[str, Any]) -> str:
    """Return a machine in a line for people."""
    packages = one["packages"]
    return (
        f"{one['processor']}, {one['logical_cores']} cores, {format_bytes(one['memory_bytes'])}, {one['system']} "
        f"{one['release']}, Python {one['python']}, torch {packages['torch']}, "
        f"safetensors {packages['safetensors']}, accelerate {packages['accelerate']}"
    )


def drawing() -> Any:
    """Return matplotlib's pyplot, set up so that the same figures give the same file.

    Raises:
        SystemExit: matplotlib is not there.
    """
    try:
        from matplotlib import pyplot
    except ImportError:
        raise SystemExit("the picture needs matplotlib: pip install matplotlib") from None
    pyplot.rcParams.update({"font.size": 10, "svg.hashsalt": "lowmem-seq", "svg.fonttype": "path"})
    return pyplot
