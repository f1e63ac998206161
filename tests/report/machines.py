"""A run of several machines by its events alone, as their hub, trainers and supervisors write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowmem_seq.cluster.machine import machine_id
from lowmem_seq.runs.folder import RunFolder, create_run
from tests.builders import tiny_config
from tests.report.builders import record_memory, start_session, tell, train_to

CLUSTER, BRANCH = "c0ffeec0ffeec0ff", "b0b0b0b0b0b0b0b0"
BEGIN, TOTAL = 1.8e9, 4000


class Machines:
    """A host, which is the first, and those that join it; each with a clock of its own.

    Args:
        folder: their run folders are made in it.
        names: what they call themselves.
        ahead: seconds by which each one's clock is ahead.
        cluster: its name.
    """

    def __init__(self, folder: Path, *names: str, ahead: tuple[float, ...] = (), cluster: str = CLUSTER) -> None:
        self.names, self.cluster, self.branch = names, cluster, BRANCH
        self.runs = [create_run(folder / f"part-{index}", tiny_config()) for index, _ in enumerate(names)]
        self.ids = [machine_id(f"{index:032x}") for index, _ in enumerate(names)]
        self.ahead = ahead or (0.0,) * len(names)
        self.samples = {machine: [0, 0, 0] for machine in self.ids}
        """Accepted, repeated, discarded."""
        self.moved = {machine: [0, 0] for machine in self.ids}
        """Bytes received and sent by the hub."""
        self.now, self.round, self.step = BEGIN, 0, 0
        self.away: set[int] = set()
        self.stalled = [0.0 for _ in names]

    @property
    def accepted(self) -> int:
        return sum(share[0] for share in self.samples.values())

    def tell(self, index: int, event: str, **details: Any) -> None:
        tell(self.runs[index], event, at=round(self.now + self.ahead[index], 3), **details)

    def tell_member(self, index: int, event: str, alone: bool = False, **details: Any) -> None:
        """Something that a machine's own trainer tells."""
        received, sent = self.moved[self.ids[index]]
        costs = {"bytes_sent": received, "bytes_received": sent, "stalled_seconds": self.stalled[index]}
        self.tell(index, event, **details, **costs, longest_stall_seconds=self.stalled[index] / 2, alone=alone)

    def open(self) -> None:
        """The host begins, and the others join, a second after each other."""
        self.tell(0, "session_opened", supervisor_pid=1)
        self.tell(0, "cluster_open", port=29500)
        for index, _ in enumerate(self.names):
            self.join(index)
        self.stand()

    def join(self, index: int) -> None:
        """A machine's trainer begins."""
        self.now += 1
        if index:
            self.tell(index, "session_opened", supervisor_pid=1)
        where: dict[str, Any] = {"round": self.round, "accepted": self.accepted}
        machine, name = self.ids[index], self.names[index]
        self.tell(0, "peer_joined", machine=machine, name=name, cause="hello", **where)
        if index:
            self.tell_member(index, "member_welcome", **where)
        self.tell(index, "peers_present", others=index)
        self.tell_member(index, "member_begins", cluster=self.cluster, machine=machine, name=name, hosts=not index)
        start_session(self.runs[index], self.step, at=self.now + self.ahead[index])
        for other in range(index):
            self.tell(other, "peers_present", others=index)

    def stand(self) -> None:
        """Who did what is told, on each machine."""
        shares = self._shares()
        for index in {*range(len(self.names))} - self.away:
            told: dict[str, Any] = {
                "cluster": self.cluster,
                "branch": self.branch,
                "round": self.round,
                "total": TOTAL,
            }
            if index:
                self.tell_member(index, "standing", **told, accepted=self.accepted, machines=shares)
                continue
            lines = {
                machine: {**share, "bytes_received": self.moved[machine][0], "bytes_sent": self.moved[machine][1]}
                for machine, share in shares.items()
            }
            self.tell(index, "standing", **told, accepted=self.accepted, machines=lines)

    def _shares(self) -> dict[str, dict[str, Any]]:
        counted = zip(self.names, self.samples.items(), strict=True)
        return {
            machine: {"name": name, "accepted": accepted, "repeated": repeated, "discarded": discarded}
            for name, (machine, (accepted, repeated, discarded)) in counted
        }

    def train(self, *samples: int, seconds: float = 60.0) -> None:
        """A round in which each machine trained so many samples, and exchanged a thousand bytes each way."""
        self.now += seconds
        self.round += 1
        for index, count in enumerate(samples):
            self.samples[self.ids[index]][0] += count
            self.moved[self.ids[index]][0] += 1000
            self.moved[self.ids[index]][1] += 1000
            self.stalled[index] += 0.5
        self.step = self.accepted // 40
        brought = [machine for machine, count in zip(self.ids, samples, strict=False) if count]
        told: dict[str, Any] = {"round": self.round, "samples": sum(samples), "accepted": self.accepted}
        self.tell(0, "round", **told, machines=brought, seconds=seconds, waited_seconds=0.1)
        for index, count in enumerate(samples):
            if not count:
                continue
            self.tell_member(index, "member_round", **told, machines=len(brought), own_samples=count)
            at = self.now + self.ahead[index]
            loss, rate = 2.0 / (1 + self.round) + 0.1 * index, count / seconds
            train_to(self.runs[index], self.step, loss=loss, rate=rate, at=at, learning_rate=0.1)
            record_memory(self.runs[index], 10**8 * (index + 3), 10**8 * (index + 4), at=at)
        self.stand()

    def part(self, index: int, samples: int, seconds: float = 120.0) -> None:
        """A machine loses the host, and does so many samples on a side of its own."""
        told: dict[str, Any] = {"cluster": self.cluster, "branch": f"{index:016x}", "total": TOTAL}
        for done in (0, samples):
            shares = self._shares()
            shares[self.ids[index]]["accepted"] += done
            accepted, number = self.accepted + done, self.round + bool(done)
            if not done:
                self.tell_member(index, "member_alone", alone=True, accepted=accepted)
                lost = {"machine": self.ids[index], "name": self.names[index], "cause": "silent"}
                self.tell(0, "peer_lost", **lost)
                self.away.add(index)
                self.tell(0, "peers_present", others=len(self.names) - 1 - len(self.away))
            self.tell_member(
                index, "standing", alone=True, **told, round=number, accepted=accepted, machines=shares
            )
            self.now += seconds * (not done)

    def meet(self, index: int, discarded: int) -> None:
        """It finds the host again, whose side has more samples."""
        self.away.discard(index)
        self.tell(0, "peers_present", others=len(self.names) - 1 - len(self.away))
        self.samples[self.ids[index]][2] += discarded
        where: dict[str, Any] = {"round": self.round, "accepted": self.accepted}
        self.tell(0, "peer_joined", machine=self.ids[index], name=self.names[index], cause="hello", **where)
        self.tell_member(index, "member_welcome", alone=True, **where)
        self.tell_member(index, "member_reunion", winner="hub", discarded=discarded)
        self.tell(0, "reunion", machine=self.ids[index], winner="hub", discarded=discarded)
        self.stand()

    def end(self, state: str = "finished") -> None:
        """All end; where the run is finished they test the same weights."""
        self.now += 5
        self.tell(0, "finished", round=self.round, accepted=self.accepted)
        for index, run in enumerate(self.runs):
            self.tell_member(index, "member_ends", reason=state)
            if state == "finished":
                tested = {"test_loss": 1.1, "test_accuracy": 0.6, "class_accuracies": [0.5, 0.7]}
                tested |= {"confusion": [[1, 1], [3, 7]], "weights_sha256": "ab"}
                self.tell(index, "test", step=self.step, epoch=6.0, seconds=2.0, **tested)
            wall = self.now - BEGIN
            self.tell(index, "session_ended", state=state, step=self.step, wall_seconds=wall)
            self.runs[index] = RunFolder(run.path)


def a_night(folder: Path, *names: str, **more: Any) -> Machines:
    """Two machines: six rounds, of which the joiner is away for two, and discards what it did alone."""
    machines = Machines(folder, *(names or ("macbook", "hp")), **more)
    machines.open()
    machines.train(300, 100)
    machines.train(300, 100)
    machines.part(1, 150)
    machines.train(400, 0)
    machines.meet(1, 150)
    machines.train(300, 100)
    machines.end()
    return machines
