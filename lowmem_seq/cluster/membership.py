"""A machine's part in a cluster, as its run folder holds it: who it is, and where the hub of this session listens.

`cluster/` in a run folder is for this machine and its user alone: the key in it is what proves to the hub that it
is the same machine as before, and the token lets it in again when the run is resumed.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lowmem_seq.cluster.machine import machine_id, new_machine_key
from lowmem_seq.errors import UsageError
from lowmem_seq.files import make_folder, write_json
from lowmem_seq.runs.folder import RunFolder

FORMAT_VERSION = 1
Role = Literal["host", "member"]
LONGEST_NAME = 64


@dataclass(frozen=True)
class Membership:
    """A machine's part in the cluster of one session."""

    role: Role
    address: str
    """Where this machine's trainer dials."""
    port: int
    machine_key: str
    name: str
    """For people: the machine's host name."""
    code: str = field(default="", repr=False)
    """The join code of the session, for the next one."""

    @property
    def machine(self) -> str:
        """The machine's id, which all may know."""
        return machine_id(self.machine_key)

    @property
    def hosts(self) -> bool:
        """Whether the hub runs here."""
        return self.role == "host"


def cluster_folder(run: RunFolder) -> Path:
    """Return where a run keeps what concerns its cluster."""
    return run.path / "cluster"


def take_part(run: RunFolder, role: Role, address: str, port: int, code: str = "") -> Membership:
    """Write down this machine's part in the session that begins, with the key that it has had in this run."""
    before = _read(run)
    key = before["machine_key"] if before else new_machine_key()
    part = Membership(role, address, port, key, machine_name(), code)
    folder = cluster_folder(run)
    make_folder(folder)
    folder.chmod(0o700)
    write_json(_file(run), {"format_version": FORMAT_VERSION, **asdict(part)})
    return part


def take_no_part(run: RunFolder) -> None:
    """Write down that the session that begins has one machine; the key is kept."""
    before = _read(run)
    if before is not None and before["role"] is not None:
        write_json(_file(run), {**before, "role": None})


def read_membership(run: RunFolder) -> Membership | None:
    """Return this machine's part in the present session; None where it has none.

    Raises:
        UsageError: the file is damaged, or of another release.
    """
    value = _read(run)
    if value is None or value["role"] is None:
        return None
    return Membership(**{one.name: value[one.name] for one in fields(Membership)})


def machine_of(run: RunFolder) -> str | None:
    """Return the id that this machine has had in the clusters of a run; None where it was in none.

    Raises:
        UsageError: as of `read_membership`.
    """
    value = _read(run)
    return None if value is None else machine_id(value["machine_key"])


def code_of(run: RunFolder) -> str:
    """Return the join code of the run's last session among several machines; empty where there was none.

    Raises:
        UsageError: as of `read_membership`.
    """
    value = _read(run)
    return "" if value is None else str(value["code"])


def machine_name() -> str:
    """Return this machine's name for people."""
    return (platform.node().partition(".")[0] or "a machine")[:LONGEST_NAME]


def _file(run: RunFolder) -> Path:
    return cluster_folder(run) / "membership.json"


def _read(run: RunFolder) -> dict[str, Any] | None:
    value = run.read_json(_file(run))
    if value is None:
        return None
    try:
        machine_id(value["machine_key"])
        known = value["format_version"] == FORMAT_VERSION and value["role"] in ("host", "member", None)
        known = known and all(
            isinstance(value[name], kind)
            for name, kind in (("address", str), ("port", int), ("name", str), ("code", str))
        )
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise UsageError(
            f"{_file(run)} is damaged or of another release.",
            f"delete {os.fspath(_file(run))}: this machine then counts as a new one of the cluster",
        )
    return value
