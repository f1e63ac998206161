from __future__ import annotations

import json
import os
import sys

import pytest

from lowmem_seq import __version__
from lowmem_seq.runs.environment import (
    PACKAGES,
    VARIABLES,
    describe_environment,
    environment_changes,
    installed_version,
)


def test_the_environment_is_plain_json_and_names_what_decides() -> None:
    environment = describe_environment()
    assert json.loads(json.dumps(environment)) == environment
    assert environment["format_version"] == 1
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["packages"].keys() == set(PACKAGES)
    assert environment["packages"]["torch"]
    assert environment["logical_cores"] == os.cpu_count()
    assert environment["memory_bytes"] > 2**28
    assert environment["processor"]


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert installed_version("no-such-package-anywhere") is None
    assert installed_version("lowmem-seq") in (None, __version__)


def test_only_what_may_change_the_last_bits_counts_as_a_change() -> None:
    environment = describe_environment()
    assert environment_changes(environment, {**environment, "command": ["resume"], "memory_bytes": 1}) == {}
    other = {**environment, "python": "3.99.0", "packages": {**environment["packages"], "torch": "9.9"}}
    assert environment_changes(environment, other) == {
        "python": [environment["python"], "3.99.0"],
        "torch": [environment["packages"]["torch"], "9.9"],
    }


def test_the_compiled_part_of_the_package_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowmem_seq.runs.environment.description", lambda: "0123, GCC 12")
    with_it = describe_environment()
    monkeypatch.setattr("lowmem_seq.runs.environment.description", lambda: None)
    without = describe_environment()
    assert environment_changes(with_it, without) == {"compiled": ["0123, GCC 12", None]}


def test_variables_that_choose_instructions_count_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = describe_environment()
    assert before["variables"] == {}
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    now = describe_environment()
    assert now["variables"] == {"ATEN_CPU_CAPABILITY": "avx2"}
    assert environment_changes(before, now) == {"ATEN_CPU_CAPABILITY": [None, "avx2"]}
    older = {key: value for key, value in before.items() if key != "variables"}
    assert environment_changes(older, before) == {}


def test_a_description_from_an_older_release_is_compared_by_what_it_has() -> None:
    environment = describe_environment()
    older = {key: value for key, value in environment.items() if key not in ("packages", "release")}
    changes = environment_changes(older, environment)
    assert changes["release"] == [None, environment["release"]]
    assert changes["torch"] == [None, environment["packages"]["torch"]]
    assert "python" not in changes
