"""What tests of the doctor share: canaries that found something already, and what a check found, in short."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from lowmem_seq.doctor.canaries import Outcome
from lowmem_seq.doctor.finding import Finding

TryAll = Callable[[str, Sequence[str]], Iterator[Outcome]]


def tried(*outcomes: Outcome) -> TryAll:
    """In place of `try_out`: these outcomes, whatever is asked for."""

    def try_all(_module: str, _names: Sequence[str]) -> Iterator[Outcome]:
        yield from outcomes

    return try_all


def the_only(findings: Iterable[Finding]) -> Finding:
    """The one finding, which says how it is mended if anything is to be mended."""
    (finding,) = findings
    assert bool(finding.fix) == (finding.verdict != "pass")
    return finding


def verdicts(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    """Check and verdict of each."""
    return [(finding.check, finding.verdict) for finding in findings]
