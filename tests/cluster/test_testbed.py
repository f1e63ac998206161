from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import psutil
import pytest

from tests.cluster import testbed
from tests.cluster.testbed import Machine, Network, freeze, namespaces, network, thaw

pytestmark = pytest.mark.cluster

RECEIVES = """
import socket, sys, time
listening = socket.create_server((sys.argv[1], 7000))
print("ready", flush=True)
peer, _ = listening.accept()
received, began = 0, None
while chunk := peer.recv(1 << 16):
    if began is None:
        began, first = time.perf_counter(), len(chunk)
    received += len(chunk)
    if len(sys.argv) > 2:
        print(received, flush=True)
print("done", received, (received - first) / (time.perf_counter() - began), flush=True)
"""
SENDS = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), timeout=60) as peer:
    left = int(sys.argv[2])
    while left > 0:
        left -= peer.send(bytes(min(left, 1 << 16)))
"""
BYTES_PER_MEGABIT = 125_000
OF_TCP = 1448 / 1514
"""What of a full Ethernet frame is TCP's data: 14 bytes of Ethernet, 20 of IP, 32 of TCP are not."""


def python(machine: Machine, code: str, *arguments: str) -> subprocess.Popen[str]:
    return machine.start(sys.executable, "-I", "-c", code, *arguments, stdout=subprocess.PIPE)


