"""How fast two machines train one model: `python -m benchmarks.together`, in pieces that can be repeated.

Each machine is a network namespace and one core of this computer, so it needs root, Linux and iproute2. Three ways
take turns: each machine trains alone, both at once; both train one run, over links of several speeds; and plain
data-parallel training by gloo over the same links, with our model and batch. Of a run of two, samples count when
they are merged, from one round's end to another's; the bytes are all that went through the second machine's link
meanwhile.

What is measured stands in docs/together.json, and is not measured again; delete an entry to have it measured anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.kills import PROGRAM
from benchmarks.page import ROOT, commit, describe_machine, machine, put_between_marks
from lowmem_seq.channel import SECONDS_TO_SAVE
from lowmem_seq.cluster.token import new_token
from lowmem_seq.files import make_folder, read_json, write_json
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.units import format_bytes
from tests.cluster.testbed import Machine, network, why_not

DATA_FILE = ROOT / "docs" / "together.json"
PLACE = ROOT / "runs" / "together"
PORT = 29500
CORES = (0, 1)
SECONDS_TO_START = 600.0
ALONE, TOGETHER, GLOO = "alone", "together", "gloo"


@dataclass(frozen=True)
class Workload:
    """What is trained."""

    preset: str
    flags: tuple[str, ...]
    batch: int
    """Of each machine."""
    links: tuple[int, ...]
    """In Mbit/s, each way."""
    rounds: int
    """That are measured, after the first ones."""
    warm_up_rounds: int
    """Of which the first travels as fp32."""
    seconds_alone: float
    gloo_steps: int

    @property
    def command(self) -> list[str]:
        """What trains it, without end, and without evaluations and saves on the way."""
        endless = ("recipe.epochs=100000", "recipe.evaluate_every_epochs=100000", "checkpoint.every=24h")
        settings = [word for one in endless for word in ("--set", one)]
        return ["train", self.preset, "--data", "shapes", *self.flags, *settings]


WORKLOADS = (
    Workload(
        "small",
        ("--micro-batch", "64", "--max-ram", "2GB", "--set", "machine.threads=1"),
        *(128, (25, 50, 100, 940), 4, 2, 120.0, 4),
    ),
    Workload(
        "sequencer2d_l",
        (
            *("--image-size", "224", "--micro-batch", "2", "--effective-batch", "8", "--max-ram", "6GB"),
            *("--set", "machine.threads=1"),
        ),
        *(8, (50,), 4, 2, 240.0, 2),
    ),
)


class Session:
    """A machine's program, with a run folder of its own."""

    def __init__(self, machine: Machine, core: int, words: list[str], run: Path, token: str) -> None:
        self.run, self.token = run, token
        self._output = run.with_suffix(".log")
        environment = {**os.environ, "LOWMEM_SEQ_TOKEN": token}
        with self._output.open("ab") as log:
            self.process = machine.start(
                *("taskset", "-c", str(core), *PROGRAM, *words, "--quiet"),
                **{"stdout": log, "stderr": subprocess.STDOUT, "env": environment},
            )

    def events(self, kind: str) -> list[Event]:
        """Return what was recorded, in its order."""
        return [event for event in RunFolder(self.run).events if event["event"] == kind]

    def wait_for(self, kind: str, count: int) -> list[Event]:
        """Return the events of a kind once there are so many.

        Raises:
            RuntimeError: the program ended before.
            TimeoutError: it takes too long.
        """
        until = time.monotonic() + SECONDS_TO_START + 120.0 * count
        while len(found := self.events(kind)) < count:
            if self.process.poll() is not None:
                raise RuntimeError(f"it ended: {self._output.read_text(encoding='utf-8', errors='replace')}")
            if time.monotonic() > until:
                raise TimeoutError(f"waited in vain for {kind}: {self._output.read_text(encoding='utf-8')}")
            time.sleep(0.1)
        return found

    def interrupt(self) -> None:
        """Have it save and end, as by Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(SECONDS_TO_SAVE)

    def stop(self) -> None:
        """End it without saving: nothing of it is needed any more."""
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.process.pid)
            for process in (first, *first.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def sessions(machines: tuple[Machine, ...], commands: list[list[str]]) -> Iterator[list[Session]]:
    """Start one command a machine, and end them all."""
    shutil.rmtree(PLACE, ignore_errors=True)
    make_folder(PLACE)
    token, started = new_token().code, []
    try:
        for number, (one, words) in enumerate(zip(machines, commands, strict=True)):
            run = PLACE / f"machine-{number + 1}"
            started.append(Session(one, CORES[number], [*words, "--run-dir", str(run)], run, token))
        yield started
    finally:
        for session in started:
            session.stop()


def measure_alone(workload: Workload, megabits: int, precision: str) -> dict[str, Any]:
    """Return the images/s of two machines that train a run each at the same time, added up, and their precision."""
    del megabits, precision
    with network(2) as net, sessions(net.machines, [workload.command] * 2) as pair:
        begins = [session.wait_for("train", 2)[-1] for session in pair]
        began = max(event["time_unix_seconds"] for event in begins)
        while time.time() < began + workload.seconds_alone:
            time.sleep(0.5)
        return {
            "images_per_second": sum(rate_since(session, began) for session in pair),
            "precision": pair[0].events("session_started")[0]["precision"],
        }


def rate_since(session: Session, began: float) -> float:
    """Return images/s from the first recorded step after a time to the last."""
    found = [event for event in session.events("train") if event["time_unix_seconds"] >= began]
    first, last = found[0], found[-1]
    seconds = last["time_unix_seconds"] - first["time_unix_seconds"]
    return float((last["images_seen"] - first["images_seen"]) / seconds)


def measure_together(workload: Workload, megabits: int, precision: str) -> dict[str, Any]:
    """Return the merged images/s of two machines in one run, and the bytes over the link for each image."""
    del precision
    with network(2) as net:
        host, joiner = net.machines
        joiner.limit(float(megabits))
        shared = workload.command
        at = f"{host.address}:{PORT}"
        commands = [[*shared, "--host", "--port", str(PORT)], [*shared, "--join", at]]
        with sessions(net.machines, commands) as (leader, _):
            first, bytes_before = one_of_both(leader, joiner, 0, workload.warm_up_rounds)
            last, bytes_after = one_of_both(leader, joiner, first["round"], workload.rounds)
    samples = last["accepted"] - first["accepted"]
    seconds = last["time_unix_seconds"] - first["time_unix_seconds"]
    return {
        "images_per_second": samples / seconds,
        "bytes_an_image": (bytes_after - bytes_before) / samples,
        "rounds": last["round"] - first["round"],
    }


def one_of_both(leader: Session, joiner: Machine, after: int, count: int) -> tuple[Event, int]:
    """Wait for so many rounds of both machines after one; return the last of them, and the link's bytes then."""
    found: list[Event] = []
    seen = 0
    while len(found) < count:
        seen = len(leader.wait_for("round", seen + 1))
        found = [one for one in leader.events("round") if one["round"] > after and len(one["machines"]) == 2]
    return found[-1], joiner.bytes_sent() + joiner.bytes_received()


