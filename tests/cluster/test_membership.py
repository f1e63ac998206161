from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from lowmem_seq.cluster.machine import machine_id
from lowmem_seq.cluster.membership import (
    Role,
    code_of,
    machine_of,
    read_membership,
    take_no_part,
    take_part,
)
from lowmem_seq.errors import UsageError
from lowmem_seq.files import read_json, write_json
from lowmem_seq.runs.folder import RunFolder, create_run
from tests.builders import tiny_config


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create_run(tmp_path / "run", tiny_config())


def test_a_machine_keeps_its_key_through_all_sessions_of_a_run(run: RunFolder) -> None:
    first = take_part(run, "host", "127.0.0.1", 29500)
    again = take_part(run, "member", "10.0.0.7", 4000)
    assert again.machine_key == first.machine_key
    assert again.machine == first.machine == machine_of(run) == machine_id(first.machine_key)
    assert read_membership(run) == again
    assert not again.hosts


def test_a_session_of_one_machine_has_no_part_and_keeps_the_key(run: RunFolder) -> None:
    take_no_part(run)
    assert read_membership(run) is None
    assert machine_of(run) is None
    assert not (run.path / "cluster").exists()
    part = take_part(run, "host", "127.0.0.1", 29500)
    take_no_part(run)
    assert read_membership(run) is None
    assert machine_of(run) == part.machine


@pytest.mark.parametrize(
    ("role", "address", "flags"),
    [
        ("host", "127.0.0.1", "--host --port 4000"),
        ("member", "10.0.0.7", "--join 10.0.0.7:4000"),
        ("member", "fd00::5", "--join '[fd00::5]':4000"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="quoted for other shells")
def test_the_command_that_goes_on_has_the_part(run: RunFolder, role: Role, address: str, flags: str) -> None:
    alone = run.resume_command
    take_part(run, role, address, 4000, "CODE")
    assert run.resume_command == f"{alone} {flags}"
    assert code_of(run) == "CODE"
    take_no_part(run)
    assert run.resume_command == alone


def test_two_runs_are_two_machines(run: RunFolder, tmp_path: Path) -> None:
    other = create_run(tmp_path / "other", tiny_config())
    assert take_part(run, "host", "127.0.0.1", 1).machine != take_part(other, "host", "127.0.0.1", 1).machine


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such rights")
def test_the_key_is_for_this_user_alone(run: RunFolder) -> None:
    take_part(run, "host", "127.0.0.1", 29500)
    assert stat.S_IMODE((run.path / "cluster").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "damage",
    [{"machine_key": "xyz"}, {"format_version": 2}, {"role": "queen"}, {"port": "29500"}, {"address": None}],
    ids=lambda damage: next(iter(damage)),
)
def test_a_damaged_part_is_told_with_what_to_do(run: RunFolder, damage: dict[str, object]) -> None:
    take_part(run, "host", "127.0.0.1", 29500)
    path = run.path / "cluster" / "membership.json"
    write_json(path, {**read_json(path), **damage})
    with pytest.raises(UsageError, match="damaged or of another release") as caught:
        read_membership(run)
    assert f"delete {path}" in caught.value.hint
