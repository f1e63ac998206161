"""Machines in one Linux kernel, for tests: network namespaces, joined by a switch, with slow and broken links.

    with network(2) as net:
        net.share_airtime(50.0)
        one, two = net.machines
        process = one.start(sys.executable, "-m", "lowmem_seq", "train", "small", "--host")
        two.unplug()

The switch is a bridge in a namespace of its own, so nothing of the system that runs the tests is touched, and all
is gone when the namespaces are. It needs Linux, root, and `ip` and `tc` (Debian's package iproute2); elsewhere a
test is skipped, and says why. Shaping is by tbf: netem is not in every kernel.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

PREFIX = "lowmem-seq-test"
NAMES = re.compile(rf"{PREFIX}-(\d+)-\d+-\w+")
"""The number is the process that made it: what one left that was killed is found by the next."""
INTERFACE = "eth0"
NO_IPV6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
QUEUE_MILLISECONDS = 50
LEAST_BURST_BYTES = 16 * 1024
BURST_SECONDS = 0.002
SECONDS_FOR_A_COMMAND = 20.0
SECONDS_TO_END = 10.0
AT_REST = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
_numbers = itertools.count()


@dataclass
class Machine:
    """A namespace with one interface, whose other end is a port of the switch.

    Args:
        namespace: its name, for `ip -n` and `ip netns exec`.
        address: its IPv4 address.
        switch: the switch's namespace.
        port: its port at the switch.
    """

    namespace: str
    address: str
    switch: str
    port: str
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *words: str, **settings: Any) -> subprocess.Popen[str]:
        """Start a program on the machine; its process is the one returned, and is killed at the end at the latest.

        Args:
            words: the command line.
            settings: of subprocess.Popen; stdout and stderr are text.
        """
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *words], **{"text": True, "start_new_session": True, **settings}
        )
        self._started.append(process)
        return process

    def run(self, *words: str, seconds: float = SECONDS_FOR_A_COMMAND) -> str:
        """Return what a program prints on the machine.

        Raises:
            subprocess.CalledProcessError: it failed.
            subprocess.TimeoutExpired: it took longer.
        """
        return _tool("ip", "netns", "exec", self.namespace, *words, seconds=seconds)

    def limit(self, megabits: float | None) -> None:
        """Let no more than this through the link a second, in each direction; None: as fast as it goes."""
        for namespace, device in ((self.namespace, INTERFACE), (self.switch, self.port)):
            _shape(namespace, device, megabits)

    def unplug(self) -> None:
        """Take the link down: both ends notice that there is no carrier."""
        _tool("ip", "-n", self.switch, "link", "set", self.port, "down")

    def plug_in(self) -> None:
        """Take the link up again."""
        _tool("ip", "-n", self.switch, "link", "set", self.port, "up")

    def go_out_of_reach(self) -> None:
        """Let packets vanish in both directions; neither end notices anything."""
        _tool("ip", "-n", self.switch, "link", "set", self.port, "nomaster")

    def come_back(self) -> None:
        """Let packets through again."""
        _tool("ip", "-n", self.switch, "link", "set", self.port, "master", "switch")

    def move_to(self, address: str) -> None:
        """Give the machine another IPv4 address; connections from and to the old one are never heard of again."""
        _tool("ip", "-n", self.namespace, "address", "flush", "dev", INTERFACE)
        _tool("ip", "-n", self.namespace, "address", "add", f"{address}/24", "dev", INTERFACE)
        self.address = address

    def bytes_sent(self) -> int:
        """Return the bytes that left the machine, with Ethernet's headers, without those that were dropped."""
        return self._counted("tx")

    def bytes_received(self) -> int:
        """Return the bytes that reached the machine, with Ethernet's headers."""
        return self._counted("rx")

    def _counted(self, direction: str) -> int:
        told = json.loads(_tool("ip", "-n", self.namespace, "-s", "-j", "link", "show", INTERFACE))
        return int(told[0]["stats64"][direction]["bytes"])


@dataclass(frozen=True)
class Network:
    """Machines at one switch.

    Args:
        machines: in the order of their addresses, 10.77.0.1 and so on.
        switch: the switch's namespace.
    """

    machines: tuple[Machine, ...]
    switch: str

    def share_airtime(self, megabits: float) -> None:
        """Let no more than this through all links together a second, both directions counted, as Wi-Fi does."""
        inside = ("-n", self.switch)
        _tool("ip", *inside, "link", "add", "air", "type", "ifb")
        _tool("ip", *inside, "link", "set", "air", "up")
        _shape(self.switch, "air", megabits)
        for machine in self.machines:
            _tool("tc", *inside, "qdisc", "add", "dev", machine.port, "handle", "ffff:", "ingress")
            everything = ("u32", "match", "u32", "0", "0")
            to_air = (*everything, "action", "mirred", "egress", "redirect", "dev", "air")
            _tool(
                "tc", *inside, "filter", "add", "dev", machine.port, "parent", "ffff:", "protocol", "all", *to_air
            )


