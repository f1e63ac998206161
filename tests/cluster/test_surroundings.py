from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest

from lowmem_seq.cluster import surroundings as module
from lowmem_seq.cluster.surroundings import (
    HIGHEST,
    find_starter,
    interface_towards,
    local_addresses,
    look_around,
    resolve,
)
from tests.cluster.builders import surroundings


class Fake:
    """A process as psutil shows it; what is an error is raised."""

    def __init__(self, words: str | Exception, parent: Fake | None, environment: object = None) -> None:
        self._words, self._parent, self._environment = words, parent, environment
        self.began: float | None = 1000.5

    def cmdline(self) -> list[str]:
        if isinstance(self._words, Exception):
            raise self._words
        return shlex.split(self._words)

    def environ(self) -> object:
        if isinstance(self._environment, Exception):
            raise self._environment
        return self._environment

    def create_time(self) -> float:
        if self.began is None:
            raise psutil.NoSuchProcess(1)
        return self.began

    def parent(self) -> Fake | None:
        return self._parent


@pytest.fixture
def above(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fake | None], None]:
    def put(parent: Fake | None) -> None:
        monkeypatch.setattr(psutil, "Process", lambda: Fake("python -m lowmem_seq", parent))

    return put


def test_the_nearest_launcher_is_found_through_shells_and_windows_second_interpreters(
    above: Callable[[Fake | None], None],
) -> None:
    far = Fake("torchrun --nnodes 3 run.py", None, {"FAR": "1"})
    launcher = Fake("python.exe accelerate.exe launch --num_machines 2 -m lowmem_seq", far, {"NEAR": "1"})
    above(Fake("python.exe -m lowmem_seq train small", Fake("bash run.sh", launcher)))
    starter = find_starter()
    assert starter is not None
    assert starter.command.launcher == "accelerate"
    assert starter.command.options == {"num_machines": "2", "m": ""}
    assert starter.environment == {"NEAR": "1"}


@pytest.mark.parametrize(
    "error", [psutil.AccessDenied(1), psutil.NoSuchProcess(1), psutil.ZombieProcess(1), OSError()]
)
def test_processes_that_may_not_be_read_are_passed_over(
    above: Callable[[Fake | None], None], error: Exception
) -> None:
    above(Fake(error, Fake("torchrun --nnodes 2 run.py", None, error)))
    starter = find_starter()
    assert starter is not None
    assert starter.command.options == {"nnodes": "2"}
    assert starter.environment is None


def test_an_environment_that_is_shown_empty_is_not_believed(above: Callable[[Fake | None], None]) -> None:
    above(Fake("torchrun run.py", None, {}))
    starter = find_starter()
    assert starter is not None
    assert starter.environment is None


def test_no_launcher_is_found_where_there_is_none(above: Callable[[Fake | None], None]) -> None:
    above(None)
    assert find_starter() is None
    endless = Fake("bash", None)
    endless._parent = endless
    above(endless)
    assert find_starter() is None
    farthest: Fake = Fake("torchrun run.py", None)
    for _ in range(HIGHEST - 1):
        farthest = Fake("bash", farthest)
    above(farthest)
    assert find_starter() is not None
    above(Fake("bash", farthest))
    assert find_starter() is None


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("192.168.1.5", "here"),
        ("192.168.1.7", "elsewhere"),
        ("127.0.0.1", "loopback"),
        ("127.0.1.1", "loopback"),
        ("::1", "loopback"),
        ("localhost", "loopback"),
        ("LocalHost.", "loopback"),
        ("0.0.0.0", "everywhere"),
        ("::", "everywhere"),
        ("fd00:0:0::5", "here"),
        ("fd00::5%en0", "here"),
        ("fd00::6", "elsewhere"),
        ("hp", "here"),
        ("hp.home", "here"),
        ("macbook.local", "elsewhere"),
        ("nobody", "unknown"),
    ],
)
def test_an_address_is_here_or_elsewhere_or_can_t_tell(address: str, place: str) -> None:
    assert surroundings().place_of(address) == place


def test_interfaces_addresses_are_told_without_loopback_and_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    told = ["127.0.0.1", "::1", "192.168.1.5", "fe80::1%en0", "a4:83:e7:00:00:01", "00-FF-12-34-56-78", ""]
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"en0": [SimpleNamespace(address=one) for one in told]})
    assert local_addresses() == {"192.168.1.5", "fe80::1"}

    def refuse() -> None:
        raise OSError

    monkeypatch.setattr(psutil, "net_if_addrs", refuse)
    assert local_addresses() == frozenset()


def test_a_name_that_nobody_knows_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("127.0.0.1") == {"127.0.0.1"}
    assert resolve("a" * 70 + ".example") == frozenset()  # no name may be so long

    def fail(*arguments: object) -> None:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert resolve("hp.home") == frozenset()


def test_when_a_launcher_was_started_is_seen(above: Callable[[Fake | None], None]) -> None:
    launcher = Fake("torchrun run.py", None)
    above(launcher)
    starter = find_starter()
    assert starter is not None
    assert starter.began_unix_seconds == 1000.5
    launcher.began = None
    starter = find_starter()
    assert starter is not None
    assert starter.began_unix_seconds is None


def test_the_interface_towards_an_address_is_told_by_its_name() -> None:
    name = interface_towards("127.0.0.1", 29500)
    assert name is not None
    assert "127.0.0.1" in [one.address for one in psutil.net_if_addrs()[name]]
    assert interface_towards("a" * 70 + ".example", 29500) is None


def test_this_process_sees_its_own_surroundings() -> None:
    around = look_around()
    assert around.environment == dict(os.environ)
    assert around.cores == psutil.cpu_count(logical=False)
    assert not any(module._as_address(text) is None for text in around.addresses)
    assert around.place_of("127.0.0.1") == "loopback"
    if around.addresses and sys.platform == "linux":
        assert around.place_of(min(around.addresses)) == "here"
