"""What a process can see of how it was started: its environment, the processes above it, the addresses."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from lowmem_seq.cluster.launchers import Command, read_command

HIGHEST = 32
"""How many processes above this one are looked at; shells, terminals and a desktop are about ten."""
Place = Literal["here", "elsewhere", "loopback", "everywhere", "unknown"]


@dataclass(frozen=True)
class Starter:
    """The launcher that started this process.

    Args:
        command: what it was told.
        environment: the one that it was itself started with, None where the system doesn't show it. What a launcher
            sets for its children is not in it.
        began_unix_seconds: when it was started, None where the system doesn't say.
    """

    command: Command
    environment: Mapping[str, str] | None
    began_unix_seconds: float | None = None


@dataclass(frozen=True)
class Surroundings:
    """What a process can see of how it was started.

    Args:
        environment: its environment.
        starter: the nearest launcher above it, None where there is none or its command line can't be read.
        addresses: the addresses of this machine's interfaces, without loopback.
        addresses_of: gives the addresses that a host name stands for, none where nobody knows it.
        home: the user's folder.
        cores: processor cores, without hyper-threads; None where the system doesn't say.
    """

    environment: Mapping[str, str]
    starter: Starter | None
    addresses: frozenset[str]
    addresses_of: Callable[[str], frozenset[str]]
    home: Path
    cores: int | None

    def place_of(self, address: str) -> Place:
        """Return where an address or a host name is.

        `loopback` may be meant on any machine; `everywhere` is 0.0.0.0, which can be listened at but not dialled.
        """
        literal = _as_address(address)
        if literal is not None:
            if literal.is_unspecified:
                return "everywhere"
            if literal.is_loopback:
                return "loopback"
            return "here" if str(literal) in self.addresses else "elsewhere"
        if is_loopback(address):
            return "loopback"
        found = [known for text in self.addresses_of(address) if (known := _as_address(text)) is not None]
        if not found:
            return "unknown"
        # Debian writes a machine's own name into its hosts file as 127.0.1.1; on others the name is elsewhere
        return "here" if any(one.is_loopback or str(one) in self.addresses for one in found) else "elsewhere"


def look_around() -> Surroundings:
    """Return this process's surroundings."""
    return Surroundings(
        environment=dict(os.environ),
        starter=find_starter(),
        addresses=local_addresses(),
        addresses_of=resolve,
        home=Path.home(),
        cores=psutil.cpu_count(logical=False),
    )


def find_starter() -> Starter | None:
    """Return the nearest launcher above this process, None where none can be seen."""
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process().parent()
        for _ in range(HIGHEST):
            if process is None:
                break
            command = read_command(_words(process))
            if command is not None:
                return Starter(command, _environment(process), _began(process))
            process = process.parent()
    return None


def _words(process: psutil.Process) -> tuple[str, ...]:
    """Return a process's command line, empty where it may not be read: one of another user, or one that ended."""
    with contextlib.suppress(psutil.Error, OSError):
        return tuple(process.cmdline())
    return ()


def _environment(process: psutil.Process) -> dict[str, str] | None:
    """Return what a process was started with; nothing at all (macOS, of protected programs) is not believed."""
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ() or None
    return None


def _began(process: psutil.Process) -> float | None:
    """Return when a process was started, None where it ended meanwhile."""
    with contextlib.suppress(psutil.Error, OSError):
        return process.create_time()
    return None


def local_addresses() -> frozenset[str]:
    """Return the addresses of this machine's interfaces, without loopback and without IPv6's `%eth0`."""
    with contextlib.suppress(psutil.Error, OSError):
        told = [one.address for known in psutil.net_if_addrs().values() for one in known]
        read = [_as_address(text) for text in told]  # the hardware's addresses among them are none
        return frozenset(str(one) for one in read if one is not None and not one.is_loopback)
    return frozenset()


def interface_towards(address: str, port: int) -> str | None:
    """Return the name of the interface by which this machine reaches an address, None where nobody says."""
    with contextlib.suppress(OSError, psutil.Error, UnicodeError):
        for family, kind, _, _, place in socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as probe:
                probe.connect(place)  # sends nothing
                own = probe.getsockname()[0]
            for name, known in psutil.net_if_addrs().items():
                if any(one.address.partition("%")[0] == own for one in known):
                    return name
    return None


def resolve(name: str) -> frozenset[str]:
    """Return the addresses that a host name stands for, none where nobody knows it."""
    with contextlib.suppress(OSError, UnicodeError):
        return frozenset(str(found[4][0]) for found in socket.getaddrinfo(name, None))
    return frozenset()


def is_loopback(address: str) -> bool:
    """Return whether an address or a name is every machine's own."""
    literal = _as_address(address)
    if literal is not None:
        return literal.is_loopback
    return address.rstrip(".").lower() in ("localhost", "localhost.localdomain", "ip6-localhost")


def _as_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(text.partition("%")[0])
    return None
