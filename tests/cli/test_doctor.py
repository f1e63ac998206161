"""`lowmem-seq doctor`: its screen, its JSON, its exit codes; the checks are made up, but for one run of all."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lowmem_seq import __version__
from lowmem_seq.cluster.token import TOKEN_VARIABLE
from lowmem_seq.doctor import checkup
from lowmem_seq.doctor.finding import Finding, Group, fault, note, well
from tests.builders import end, free_port, start_python
from tests.cli.conftest import CommandLine
from tests.cli.test_start import assert_refused

LONG = "word " * 30
COMMAND = "pip install " + " ".join(f"package-{number}" for number in range(12))
WELL = [well("Python", "3.12.1", bits=64)]
NOTED = [*WELL, note("torch build", LONG, f"{COMMAND}\nlook again, {LONG}", disk_bytes=5)]
FAILED = [*NOTED, fault("cap", "is \x1b[2Jnot kept", "restart"), fault("cap", "twice", "restart")]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the checks find; a test puts it there."""
    findings: list[Finding] = []

    def check() -> Iterator[Finding]:
        yield from findings

    monkeypatch.setattr(checkup, "machine_groups", lambda: [Group("software", [("all", check)])])
    monkeypatch.setenv("COLUMNS", "80")
    return findings


def test_a_machine_that_is_fit_ends_with_0(command_line: CommandLine, told: list[Finding]) -> None:
    told += WELL
    ended = command_line("doctor")
    assert ended == (0, "software\n  pass  Python          3.12.1\n\n1 check: all pass\n", "")


def test_notes_end_with_0_and_are_counted(command_line: CommandLine, told: list[Finding]) -> None:
    told += NOTED
    ended = command_line("doctor")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.endswith("\n2 checks: 1 pass, 1 note\n")


def test_a_fault_ends_with_11_and_is_named_once(command_line: CommandLine, told: list[Finding]) -> None:
    told += FAILED
    ended = command_line("doctor")
    assert_refused(ended, 11, "2 of 4 checks failed: cap.", "lowmem-seq doctor")
    assert "fail  cap             is  [2Jnot kept" in ended.out


def test_a_command_that_mends_stays_one_line_and_all_else_fits_the_screen(
    command_line: CommandLine, told: list[Finding]
) -> None:
    told += NOTED
    lines = command_line("doctor").out.splitlines()
    assert f"        fix: {COMMAND}" in lines
    assert [line for line in lines if len(line) > 80] == [f"        fix: {COMMAND}"]


def test_json_holds_every_finding_whatever_the_outcome(command_line: CommandLine, told: list[Finding]) -> None:
    told += FAILED
    ended = command_line("doctor", "--json")
    assert ended.code == 11
    read = json.loads(ended.out)
    assert (read["passed"], read["notes"], read["failed"], read["lowmem_seq"]) == (1, 1, 2, __version__)
    assert [one["check"] for one in read["checks"]] == ["Python", "torch build", "cap", "cap"]
    assert read["checks"][0] == {
        "group": "software",
        "check": "Python",
        "verdict": "pass",
        "told": "3.12.1",
        "fix": None,
        "figures": {"bits": 64},
    }


def test_a_host_that_is_not_there_ends_with_7(command_line: CommandLine) -> None:
    ended = command_line("doctor", "--peer", f"127.0.0.1:{free_port()}")
    assert_refused(ended, 7, "1 of 2 checks failed: port.", "lowmem-seq doctor --peer 127.0.0.1:")
    assert "nothing listens" in ended.out


def test_an_address_that_is_none_is_refused(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert_refused(
        command_line("doctor", "--peer", "[fe80::1"), 2, "'[fe80::1' is no address with a port.", "192.168.1.5"
    )


REAL = """
import sys
from lowmem_seq.cli.main import main

sys.argv = ["lowmem-seq", "doctor", "--json"]
try:
    main()
except SystemExit as end:
    print(end.code or 0, "torch" in sys.modules, file=sys.stderr)
"""


def test_all_checks_can_be_made_here_and_this_process_never_holds_torch() -> None:
    _, out, err = end(start_python(REAL))
    read = json.loads(out)
    assert err.splitlines()[-1] in ("0 False", "11 False")
    names = {one["check"] for one in read["checks"]}
    assert names >= {
        *("Python", "packages", "torch build", "torchvision", "compiled cells", "torch", "LSTMs", "bf16"),
        *("oneDNN", "free RAM", "swap", "cap", "runs folder", "cache folder", "sleep", "battery", "heat"),
        *("clock", "terminal"),
    }
    assert not [one for one in read["checks"] if "could not be looked at" in one["told"]]
    tried = {one["check"]: one["verdict"] for one in read["checks"] if one["group"].startswith("computing")}
    assert "fail" not in tried.values()