def measure_gloo(workload: Workload, megabits: int, precision: str) -> dict[str, Any]:
    """Return the images/s of plain data-parallel training, and the bytes over the link for each image."""
    with network(2) as net:
        host, other = net.machines
        for one in net.machines:
            one.limit(float(megabits))
        programs = []
        for rank, one in enumerate(net.machines):
            steps, batch = str(2 + workload.gloo_steps), str(workload.batch)
            words = (workload.preset, str(rank), host.address, str(PORT), steps, batch, precision)
            program = ("taskset", "-c", str(CORES[rank]), sys.executable, "-m", "benchmarks.peers.ddp", *words)
            programs.append(one.start(*program, stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL))
        assert programs[0].stdout is not None
        ends, moved = [], []
        for line in programs[0].stdout:
            ends.append(json.loads(line)["ended"])
            moved.append(other.bytes_sent() + other.bytes_received())
    if len(ends) != 2 + workload.gloo_steps:
        raise RuntimeError(f"gloo ended after {len(ends)} steps")
    images = 2 * workload.batch * workload.gloo_steps
    return {
        "images_per_second": images / (ends[-1] - ends[1]),
        "bytes_an_image": (moved[-1] - moved[1]) / images,
    }


WAYS: dict[str, Callable[[Workload, int, str], dict[str, Any]]] = {
    ALONE: measure_alone,
    TOGETHER: measure_together,
    GLOO: measure_gloo,
}


