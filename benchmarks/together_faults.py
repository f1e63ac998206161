"""Two machines of one run, disturbed at random: `python -m benchmarks.together_faults --minutes 30`.

Each machine is a network namespace and one core, as in together.py. Now and then one of them is killed with all its
processes, loses its trainer, is frozen with its link up or down, unplugged, put out of reach, or cut off while a
transfer is under way; seconds later it comes back. What the other one does meanwhile is seen from outside, by the
processor time of its trainer: where that stands still it stalls. The same time is the measure of what both could
have done: each second of it is worth as many images as when both train alone, before.

The outcome is appended to docs/together-faults.json; the table in docs/results.md is made of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks.kills import trainer_of
from benchmarks.page import ROOT, commit, describe_machine, machine, put_between_marks
from benchmarks.together import PORT, WORKLOADS, Session, sessions
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.files import read_json, write_json
from tests.cluster.testbed import Machine, Network, freeze, network, thaw, why_not

DATA_FILE = ROOT / "docs" / "together-faults.json"
MEGABITS = 50.0
LOOK_SECONDS = 0.25
BUSY, IDLE = 0.5, 0.15
"""Share of a core: a trainer that reached the first trains; one below the second stands still."""
CALM_SECONDS, AWAY_SECONDS = (20.0, 60.0), (4.0, 40.0)
"""Between two faults, and until a machine comes back."""
ALONE_SECONDS = 60.0
SETTINGS = ("--set", "cluster.round=15s", "--set", "cluster.lost_after=6s", "--set", "checkpoint.every=30s")
MOST_STALL_SECONDS, LEAST_GOODPUT = 5.0, 0.95


@dataclass
class Watched:
    """A machine of the run, as it is seen from outside."""

    place: Machine
    session: Session
    core: int
    goes_on_by: list[str]
    """The command that resumes its run."""
    token: str
    is_away: bool = False
    """Whether something is being done to it."""
    is_victim: bool = False
    """Whether the newest fault is its own: what it waits for afterwards is no stall of a survivor."""
    trained_seconds: float = 0.0
    """Processor time of its trainers, while it was not away."""
    stalls: list[float] = field(default_factory=list)
    """Seconds for which its trainer stood still while the other machine was away, or after it had come back."""
    _trainer: psutil.Process | None = None
    _before: float = 0.0
    _trains: bool = False
    _still_since: float | None = None

    def look(self, now: float, seconds: float) -> None:
        """Take a look at the trainer, so many seconds after the one before."""
        try:
            if self._trainer is None or not self._trainer.is_running():
                self._trainer, self._trains, self._before = trainer_of(self.session.process), False, 0.0
            if self._trainer is None:
                return
            times = self._trainer.cpu_times()
        except psutil.Error:
            self._trainer = None
            return
        used, self._before = times.user + times.system - self._before, times.user + times.system
        self._trains = self._trains or used > BUSY * seconds
        if not self._trains:
            return
        if not self.is_away:
            self.trained_seconds += used
        stands_still = used < IDLE * seconds and not self.is_victim
        if stands_still and self._still_since is None:
            self._still_since = now - seconds
        elif not stands_still and self._still_since is not None:
            self.stalls.append(now - self._still_since)
            self._still_since = None

    def start_again(self) -> None:
        """Go on with its run, after it was killed."""
        self.session = Session(self.place, self.core, self.goes_on_by, self.session.run, self.token)

    def count(self, *kinds: str) -> int:
        """Return how many events of these kinds it recorded."""
        return sum(len(self.session.events(kind)) for kind in kinds)


Fault = Callable[[Watched, float], None]


def killed(victim: Watched, seconds: float) -> None:
    """As by a power cut."""
    victim.session.stop()
    time.sleep(seconds)
    victim.start_again()


def trainer_killed(victim: Watched, seconds: float) -> None:
    """Its supervisor starts another."""
    with contextlib.suppress(psutil.Error):
        if (trainer := trainer_of(victim.session.process)) is not None:
            trainer.kill()
    time.sleep(seconds)


def frozen(victim: Watched, seconds: float) -> None:
    """As by a process that hangs: the kernel still answers for it."""
    freeze(victim.session.process)
    time.sleep(seconds)
    thaw(victim.session.process)


def asleep(victim: Watched, seconds: float) -> None:
    """As by a closed lid: frozen, and its link down."""
    victim.place.unplug()
    frozen(victim, seconds)
    victim.place.plug_in()


def unplugged(victim: Watched, seconds: float) -> None:
    """Both ends notice that there is no carrier."""
    victim.place.unplug()
    time.sleep(seconds)
    victim.place.plug_in()


def out_of_reach(victim: Watched, seconds: float) -> None:
    """Packets vanish, and nobody notices."""
    victim.place.go_out_of_reach()
    time.sleep(seconds)
    victim.place.come_back()


def cut_in_a_transfer(victim: Watched, seconds: float) -> None:
    """Unplugged as soon as half a megabyte went through within a moment."""
    until = time.monotonic() + 30.0
    before = victim.place.bytes_sent() + victim.place.bytes_received()
    while time.monotonic() < until:
        time.sleep(0.1)
        now = victim.place.bytes_sent() + victim.place.bytes_received()
        if now - before > 500_000:
            break
        before = now
    unplugged(victim, seconds)


FAULTS: dict[str, Fault] = {
    "killed": killed,
    "trainer killed": trainer_killed,
    "frozen": frozen,
    "asleep": asleep,
    "unplugged": unplugged,
    "out of reach": out_of_reach,
    "cut in a transfer": cut_in_a_transfer,
}


@contextlib.contextmanager
def watching(machines: list[Watched]) -> Iterator[None]:
    """Look at the machines again and again meanwhile."""
    over = threading.Event()

    def watch() -> None:
        before = time.monotonic()
        while not over.wait(LOOK_SECONDS):
            now = time.monotonic()
            for one in machines:
                one.look(now, now - before)
            before = now

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def images_a_second_of_work(net: Network) -> float:
    """Return what a second of a trainer's processor time is worth: both machines train alone, at the same time."""
    workload = WORKLOADS[0]
    with sessions(net.machines, [workload.command] * 2) as pair:
        for session in pair:
            session.wait_for("train", 2)
        trainers = [trainer_of(session.process) for session in pair]

        def reading() -> tuple[int, float]:
            last = [session.events("train")[-1]["images_seen"] for session in pair]
            times = [one.cpu_times() for one in trainers if one is not None]
            return sum(last), sum(one.user + one.system for one in times)

        images, seconds = reading()
        time.sleep(ALONE_SECONDS)
        images_after, seconds_after = reading()
    return (images_after - images) / (seconds_after - seconds)


