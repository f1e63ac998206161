"""Members and the hub together, in one process, over loopback: a tiny quadratic model is trained."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lowmem_seq.cluster.hub import Hub
from lowmem_seq.cluster.hub_end import HubEnd
from lowmem_seq.cluster.layout import Floats, Layout
from lowmem_seq.cluster.member import Member
from lowmem_seq.cluster.member_settings import MemberSettings
from lowmem_seq.cluster.messages import Settings
from lowmem_seq.cluster.ranges import Range, Ranges
from lowmem_seq.cluster.serving import CLUSTER_FOLDER, START_FILE, Serving, write_serving
from lowmem_seq.cluster.token import machine_id
from tests.cluster.pocket_hub import zeros
from tests.cluster.vectors import vector_of
from tests.cluster.wires import TOKEN, Relay

LAYOUT = Layout.of_shapes({"bias": [7], "weight": [300]})
FIRST = vector_of(LAYOUT.elements, spread=1.0)
GOAL = np.float32(3)
BATCH, TOTAL = 8, 6000
SETTINGS = Settings(0.3, 0.05, 1.0, "int8", 1, "plain", 1.0, 0.0)
HOST, JOINER = "11" * 16, "22" * 16
SECONDS = 40.0


class Served:
    """A hub in a thread."""

    def __init__(self, folder: Path, port: int = 0, total: int = TOTAL) -> None:
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        serving = Serving(1, 0, machine_id(HOST), "0.1.0", "e0" * 8, "d0" * 8, total, 1000, SETTINGS)
        write_serving(folder, serving)
        (folder / CLUSTER_FOLDER).mkdir(exist_ok=True)
        save_file(dict(LAYOUT.views(FIRST)), folder / CLUSTER_FOLDER / START_FILE)
        self.end = HubEnd(TOKEN, port, "127.0.0.1")
        self.port = self.end.port
        self.hub = Hub(folder, serving, self.end, self.events.append)
        self._over = self._killed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def weights(self) -> Floats:
        assert self.hub.desk.rounds is not None
        return self.hub.desk.rounds.weights.base

    @property
    def round(self) -> int:
        return self.hub.desk.base.round

    def told(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]

    def stop(self, killed: bool = False) -> None:
        self._over, self._killed = True, killed
        self._thread.join()

    def _run(self) -> None:
        while not self._over:
            self.hub.step(0.05)
        if not self._killed:
            self.hub.stop()
        self.hub.close()
        self.end.close(0 if self._killed else 1.0)


class Machine:
    """A member in a thread with its training: each step goes a little towards the goal."""

    def __init__(
        self, port: int, key: str, step_seconds: float = 0.004, goes_on_from: Machine | None = None
    ) -> None:
        self.member = Member(
            MemberSettings(
                TOKEN, "127.0.0.1", port, key, key[:2], "0.1.0", "2.13.0", "3.12.1", "Linux", "e0" * 8, "d0" * 8,
                "cpu", "fp32", BATCH,
            ),
            LAYOUT,
            lambda event: self.events.append(event),
        )  # fmt: skip
        self.step_seconds = step_seconds
        self.events: list[dict[str, Any]] = []
        self.tensors = zeros(LAYOUT)
        if goes_on_from is not None:
            self.member.restore(*goes_on_from.member.checkpoint())
            self.tensors = goes_on_from.tensors
        self.trained: list[Range] = []
        self.failure: BaseException | None = None
        self.longest_wait = 0.0
        self.stop_wanted = self.killed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def weights(self) -> Floats:
        flat = np.empty(LAYOUT.elements, np.float32)
        LAYOUT.flatten(self.tensors, flat)
        return flat

    def told(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), self.events
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        self.stop_wanted = True
        self.join()

    def kill(self) -> None:
        """Have it end without a word."""
        self.killed = True
        self.stop()

    def _stop_wanted(self) -> bool:
        return self.stop_wanted

    def _run(self) -> None:
        try:
            self.member.join(SECONDS)
            self.member.adopt(self.tensors, self._stop_wanted)
            self._train()
            if self.killed:
                self.member.close()
                return
            self.member.end(self.tensors, "finished" if self.member.finished else "stopped")
        except BaseException as error:
            self.failure = error
            self.member.close()

    def _train(self) -> None:
        while not (self.member.finished or self.stop_wanted):
            before = time.monotonic()
            ranges = self.member.take(BATCH, self._stop_wanted)
            self.longest_wait = max(self.longest_wait, time.monotonic() - before)
            if ranges:
                for tensor in self.tensors.values():
                    tensor += (GOAL - tensor) * np.float32(0.01)
                time.sleep(self.step_seconds)
                self.member.trained(ranges, self.step_seconds)
                self.trained += ranges
            self.member.between_steps(self.tensors)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    if not made._over:
        made.stop(killed=True)


def wait_for(ready: Callable[[], bool], *machines: Machine) -> None:
    deadline = time.monotonic() + SECONDS
    while not ready():
        for machine in machines:
            if machine.failure is not None:
                raise machine.failure
        assert time.monotonic() < deadline, [machine.events for machine in machines]
        time.sleep(0.01)


def test_two_machines_train_one_model(served: Served) -> None:
    host, joiner = Machine(served.port, HOST), Machine(served.port, JOINER, step_seconds=0.012)
    host.join()
    joiner.join()
    trained = Ranges([*host.trained, *joiner.trained])  # which refuses what was trained twice
    assert list(trained) == [(0, TOTAL)]
    assert host.weights.tobytes() == joiner.weights.tobytes() == served.weights.tobytes()
    assert abs(host.weights - GOAL).max() < 0.1
    shares = [sum(end - start for start, end in machine.trained) for machine in (host, joiner)]
    assert shares[0] > 1.5 * shares[1]
    assert served.round >= 3
    assert host.told("member_begins_anew") == joiner.told("member_begins_anew") == []
    told = joiner.told("standing")[-1]
    assert told["accepted"] == sum(one["accepted"] for one in told["machines"].values()) <= TOTAL
    assert {one["name"] for one in told["machines"].values()} == {HOST[:2], JOINER[:2]}
    assert len({(one["round"], one["accepted"]) for one in joiner.told("standing")}) == len(joiner.told("standing"))
    assert 0 < told["longest_stall_seconds"] <= told["stalled_seconds"]


def test_both_ends_count_the_same_bytes(served: Served) -> None:
    host, joiner = Machine(served.port, HOST), Machine(served.port, JOINER)
    host.join()
    joiner.join()
    served.stop()
    told = served.told("standing")[-1]["machines"]
    for machine, key in ((host, HOST), (joiner, JOINER)):
        counted = told[machine_id(key)]
        assert counted["bytes_received"] == machine.member.bytes_sent > FIRST.nbytes
        assert counted["bytes_sent"] >= machine.member.bytes_received > FIRST.nbytes


def test_a_machine_that_joins_late_and_leaves_early(served: Served) -> None:
    host = Machine(served.port, HOST)
    wait_for(lambda: served.round >= 2, host)
    joiner = Machine(served.port, JOINER)
    wait_for(lambda: len(joiner.trained) > 20, host, joiner)
    joiner.stop()
    accepted = served.hub.desk.ledger.standing().by_machine[machine_id(JOINER)].accepted
    assert accepted == sum(end - start for start, end in joiner.trained)
    host.join()
    assert list(Ranges([*host.trained, *joiner.trained])) == [(0, TOTAL)]
    assert host.weights.tobytes() == served.weights.tobytes()


def test_a_cut_link_costs_nobody_a_step(served: Served) -> None:
    relay = Relay(served.port)
    host, joiner = Machine(served.port, HOST), Machine(relay.port, JOINER)
    for number in (2, 3, 4):
        wait_for(lambda: served.round >= number, host, joiner)  # noqa: B023
        relay.cut()
    host.join()
    joiner.join()
    assert list(Ranges([*host.trained, *joiner.trained])) == [(0, TOTAL)]
    assert host.weights.tobytes() == joiner.weights.tobytes() == served.weights.tobytes()
    assert joiner.longest_wait < 1.5
    relay.close()


def test_a_machine_that_was_away_for_long_loses_to_the_others(served: Served) -> None:
    relay = Relay(served.port)
    host, joiner = Machine(served.port, HOST), Machine(relay.port, JOINER, step_seconds=0.02)
    wait_for(lambda: served.round >= 2 and len(joiner.trained) > 5, host, joiner)
    relay.silent = True
    relay.cut()
    wait_for(lambda: joiner.member.alone, host, joiner)
    wait_for(lambda: bool(joiner.member.checkpoint()[1]["base"]["round"] > served.round - 5), host, joiner)
    wait_for(lambda: len([one for one in joiner.told("standing") if one["alone"]]) > 1, host, joiner)
    relay.silent = False
    relay.cut()
    host.join()
    joiner.join()
    alone = [one for one in joiner.told("standing") if one["alone"]]
    assert len({one["branch"] for one in alone}) == 1
    assert alone[0]["branch"] != served.told("standing")[-1]["branch"]
    assert not joiner.told("standing")[-1]["alone"]
    assert host.weights.tobytes() == joiner.weights.tobytes() == served.weights.tobytes()
    assert joiner.longest_wait < 2
    assert [one["winner"] for one in joiner.told("member_reunion")] == ["hub"]
    relay.close()


def test_a_hub_that_was_killed_is_brought_up_to_date(served: Served, tmp_path: Path) -> None:
    host, joiner = Machine(served.port, HOST), Machine(served.port, JOINER)
    wait_for(lambda: served.round >= 2, host, joiner)
    served.stop(killed=True)
    wait_for(lambda: host.member.alone and joiner.member.alone, host, joiner)
    again = Served(tmp_path, served.port)
    wait_for(lambda: not (host.member.alone or joiner.member.alone), host, joiner)
    wait_for(lambda: again.round >= 2, host, joiner)
    host.join()
    joiner.join()
    assert host.weights.tobytes() == joiner.weights.tobytes() == again.weights.tobytes()
    assert abs(host.weights - GOAL).max() < 0.1
    again.stop()
    winners = [one["winner"] for machine in (host, joiner) for one in machine.told("member_reunion")]
    assert "member" in winners  # both, where the second one had come further alone


def test_a_checkpoint_that_has_come_further_than_the_hub_is_kept(served: Served, tmp_path: Path) -> None:
    host = Machine(served.port, HOST)
    wait_for(lambda: served.round >= 3, host)
    served.stop(killed=True)
    host.stop()
    reached = host.member.checkpoint()[1]["base"]["accepted"]
    again = Served(tmp_path, served.port)
    assert again.hub.desk.base.accepted < reached
    host = Machine(again.port, HOST, goes_on_from=host)
    wait_for(lambda: bool(host.told("member_reunion")), host)
    assert again.hub.desk.base.accepted >= reached
    assert [one["winner"] for one in host.told("member_reunion")] == ["member"]
    host.join()
    assert host.weights.tobytes() == again.weights.tobytes()
    again.stop()


def test_a_restarted_machine_repeats_only_what_was_not_merged(served: Served) -> None:
    host, joiner = Machine(served.port, HOST), Machine(served.port, JOINER)
    wait_for(lambda: served.round >= 2, host, joiner)
    joiner.kill()
    joiner = Machine(served.port, JOINER, goes_on_from=joiner)
    host.join()
    joiner.join()
    assert host.weights.tobytes() == joiner.weights.tobytes() == served.weights.tobytes()
    standing = served.hub.desk.ledger.standing()
    assert standing.all_machines.accepted == TOTAL
