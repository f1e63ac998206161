"""What a check found: that all is well, something to know, or something to mend; with how it is mended.

A fault is what makes runs fail, or makes them something else than they say. What only costs speed, memory or
comfort is a note. Both come with a fix: a command, or a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["pass", "note", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    """Its name, for people and for scripts."""
    verdict: Verdict
    told: str
    fix: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    """For programs; what is not known is null."""

    def to_json(self) -> dict[str, Any]:
        """The finding as `lowmem-seq doctor --json` prints it."""
        return {
            "check": self.check,
            "verdict": self.verdict,
            "told": self.told,
            "fix": self.fix or None,
            "figures": self.figures,
        }


def well(check: str, told: str, **figures: Any) -> Finding:
    """Return that all is well."""
    return Finding(check, "pass", told, figures=figures)


def note(check: str, told: str, fix: str, **figures: Any) -> Finding:
    """Return something to know, and what can be done about it."""
    return Finding(check, "note", told, fix, figures)


def fault(check: str, told: str, fix: str, **figures: Any) -> Finding:
    """Return something to mend, and how."""
    return Finding(check, "fail", told, fix, figures)


Check = Callable[[], Iterable[Finding]]


@dataclass(frozen=True)
class Group:
    """Checks that belong together, by name; each finds one thing or several."""

    title: str
    checks: Sequence[tuple[str, Check]]

    def findings(self) -> Iterator[Finding]:
        """Yield what the checks find, as they find it.

        One that breaks is a finding too: on a machine where much is broken, the rest must still be told.
        """
        for name, check in self.checks:
            yield from _found(name, check)


def _found(name: str, check: Check) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:
        told = f"it could not be looked at: {type(error).__name__}: {error}"
        yield note(name, told, "what it looks at may be fine; that it breaks is a defect of lowmem-seq")
