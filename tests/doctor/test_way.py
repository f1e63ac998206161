"""The way to a host, up to its port: each thing that can be in it."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from lowmem_seq.doctor.way import Way, check_way, format_milliseconds, is_near, own_networks, try_way
from tests.builders import free_port
from tests.doctor.builders import verdicts

HOME = [ipaddress.ip_network("192.168.1.0/24"), ipaddress.ip_network("fd00::/64")]


def judged(host: str, way: Way) -> list[tuple[str, str, str, str]]:
    return [(one.check, one.verdict, one.told, one.fix) for one in check_way(host, 29500, way, HOME)]


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_answers_is_reached(listener: int) -> None:
    way = try_way("127.0.0.1", listener)
    assert (way.reached, way.refused, way.trouble) == ("127.0.0.1", False, "")
    assert verdicts(check_way("127.0.0.1", listener, way, HOME)) == [("address", "pass"), ("port", "pass")]


def test_a_port_where_nothing_listens_says_so_and_to_start_the_host() -> None:
    way = try_way("127.0.0.1", free_port())
    assert way.refused
    (_, _, told, fix) = judged("127.0.0.1", way)[1]
    assert "nothing listens" in told
    assert "--host" in fix
    assert "address has changed" in fix


def test_an_address_that_keeps_silent_names_firewall_network_and_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: Any, **__: Any) -> socket.socket:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", silent)
    way = try_way("192.168.1.20", 29500, 0.1)
    assert way == Way(("192.168.1.20",), trouble="nothing came back")
    (_, verdict, told, fix) = judged("192.168.1.20", way)[1]
    assert (verdict, told) == ("fail", "29500 does not answer: nothing came back")
    for word in ("firewall", "Windows", "macOS", "29500/tcp", "same Wi-Fi", "guest network", "address has changed"):
        assert word in fix


def test_what_the_system_says_of_a_network_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> socket.socket:
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    monkeypatch.setattr(socket, "create_connection", unreachable)
    assert try_way("192.168.1.20", 29500).trouble == os.strerror(errno.ENETUNREACH)


def test_a_name_that_nobody_knows_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    ((check, verdict, told, fix),) = judged("laptop", try_way("laptop", 29500))
    assert (check, verdict) == ("address", "fail")
    assert "nobody knows the name laptop" in told
    assert "192.168.1.20:29500" in fix


def test_each_address_of_a_name_is_tried(listener: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def both(name: str, port: int, *_: Any, **__: Any) -> list[Any]:
        addresses = ("127.0.0.2", "127.0.0.1") if name == "laptop" else (name,)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert try_way("laptop", listener).reached == "127.0.0.1"


def test_an_address_of_another_network_is_told_with_what_to_do() -> None:
    far = Way(("10.8.0.7",), trouble="nothing came back")
    (check, verdict, told, fix) = judged("10.8.0.7", far)[0]
    assert (check, verdict) == ("address", "note")
    assert told == "10.8.0.7 is in none of this machine's networks (192.168.1.0/24)"
    assert "same Wi-Fi" in fix


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1", "this machine itself"),
        ("192.168.1.7", "this machine itself"),
        ("192.168.1.20", "in a network of this machine"),
    ],
)
def test_this_machine_is_known_by_its_addresses(address: str, words: str) -> None:
    finding = next(iter(check_way(address, 29500, Way((address,), address, 0.0042), HOME, {"192.168.1.7"})))
    assert (finding.verdict, finding.told) == ("pass", f"{address} is {words}")


@pytest.mark.parametrize(("seconds", "text"), [(0.0042, "4.2 ms"), (0.01, "10 ms"), (1.2, "1200 ms")])
def test_short_times_are_told_in_milliseconds(seconds: float, text: str) -> None:
    assert format_milliseconds(seconds) == text


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("192.168.1.20", True),
        ("192.168.2.20", False),
        ("fd00::7", True),
        ("fd00::7%eth0", True),
        ("::1", True),
        ("127.0.0.5", True),
        ("laptop", False),
    ],
)
def test_near_is_what_is_in_one_of_our_networks(address: str, near: bool) -> None:
    assert is_near(address, HOME) is near


def test_the_networks_of_this_machine_are_read_from_its_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    class Address:
        def __init__(self, address: str, netmask: str | None) -> None:
            self.address, self.netmask = address, netmask

    told = {
        "lo": [Address("127.0.0.1", "255.0.0.0")],
        "wlan0": [Address("192.168.1.7", "255.255.255.0"), Address("aa:bb:cc:dd:ee:ff", None)],
        "tun0": [Address("fe80::1%tun0", "ffff::")],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: told)
    assert own_networks() == [HOME[0]]
