"""`lowmem-seq doctor`: whether this machine is fit to train, and whether it reaches one that hosts."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lowmem_seq import __version__
from lowmem_seq.cli.settings import JsonOption
from lowmem_seq.cli.terminal import harmless, make_console, print_json
from lowmem_seq.doctor.finding import Finding, Group, Verdict
from lowmem_seq.errors import ClusterError, UnfitError

STYLES: dict[Verdict, str] = {"pass": "green", "note": "bold yellow", "fail": "bold red"}
WIDEST = 100
LONGEST_NAME = 14
"""Of a check: "compiled cells"."""
COMMANDS = frozenset({"pip", "lowmem-seq", "sudo", "systemd-inhibit", "caffeinate", "powercfg", "powerprofilesctl"})
"""First words of a fix that is to be pasted into a shell, and so must stay one line."""


def doctor(
    peer: str | None = typer.Option(
        None, "--peer", metavar="IP:PORT", help="Look instead whether a host can be trained with."
    ),
    as_json: JsonOption = False,
) -> None:
    """Say whether this machine is fit to train; each fault with its fix.

    Ends with 0 if nothing failed, else with 11. With --peer it ends with 7 then, and takes the join code from
    LOWMEM_SEQ_TOKEN.

    Examples:
        lowmem-seq doctor
        lowmem-seq doctor --peer 192.168.1.20:29500  # is the way to the host open?
    """
    groups = list(_groups(peer))
    console = make_console(sys.stdout)
    found: list[tuple[Group, Finding]] = []
    for number, group in enumerate(groups):
        if not as_json:
            console.print("\n" * (number > 0), end="")
            console.print(Text(harmless(group.title, one_line=True), style="bold"))
        for finding in group.findings():
            found.append((group, finding))
            if not as_json:
                show(finding, console)
    if as_json:
        print_json(to_json(found))
    else:
        console.print()
    findings = [finding for _, finding in found]
    raise_if_failed(findings, peer)
    if not as_json:
        console.print(Text(conclusion(findings), style="bold green"))


def _groups(peer: str | None) -> Iterator[Group]:
    if peer is None:
        from lowmem_seq.doctor.checkup import machine_groups

        yield from machine_groups()
        return
    from lowmem_seq.cluster.launchers import DEFAULT_PORT, split_endpoint
    from lowmem_seq.doctor.peer import peer_group  # pyzmq, for those who need it

    host, port = split_endpoint(peer)
    yield peer_group(host, port or DEFAULT_PORT, os.environ)


def show(finding: Finding, console: Console) -> None:
    """Print a finding, and how it is mended; a command stands in one line, to be copied."""
    width = min(console.width, WIDEST)
    verdict, name = Text(finding.verdict, STYLES[finding.verdict]), Text(finding.check)
    told = Text(harmless(finding.told, one_line=True))
    console.print(_row(2, (verdict, 5), (name, LONGEST_NAME + 1), told), width=width)
    for line in finding.fix.splitlines():
        label, way = Text("fix:", "bold cyan"), Text(harmless(line, one_line=True))
        if line.partition(" ")[0] in COMMANDS:
            console.print(Text.assemble(" " * 8, label, " ", way), soft_wrap=True)
        else:
            console.print(_row(8, (label, 4), way), width=width)


def _row(indent: int, *cells: tuple[Text, int] | Text) -> Padding:
    """Return texts beside each other, each with its width; the last one takes what is left."""
    row = Table.grid(padding=(0, 1, 0, 0))
    for cell in cells:
        row.add_column(width=None if isinstance(cell, Text) else cell[1], overflow="fold")
    row.add_row(*(cell if isinstance(cell, Text) else cell[0] for cell in cells))
    return Padding(row, (0, 0, 0, indent), expand=False)


def conclusion(findings: Iterable[Finding]) -> str:
    """Return the last line, where nothing failed."""
    counts = Counter(finding.verdict for finding in findings)
    notes = counts["note"]
    told = "all pass" if not notes else f"{counts['pass']} pass, {notes} {'note' if notes == 1 else 'notes'}"
    return f"{counts.total()} {'check' if counts.total() == 1 else 'checks'}: {told}"


def raise_if_failed(findings: list[Finding], peer: str | None) -> None:
    """See that nothing failed.

    Raises:
        UnfitError: something of this machine did.
        ClusterError: something between this machine and a host did.
    """
    failed = [finding.check for finding in findings if finding.verdict == "fail"]
    if failed:
        told = f"{len(failed)} of {len(findings)} checks failed: {', '.join(dict.fromkeys(failed))}."
        hint = "do what stands behind fix:, from the top, and look again: lowmem-seq doctor"
        if peer is not None:
            raise ClusterError(told, f"{hint} --peer {peer}")
        raise UnfitError(told, hint)


def to_json(found: list[tuple[Group, Finding]]) -> dict[str, Any]:
    """Return what was found as `lowmem-seq doctor --json` prints it."""
    counts = Counter(finding.verdict for _, finding in found)
    return {
        "lowmem_seq": __version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "passed": counts["pass"],
        "notes": counts["note"],
        "failed": counts["fail"],
        "checks": [{"group": group.title, **finding.to_json()} for group, finding in found],
    }