def disturb(net: Network, seconds: float, draws: random.Random) -> dict[str, Any]:
    """Train with two machines for so long, with faults; return what came of it."""
    at = f"{net.machines[0].address}:{PORT}"
    parts = (["--host", "--port", str(PORT)], ["--join", at])
    shared = [*WORKLOADS[0].command, *SETTINGS]
    faults: Counter[str] = Counter()
    with sessions(net.machines, [[*shared, *part] for part in parts]) as pair:
        watched = [
            Watched(place, session, core, ["resume", str(session.run), *part], session.token)
            for core, (place, session, part) in enumerate(zip(net.machines, pair, parts, strict=True))
        ]
        for session in pair:
            session.wait_for("train", 2)
        wait_for_round_of_both(pair[0])
        began_at = accepted(watched)
        for one in watched:
            one.look(time.monotonic(), LOOK_SECONDS)
            one.trained_seconds = 0.0
        lost_before = [one.count(*LOSSES) for one in watched]
        survivors_losses = 0
        until = time.monotonic() + seconds
        with watching(watched):
            while time.monotonic() < until:
                time.sleep(draws.uniform(*CALM_SECONDS))
                number, name = draws.randrange(2), draws.choice(list(FAULTS))
                victim, survivor = watched[number], watched[1 - number]
                victim.is_victim, survivor.is_victim = True, False
                victim.is_away = True
                lost = survivor.count(*LOSSES)
                FAULTS[name](victim, draws.uniform(*AWAY_SECONDS))
                victim.is_away = False
                survivors_losses += survivor.count(*LOSSES) - lost
                faults[f"{('host', 'joiner')[number]} {name}"] += 1
                print(json.dumps({"fault": name, "of": number, "accepted": accepted(watched)}), flush=True)
            time.sleep(CALM_SECONDS[1])
        done = accepted(watched) - began_at
        for one in reversed(watched):
            one.session.interrupt()
        pair[:] = [one.session for one in watched]
        counts = Ledger.from_json(newest_ledger(watched)).history.by_machine()
    stalls = [stall for one in watched for stall in one.stalls]
    return {
        "seconds": seconds,
        "faults": dict(faults),
        "images": done,
        "trained_seconds": sum(one.trained_seconds for one in watched),
        "stalls": len(stalls),
        "longest_stall_seconds": max(stalls, default=0.0),
        "survivors_losses": survivors_losses,
        "losses": sum(one.count(*LOSSES) for one in watched) - sum(lost_before),
        "repeated": sum(one.repeated for one in counts.values()),
        "discarded": sum(one.discarded for one in counts.values()),
    }