def missing(results: dict[str, Any], count: int, presets: list[str]) -> Iterator[tuple[Workload, str, int, str]]:
    """Yield what is not measured so often yet, turn by turn: workload, way, link and key."""
    for turn in range(count):
        for workload in (one for one in WORKLOADS if one.preset in presets):
            for way, megabits in [
                (ALONE, 0),
                *((way, link) for link in workload.links for way in (TOGETHER, GLOO)),
            ]:
                key = f"{workload.preset} {way}" + (f" {megabits}" if megabits else "")
                if len(results["measured"].get(key, ())) <= turn:
                    yield workload, way, megabits, key


def page(results: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = [
        "| preset | link | each alone, added up | together | share | traffic an image | by gloo | its share "
        "| its traffic an image | ours is less by | n |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for workload in WORKLOADS:
        for link in workload.links:
            found = [
                results["measured"].get(f"{workload.preset} {way}", ())
                for way in (ALONE, f"{TOGETHER} {link}", f"{GLOO} {link}")
            ]
            if not all(found):
                continue
            alone, together, gloo = ([one["images_per_second"] for one in several] for several in found)
            pairs = [of_two / of_one for of_two, of_one in zip(together, alone, strict=False)]
            others = [of_gloo / of_one for of_gloo, of_one in zip(gloo, alone, strict=False)]
            ours, theirs = (statistics.median(one["bytes_an_image"] for one in several) for several in found[1:])
            lines.append(
                f"| {workload.preset} | {link} Mbit/s | {statistics.median(alone):,.4g} images/s "
                f"| {statistics.median(together):,.4g} | **{statistics.median(pairs):.1%}** | {format_bytes(ours)} "
                f"| {statistics.median(gloo):,.4g} | {statistics.median(others):.1%} | {format_bytes(theirs)} "
                f"| {theirs / ours:,.0f}x | {len(pairs)} |"
            )
    told = f"`python -m benchmarks.together` at {results['commit']}; shares are medians of n neighbouring pairs"
    return "\n".join([*lines, "", f"{told}; {describe_machine(results['machine'])}."])


def main() -> None:
    """Measure what is missing until the time is over, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="*", default=[one.preset for one in WORKLOADS])
    parser.add_argument("--times", type=int, default=3, help="that each is measured")
    parser.add_argument("--minutes", type=float, default=25.0, help="of one piece")
    options = parser.parse_args()
    reason = why_not()
    if reason is not None:
        raise SystemExit(f"there can be no machines here: {reason}")
    until = time.monotonic() + 60 * options.minutes
    results = read_json(DATA_FILE) if DATA_FILE.exists() else {"measured": {}}
    results |= {"machine": machine(), "commit": commit()}
    for workload, way, megabits, key in missing(results, options.times, options.presets):
        if time.monotonic() > until:
            print("time is over; the same command goes on")
            break
        before = results["measured"].get(f"{workload.preset} {ALONE}", ({"precision": ""},))
        measured = WAYS[way](workload, megabits, before[-1]["precision"])
        results["measured"].setdefault(key, []).append(measured)
        write_json(DATA_FILE, results)
        print(key, measured, flush=True)
    put_between_marks("together", page(results))
    print(page(results))


if __name__ == "__main__":
    main()