@contextlib.contextmanager
def network(count: int) -> Iterator[Network]:
    """Make machines, and remove them and everything that runs on them at the end.

    Args:
        count: machines, at most 250.

    Raises:
        pytest.skip.Exception: there can be no such machines here.
    """
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    remove_leftovers()
    with _network(count) as made:
        yield made


@contextlib.contextmanager
def _network(count: int) -> Iterator[Network]:
    prefix = f"{PREFIX}-{os.getpid()}-{next(_numbers)}"
    switch = f"{prefix}-switch"
    machines = tuple(
        Machine(f"{prefix}-{number}", f"10.77.0.{number}", switch, f"port{number}")
        for number in range(1, count + 1)
    )
    try:
        _tool("ip", "netns", "add", switch)
        _tool("ip", "netns", "exec", switch, "sh", "-c", f"echo 1 > {NO_IPV6}")  # else its ports chatter when free
        _tool("ip", "-n", switch, "link", "add", "switch", "type", "bridge", "forward_delay", "0")
        _tool("ip", "-n", switch, "link", "set", "switch", "up")
        for machine in machines:
            _add(machine)
        yield Network(machines, switch)
    finally:
        for machine in machines:
            _end(machine)
        for namespace in (switch, *(machine.namespace for machine in machines)):
            _remove(namespace)


def _add(machine: Machine) -> None:
    inside = ("ip", "-n", machine.namespace)
    _tool("ip", "netns", "add", machine.namespace)
    peer = ("peer", "name", INTERFACE, "netns", machine.namespace)
    _tool("ip", "-n", machine.switch, "link", "add", machine.port, "type", "veth", *peer)
    _tool("ip", "-n", machine.switch, "link", "set", machine.port, "master", "switch", "up")
    _tool(*inside, "link", "set", "lo", "up")
    _tool(*inside, "address", "add", f"{machine.address}/24", "dev", INTERFACE)
    _tool(*inside, "link", "set", INTERFACE, "up")


def _shape(namespace: str, device: str, megabits: float | None) -> None:
    at = ("-n", namespace, "qdisc")
    if megabits is None:
        with contextlib.suppress(subprocess.CalledProcessError):  # there was no limit
            _tool("tc", *at, "del", "dev", device, "root")
        return
    burst = max(LEAST_BURST_BYTES, round(megabits * 125_000 * BURST_SECONDS))
    settings = ("rate", f"{round(megabits * 1000)}kbit", "burst", str(burst), "latency", f"{QUEUE_MILLISECONDS}ms")
    _tool("tc", *at, "replace", "dev", device, "root", "tbf", *settings)


def freeze(process: subprocess.Popen[str]) -> None:
    """Stop a program and all that it started, as a closed lid does; the kernel goes on answering for it.

    Raises:
        TimeoutError: they don't stop.
    """
    until = time.monotonic() + SECONDS_TO_END
    while running := [one for one in _tree(process) if one.status() not in AT_REST]:
        if time.monotonic() > until:
            raise TimeoutError(f"{running} don't stop")
        for one in running:
            one.suspend()  # which comes about later, and a process may start one more before it does


def thaw(process: subprocess.Popen[str]) -> None:
    """Let a program that was frozen go on, the youngest of its processes first."""
    for one in reversed(_tree(process)):
        one.resume()


def _tree(process: subprocess.Popen[str]) -> list[psutil.Process]:
    first = psutil.Process(process.pid)
    return [first, *first.children(recursive=True)]


@functools.cache
def why_not() -> str | None:
    """Return why there can be no network of machines here, None where there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} of the package iproute2 not found"
    try:
        with _network(1) as tried:
            tried.machines[0].limit(10.0)
            tried.share_airtime(10.0)
            tried.machines[0].run("true")
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` fails here: {' '.join(str(error.stderr).split())}"
    return None


def remove_leftovers() -> None:
    """Remove what processes left that are no more."""
    for name in namespaces():
        if (owner := NAMES.fullmatch(name)) is not None and not psutil.pid_exists(int(owner[1])):
            _remove(name)


def namespaces() -> list[str]:
    """Return the names of all of this system's named network namespaces."""
    return [line.split()[0] for line in _tool("ip", "netns", "list").splitlines()]


def _end(machine: Machine) -> None:
    """Kill what was started on a machine, and collect it."""
    _kill_all(machine.namespace)
    for process in machine._started:
        process.wait(SECONDS_TO_END)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _kill_all(namespace: str) -> None:
    """Kill every process in a namespace; it is ours, so they are."""
    until = time.monotonic() + SECONDS_TO_END
    while (found := _pids(namespace)) and time.monotonic() < until:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _pids(namespace: str) -> list[int]:
    with contextlib.suppress(subprocess.CalledProcessError):  # it was never made
        return [
            pid
            for pid in map(int, _tool("ip", "netns", "pids", namespace).split())
            if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        ]
    return []


def _remove(namespace: str) -> None:
    _kill_all(namespace)
    with contextlib.suppress(subprocess.CalledProcessError):  # it was never made
        _tool("ip", "netns", "delete", namespace)


def _tool(*words: str, seconds: float = SECONDS_FOR_A_COMMAND) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=seconds).stdout
