from __future__ import annotations

from collections.abc import Iterator

from lowmem_seq.doctor.finding import Finding, Group, fault, note, well


def breaks() -> Iterator[Finding]:
    yield well("first", "looked at")
    raise PermissionError(13, "Permission denied", "/sys/secret")


def test_a_check_that_breaks_is_told_and_those_after_it_are_made() -> None:
    group = Group("disks", [("first", breaks), ("second", lambda: [well("second", "there")])])
    told = list(group.findings())
    assert [(one.check, one.verdict) for one in told] == [("first", "pass"), ("first", "note"), ("second", "pass")]
    assert "PermissionError: [Errno 13] Permission denied: '/sys/secret'" in told[1].told


def test_a_finding_has_all_keys_in_json() -> None:
    assert fault("cap", "is not kept", "less", limit_bytes=3).to_json() == {
        "check": "cap",
        "verdict": "fail",
        "told": "is not kept",
        "fix": "less",
        "figures": {"limit_bytes": 3},
    }
    assert note("cap", "x", "y").to_json()["figures"] == {}
    assert well("cap", "x").to_json()["fix"] is None