LOSSES = ("trainer_restarted", "member_begins_anew")
"""Events of a machine that has lost steps."""


def wait_for_round_of_both(host: Session) -> None:
    """Return once both machines' work was merged in one round."""
    seen = 0
    while True:
        seen = len(host.wait_for("round", seen + 1))
        if any(len(event["machines"]) == 2 for event in host.events("round")):
            return


def accepted(watched: list[Watched]) -> int:
    """Return how many samples are merged, as either machine knows."""
    told = [event["accepted"] for one in watched for event in one.session.events("round")[-1:]]
    told += [event["accepted"] for one in watched for event in one.session.events("member_round")[-1:]]
    return int(max(told, default=0))


def newest_ledger(watched: list[Watched]) -> Any:
    """Return the hub's ledger as it was saved last."""
    files = [path for one in watched for path in (one.session.run / "cluster").rglob("ledger.json")]
    return read_json(max(files, key=lambda path: path.stat().st_mtime))


def page(results: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = [
        "| minutes | faults | images merged | of what the machines present could do | longest stall of a survivor "
        "| survivors that lost steps | images repeated | discarded |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in results["runs"]:
        cells = (
            f"{one['seconds'] / 60:.0f}",
            str(sum(one["faults"].values())),
            f"{one['images']:,}",
            f"**{goodput(one):.1%}**",
            f"**{one['longest_stall_seconds']:.1f} s**",
            str(one["survivors_losses"]),
            f"{one['repeated']:,}",
            f"{one['discarded']:,}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    kinds: Counter[str] = Counter()
    for one in results["runs"]:
        kinds.update(one["faults"])
    told = ", ".join(f"{name} {count}" for name, count in sorted(kinds.items()))
    foot = f"`python -m benchmarks.together_faults` at {results['commit']}, {MEGABITS:.0f} Mbit/s"
    return "\n".join([*lines, "", f"Faults: {told}.", "", f"{foot}; {describe_machine(results['machine'])}."])


def goodput(one: dict[str, Any]) -> float:
    """Return the share of what the machines present could have done."""
    return float(one["images"] / (one["trained_seconds"] * one["images_a_second_of_work"]))


def main() -> None:
    """Disturb a run for so long, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=None, help="of the draws; by default another one each time")
    options = parser.parse_args()
    reason = why_not()
    if reason is not None:
        raise SystemExit(f"there can be no machines here: {reason}")
    results = read_json(DATA_FILE) if DATA_FILE.exists() else {"runs": []}
    with network(2) as net:
        for place in net.machines:
            place.limit(MEGABITS)
        worth = images_a_second_of_work(net)
        outcome = disturb(net, 60 * options.minutes, random.Random(options.seed))
    outcome |= {"images_a_second_of_work": worth}
    results |= {"machine": machine(), "commit": commit()}
    results["runs"].append(outcome)
    write_json(DATA_FILE, results)
    put_between_marks("together-faults", page(results))
    print(page(results))
    if outcome["longest_stall_seconds"] >= MOST_STALL_SECONDS or goodput(outcome) < LEAST_GOODPUT:
        print("NOT GOOD: a survivor stood still for too long, or too little was done")


if __name__ == "__main__":
    main()