def say(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


class Transfer(NamedTuple):
    """A receiver and a sender."""

    receiver: subprocess.Popen[str]
    sender: subprocess.Popen[str]

    def bytes_per_second(self) -> float:
        """Waits for the end, and tells what came in a second after the first bytes."""
        done, received, rate = say(self.receiver).split()
        assert done == "done"
        assert int(received) > 0
        return float(rate)


def transfer(sender: Machine, receiver: Machine, size: int, *more: str) -> Transfer:
    waiting = python(receiver, RECEIVES, receiver.address, *more)
    assert say(waiting) == "ready"
    return Transfer(waiting, python(sender, SENDS, receiver.address, str(size)))


@pytest.fixture
def net() -> Iterator[Network]:
    with network(2) as made:
        yield made


@pytest.mark.parametrize("megabits", [25, 100])
def test_a_link_lets_as_much_through_as_it_was_told(net: Network, megabits: int) -> None:
    one, two = net.machines
    one.limit(megabits)
    size = megabits * BYTES_PER_MEGABIT  # what passes in one second
    before = one.bytes_sent(), two.bytes_received(), one.bytes_received()
    for sender, receiver in ((one, two), (two, one)):
        rate = transfer(sender, receiver, size).bytes_per_second()
        assert rate == pytest.approx(megabits * BYTES_PER_MEGABIT * OF_TCP, rel=0.1)
    assert size < one.bytes_sent() - before[0] < 1.2 * size
    assert size < two.bytes_received() - before[1] < 1.2 * size
    assert size < one.bytes_received() - before[2] < 1.2 * size


def test_a_limit_can_be_taken_away(net: Network) -> None:
    one, two = net.machines
    one.limit(1)
    one.limit(None)
    one.limit(None)
    assert transfer(one, two, 2_500_000).bytes_per_second() > 10 * BYTES_PER_MEGABIT


def test_airtime_is_shared_by_both_directions_and_all_machines() -> None:
    with network(3) as net:
        net.share_airtime(50)
        one, two, three = net.machines
        before = [machine.bytes_sent() for machine in net.machines]
        began = time.perf_counter()
        for started in (transfer(one, two, 1 << 30), transfer(two, three, 1 << 30), transfer(three, one, 1 << 30)):
            assert started.sender.poll() is None
        time.sleep(2.0)
        sent = sum(machine.bytes_sent() for machine in net.machines) - sum(before)
        rate = sent / (time.perf_counter() - began)
    assert rate == pytest.approx(50 * BYTES_PER_MEGABIT, rel=0.1)


def wait_for_more(process: subprocess.Popen[str], count: int = 20) -> int:
    return [int(say(process)) for _ in range(count)][-1]


@pytest.mark.parametrize(
    ("cut", "mend"), [(Machine.unplug, Machine.plug_in), (Machine.go_out_of_reach, Machine.come_back)]
)
def test_a_cut_link_stops_a_transfer_and_a_mended_one_resumes_it(
    net: Network, cut: Callable[[Machine], None], mend: Callable[[Machine], None]
) -> None:
    one, two = net.machines
    one.limit(25)
    started = transfer(one, two, 4_000_000, "tell")
    wait_for_more(started.receiver)
    cut(two)
    time.sleep(0.3)  # what was under way arrives
    before = two.bytes_received()
    time.sleep(0.5)
    assert two.bytes_received() == before
    assert started.sender.poll() is None
    mend(two)
    assert started.sender.wait(20) == 0
    out, _ = started.receiver.communicate(timeout=20)
    assert out.splitlines()[-1].startswith("done 4000000 ")


def test_carrier_is_lost_by_unplugging_only(net: Network) -> None:
    two = net.machines[1]

    def has_carrier() -> bool:
        return "LOWER_UP" in two.run("ip", "link", "show", testbed.INTERFACE)

    assert has_carrier()
    two.go_out_of_reach()
    assert has_carrier()
    two.come_back()
    two.unplug()
    assert not has_carrier()
    two.plug_in()
    assert has_carrier()


def test_a_frozen_program_s_kernel_still_answers_and_the_program_goes_on_when_thawed(net: Network) -> None:
    one, two = net.machines
    code = "import subprocess, sys; subprocess.run([sys.executable, '-I', '-c', *sys.argv[1:]])"
    receiver = python(two, code, RECEIVES, two.address)
    assert say(receiver) == "ready"
    freeze(receiver)
    stopped = [process.status() for process in testbed._tree(receiver)]
    assert stopped == [psutil.STATUS_STOPPED] * 2
    sender = python(one, SENDS, two.address, "1000")
    assert sender.wait(10) == 0  # connected and sent, though nobody accepted
    thaw(receiver)
    assert say(receiver).startswith("done 1000 ")


def test_machines_see_neither_each_other_s_loopback_nor_the_system_s(net: Network) -> None:
    one, two = net.machines
    code = RECEIVES.replace("(sys.argv[1], 7000)", "('127.0.0.1', 7000)")
    here = subprocess.Popen([sys.executable, "-I", "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert say(here) == "ready"
        there = python(two, code)
        assert say(there) == "ready"
        sender = one.start(sys.executable, "-I", "-c", SENDS, "127.0.0.1", "1", stderr=subprocess.PIPE)
        assert "ConnectionRefusedError" in sender.communicate(timeout=10)[1]
        assert python(two, SENDS, "127.0.0.1", "1").wait(10) == 0
        assert say(there).startswith("done 1 ")
        assert here.poll() is None
    finally:
        here.kill()
        here.communicate()


def test_a_machine_that_moved_is_reached_at_its_new_address(net: Network) -> None:
    one, two = net.machines
    two.move_to("10.77.0.99")
    assert two.address == "10.77.0.99"
    assert transfer(one, two, 1000).receiver.wait(10) == 0


def interfaces() -> set[str]:
    return set(psutil.net_if_addrs())


def test_nothing_is_left_behind_though_a_test_fails() -> None:
    before = interfaces()
    with contextlib.suppress(ZeroDivisionError), network(2) as net:
        stays = "import os, time; os.fork() or os.setsid(); print('up', flush=True); time.sleep(600)"
        started = python(net.machines[0], stays)
        assert [say(started), say(started)] == ["up", "up"]
        alive = [process.pid for process in testbed._tree(started)]
        assert len(alive) == 2
        assert len([name for name in namespaces() if f"{testbed.PREFIX}-{os.getpid()}-" in name]) == 3
        assert interfaces() == before
        raise ZeroDivisionError
    assert not [name for name in namespaces() if f"{testbed.PREFIX}-{os.getpid()}-" in name]
    assert interfaces() == before
    for pid in alive:  # an orphan's zombie is its new parent's to collect
        with contextlib.suppress(psutil.NoSuchProcess):
            assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_what_a_killed_test_left_is_removed_by_the_next() -> None:
    with network(1):
        pass  # skips where there can be none
    code = "import os; from tests.cluster.testbed import network\nwith network(1): os.kill(os.getpid(), 9)"
    killed = subprocess.Popen([sys.executable, "-c", code])
    assert killed.wait(60) == -9
    left = [name for name in namespaces() if f"{testbed.PREFIX}-{killed.pid}-" in name]
    assert len(left) == 2
    with network(1) as living:
        assert not set(left) & set(namespaces())
        assert living.machines[0].namespace in namespaces()


def test_where_there_can_be_no_machines_a_test_is_skipped_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason() -> str:
        testbed.why_not.cache_clear()
        with pytest.raises(pytest.skip.Exception) as caught, network(1):
            pass
        return str(caught.value)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(testbed, "_tool", refuse)
            patch.setattr(shutil, "which", lambda name: name)
            patch.setattr(os, "geteuid", lambda: 0)
            patch.setattr(sys, "platform", "linux")
            assert reason() == "`ip netns add x` fails here: Operation not permitted"
            patch.setattr(shutil, "which", lambda name: None)
            assert reason() == "ip and tc of the package iproute2 not found"
            patch.setattr(os, "geteuid", lambda: 1000)
            assert reason() == "network namespaces need root"
            patch.setattr(sys, "platform", "darwin")
            assert reason() == "network namespaces are Linux's"
    finally:
        testbed.why_not.cache_clear()


def refuse(*words: str) -> str:
    raise subprocess.CalledProcessError(1, ["ip", "netns", "add", "x"], stderr="Operation\nnot permitted\n")
