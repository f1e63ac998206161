"""The way to another machine, before anything is said there: its name, the network, the port."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import time
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

import psutil

from lowmem_seq.doctor.finding import Finding, fault, note, well

CONNECT_SECONDS = 3.0
FIREWALL = (
    "on the host let the port through its firewall (Windows: Settings, Privacy & security, Windows Security, "
    "Firewall, Allow an app: python; macOS: System Settings, Network, Firewall; Linux: sudo ufw allow {port}/tcp)"
)
SAME_NETWORK = (
    "have both machines in the same Wi-Fi, none of them in a guest network or a VPN: those keep machines apart"
)
ADDRESS_CHANGED = "look on the host whether its address has changed: it shows it when it starts"
IS_HOST_RUNNING = "start the host first, with lowmem-seq train small --host, and look at the port that it shows"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Way:
    """How far one gets towards a port."""

    addresses: tuple[str, ...]
    """Of the name; none: nobody knows it."""
    reached: str | None = None
    """The address whose port answered."""
    connect_seconds: float | None = None
    refused: bool = False
    """Whether the machine answered that nothing listens there."""
    trouble: str = ""
    """What the system said of the last try that failed."""


def try_way(host: str, port: int, seconds: float = CONNECT_SECONDS) -> Way:
    """Connect to a port by each of its name's addresses, until one answers; nothing is said there.

    Args:
        host: a name or an address.
        port: the port.
        seconds: how long to wait for each address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Way((), trouble=str(error))
    addresses = tuple(dict.fromkeys(str(one[4][0]) for one in found))
    way = Way(addresses)
    for address in addresses:
        began = time.monotonic()
        try:
            with socket.create_connection((address, port), timeout=seconds):
                return Way(addresses, address, time.monotonic() - began)
        except OSError as error:
            refused = way.refused or isinstance(error, ConnectionRefusedError)
            way = Way(addresses, refused=refused, trouble=error.strerror or "nothing came back")
    return way


def check_way(
    host: str, port: int, way: Way, networks: Iterable[Network], own: Container[str] = ()
) -> Iterator[Finding]:
    """Say whether a port was reached, and else what is most likely in the way.

    Args:
        host: as it was given.
        port: the port.
        way: how far one got.
        networks: this machine's.
        own: this machine's addresses.
    """
    figures = {"addresses": list(way.addresses), "connect_seconds": way.connect_seconds}
    if not way.addresses:
        told = f"nobody knows the name {host}: {way.trouble}"
        yield fault(
            "address", told, "give the IP address that the host shows, such as 192.168.1.20:29500", **figures
        )
        return
    near = [address for address in way.addresses if is_near(address, networks)]
    if near and (near[0] in own or is_loopback(near[0])):
        yield well("address", f"{near[0]} is this machine itself", **figures)
    elif near:
        yield well("address", f"{near[0]} is in a network of this machine", **figures)
    else:
        yield note(
            "address",
            f"{way.addresses[0]} is in none of this machine's networks ({_named(networks)})",
            SAME_NETWORK if way.reached is None else "nothing to do as long as the port answers",
            **figures,
        )
    if way.reached is not None:
        assert way.connect_seconds is not None
        yield well("port", f"{port} answers, within {format_milliseconds(way.connect_seconds)}", **figures)
    elif way.refused:
        told = f"the machine is there, and nothing listens at its port {port}"
        yield fault("port", told, f"{IS_HOST_RUNNING}\n{ADDRESS_CHANGED}", **figures)
    else:
        fixes = (FIREWALL.format(port=port), SAME_NETWORK, ADDRESS_CHANGED)
        yield fault("port", f"{port} does not answer: {way.trouble}", "\n".join(fixes), **figures)


def is_near(address: str, networks: Iterable[Network]) -> bool:
    """Whether an address is in one of these networks, or this machine's own."""
    known = _parsed(address)
    return known is not None and (known.is_loopback or any(known in network for network in networks))


def is_loopback(address: str) -> bool:
    """Whether an address is a machine's own, on whatever machine."""
    known = _parsed(address)
    return known is not None and known.is_loopback


def format_milliseconds(seconds: float) -> str:
    """Return a short time, with a digit behind the point where it is shorter than 10 ms."""
    return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"


def own_networks() -> list[Network]:
    """Return the networks that this machine is in, by its interfaces."""
    found: list[Network] = []
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            with contextlib.suppress(ValueError):
                if one.netmask and not is_loopback(one.address):
                    found.append(ipaddress.ip_network(f"{one.address}/{one.netmask}", strict=False))
    return found


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address.partition("%")[0])
    return None


def _named(networks: Iterable[Network]) -> str:
    return ", ".join(sorted({str(one) for one in networks if one.version == 4})) or "it has none"
