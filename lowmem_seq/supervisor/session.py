"""One session of a run, from its data to its end: packer, planner, trainer, one after the other.

The supervisor holds no torch and little memory. It alone hears signals, and it alone watches the whole process tree
against the cap.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import psutil

from lowmem_seq.config import RunConfig
from lowmem_seq.errors import CapTooSmallError, DataError, StoppedError
from lowmem_seq.files import write_json
from lowmem_seq.memory.environment import training_environment
from lowmem_seq.memory.plan import (
    SHARE_OF_AVAILABLE,
    Measurement,
    Plan,
    choose,
    plan_from_json,
    threads_each,
    usable_cores,
)
from lowmem_seq.memory.tree import available_bytes, is_short_of_memory, peak_process_bytes, tree_bytes
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.child import Child, Message
from lowmem_seq.units import format_bytes

SAMPLE_SECONDS = 0.1
SECONDS_A_MEMORY_EVENT = 15.0
NEAR_CAP = 0.97
GROWTH = 1.01
SECONDS_BETWEEN_SHRINKS = 5.0
STOPPED = StoppedError.exit_code
LEFT_AT_ONCE = 130


class Screen(Protocol):
    """Where a session is shown."""

    def show(self, message: Message) -> None:
        """Show what a child said."""

    def show_memory(self, tree: int, peak: int, cap: int) -> None:
        """Show what the process tree holds, its peak, and its cap, all in bytes."""

    def show_stopping(self) -> None:
        """Show that the stop that was asked for is under way."""


def prepare_data(run: RunFolder, config: RunConfig, screen: Screen) -> None:
    """Have the dataset packed (or found packed), and write its place and fingerprint to data.json.

    Raises:
        DataError: what the packer said, or the data is not what the run was started with.
    """
    child = Child("lowmem_seq.data", config.data.source, str(config.data.image_size), log=run.log_file)
    pack: str | None = None
    with stopping_by_killing(child):
        for message in child.messages(1.0):
            if message is not None and message.get("event") == "packed":
                pack = str(message["pack"])
                fingerprint = str(message["fingerprint"])
            elif message is not None:
                screen.show(message)
        code = child.wait()
    if code != 0 or pack is None:
        raise child.failure(code, "packer")
    before = run.read_json(run.data_file)
    if before is not None and before["fingerprint"] != fingerprint:
        raise DataError(
            f"{config.data.source} holds other images than this run was started with "
            f"(fingerprint {fingerprint[:12]}, and {before['fingerprint'][:12]} is expected).",
            f"{run.resume_command} --data PATH   with the images of the start",
        )
    record = {"format_version": 1, "source": config.data.source, "pack": pack, "fingerprint": fingerprint}
    write_json(run.data_file, record)


def make_plan(run: RunFolder, config: RunConfig, screen: Screen) -> Plan:
    """Have a disposable child measure the run under the cap, choose, and write plan.json.

    Where nothing fits, the child goes past the cap to find the smallest one that would do; it is ended when the
    machine itself runs short.

    Raises:
        CapTooSmallError: the model does not fit.
    """
    given = config.machine.max_ram_bytes
    cap_bytes = given if given is not None else int(available_bytes() * SHARE_OF_AVAILABLE)
    budget_bytes = max(1, cap_bytes - tree_bytes(psutil.Process()))
    cores = usable_cores(config.machine.threads)
    environment = training_environment(cores)
    child = Child(
        "lowmem_seq.training.probe", str(run.path), str(budget_bytes), environment=environment, log=run.log_file
    )
    computing: Message | None = None
    measured: list[Measurement] = []
    machine_short = False
    with stopping_by_killing(child):
        for message in child.messages(SAMPLE_SECONDS):
            if tree_bytes(psutil.Process()) > cap_bytes and is_short_of_memory():
                machine_short = True
                child.kill()
            event = message.get("event") if message is not None else None
            if event == "computing":
                computing = message
            elif event == "measured" and message is not None:
                measured.append(Measurement(**{key: message[key] for key in Measurement.__annotations__}))
            elif message is not None:
                screen.show(message)
        code = child.wait()
    if code != 0 and not machine_short:
        raise child.failure(code, "planner")
    if computing is None or not measured:
        raise CapTooSmallError(
            f"the cap of {format_bytes(cap_bytes)} is too small for this model: its first step passed it, and the "
            "machine was short of memory.",
            "close other programs, take smaller images (--image-size) or a smaller preset",
        )
    best = choose(measured, cap_bytes, cap_bytes - budget_bytes)
    plan = Plan(
        device=computing["device"],
        precision=computing["precision"],
        micro_batch=best.micro_batch,
        workers=best.workers,
        threads=threads_each(best.workers, cores),
        cap_bytes=cap_bytes,
        cap_source="machine" if given is None else "given",
        predicted_peak_bytes=best.peak_bytes + cap_bytes - budget_bytes,
        predicted_images_per_second=best.images_per_second,
        environment=environment,
        measurements=tuple(measured),
    )
    write_json(run.plan_file, plan.to_json())
    run.events.append("planned", **plan.to_json())
    return plan


def read_or_make_plan(run: RunFolder, config: RunConfig, screen: Screen, anew: bool) -> Plan:
    """Return the plan of the run; it is measured where there is none, or where a new one is asked for."""
    stored = None if anew else run.read_json(run.plan_file)
    return make_plan(run, config, screen) if stored is None else plan_from_json(stored)


def train(run: RunFolder, plan: Plan, screen: Screen) -> int:
    """Run the trainer to its end, watching the tree; return 0, 4 (stopped and saved) or 130 (left at once).

    Raises:
        LowmemSeqError: what the trainer said, or how it died.
    """
    child = Child("lowmem_seq.training", str(run.path), environment=plan.environment, log=run.log_file)
    watch = _MemoryWatch(run, plan.cap_bytes, child, screen)
    stopping = False
    with counting_signals(child) as signals:
        for message in child.messages(SAMPLE_SECONDS):
            if signals and not stopping:
                stopping = True
                child.tell("stop")
                screen.show_stopping()
            watch.sample()
            if message is not None:
                screen.show(message)
        code = child.wait()
    watch.record()
    if len(signals) > 1:
        run.events.append("session_ended", state="crashed", cause="left at once on a second signal")
        return LEFT_AT_ONCE
    if code not in (0, STOPPED):
        failure = child.failure(code, "trainer")
        failure.hint = failure.hint or f"{run.resume_command}   goes on from the newest checkpoint"
        run.events.append("session_ended", state="crashed", cause=failure.message)
        raise failure
    return code


class _MemoryWatch:
    """Samples the tree, keeps the peak, asks the trainer to shrink near the cap."""

    def __init__(self, run: RunFolder, cap_bytes: int, child: Child, screen: Screen) -> None:
        self._run, self._cap_bytes, self._child, self._screen = run, cap_bytes, child, screen
        self._self = psutil.Process()
        self._peak_bytes = self._tree_bytes = self._shrunk_bytes = 0
        self._sampled_at = self._shrunk_at = float("-inf")
        self._recorded_at = time.monotonic()

    def sample(self) -> None:
        """Look at the tree, ten times a second at the most."""
        now = time.monotonic()
        if now - self._sampled_at < SAMPLE_SECONDS:
            return
        self._sampled_at = now
        self._tree_bytes = tree_bytes(self._self)
        peaks = [peak_process_bytes(process.pid) or 0 for process in (self._self, self._child.process)]
        self._peak_bytes = max(self._peak_bytes, self._tree_bytes, sum(peaks))
        self._screen.show_memory(self._tree_bytes, self._peak_bytes, self._cap_bytes)
        # memory that was given back may stay with the allocator: only what grows on counts after a shrink
        near = self._tree_bytes > max(NEAR_CAP * self._cap_bytes, GROWTH * self._shrunk_bytes)
        if near and now - self._shrunk_at > SECONDS_BETWEEN_SHRINKS:
            self._shrunk_at, self._shrunk_bytes = now, self._tree_bytes
            self._child.tell("shrink")
        if now - self._recorded_at > SECONDS_A_MEMORY_EVENT:
            self.record()

    def record(self) -> None:
        """Write what was seen to the events."""
        self._recorded_at = time.monotonic()
        self._run.events.append(
            "memory",
            tree_bytes=self._tree_bytes,
            peak_tree_bytes=self._peak_bytes,
            cap_bytes=self._cap_bytes,
        )


SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)


@contextlib.contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def stopping_by_killing(child: Child) -> Iterator[None]:
    """End a child that has nothing to save at the first signal, and raise KeyboardInterrupt."""
    signals: list[int] = []

    def handler(number: int, _frame: Any) -> None:
        signals.append(number)
        child.kill()

    with _handling(handler):
        yield
    if signals:
        raise KeyboardInterrupt


@contextlib.contextmanager
def counting_signals(child: Child) -> Iterator[list[int]]:
    """Give the list of the signals that came; the second one ends the child. A handler writes to nothing."""
    signals: list[int] = []

    def handler(number: int, _frame: Any) -> None:
        signals.append(number)
        if len(signals) > 1:
            child.kill()

    with _handling(handler):
        yield signals
