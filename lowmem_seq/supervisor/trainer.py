"""The trainer's life: started, watched, stopped on request, and started again when it dies.

A trainer that a signal or the want of memory ended goes on from the newest checkpoint that verifies. What it said
itself was wrong (a full disk, a diverging loss, broken data) is not tried again. A restart counts against the limit
until a checkpoint is saved: a run that moves on may die as often as the machine likes. A trainer that is stopped
for a while (laptop.py) has not died.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lowmem_seq.channel import START_ANEW, STOP_SIGNALS
from lowmem_seq.errors import CapTooSmallError, DiskError, LowmemSeqError, RestartsExhaustedError, StoppedError
from lowmem_seq.files import write_json
from lowmem_seq.memory.out_of_memory import died_for_memory
from lowmem_seq.memory.plan import Plan, plan_from_json, smaller, told_change, within
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.child import Child, Message
from lowmem_seq.supervisor.conditions import Hindrance
from lowmem_seq.supervisor.laptop import Laptop
from lowmem_seq.supervisor.screen import Screen
from lowmem_seq.supervisor.signals import StopSignals
from lowmem_seq.supervisor.watch import SAMPLE_SECONDS, MemoryWatch
from lowmem_seq.units import format_bytes

STOPPED = StoppedError.exit_code
LEFT_AT_ONCE = 130
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Ending:
    """How a trainer ended."""

    code: int
    """0: trained and tested; 4: stopped and saved; anything else: see `cause`."""
    cause: str
    """What ended it, for people: a clause with its subject; empty where it ended as it should."""
    died: bool
    """Whether another one may do better."""
    for_want_of_memory: bool
    saved: bool
    """Whether it saved a checkpoint in its life."""
    plan_was_at_fault: bool = False
    """Whether it needed more than the plan allows, and not the machine had too little."""
    error: LowmemSeqError | None = None
    """What to raise where another one is no use."""
    hindrance: Hindrance | None = None
    """Why it was asked to save and end for a while, if it was."""


def train(
    run: RunFolder,
    plan: Plan,
    screen: Screen,
    stops: StopSignals,
    max_restarts: int,
    laptop: Laptop,
    meanwhile: Callable[[], None] = lambda: None,
) -> int:
    """Train to the end, with as many trainers as it takes; return 0, 4 (stopped, saved) or 130 (left at once).

    Args:
        run: what is trained.
        plan: how.
        screen: shows what the trainer says.
        stops: a wish to stop is passed on.
        max_restarts: trainers in a row that may die without having saved.
        laptop: says when to pause, and waits.
        meanwhile: called ten times a second.

    Raises:
        RestartsExhaustedError: more than `max_restarts` trainers in a row died without a checkpoint.
        LowmemSeqError: what the trainer said was wrong.
    """
    deaths_in_a_row = 0
    hindrance: Hindrance | None = None
    while True:
        if not laptop.wait(plan.cap_bytes, meanwhile, hindrance):
            run.events.append("session_ended", state="stopped", cause="asked for while the run was paused")
            return STOPPED
        plan = fit_to_machine(run, plan, screen)
        ending = run_trainer(run, plan, screen, stops, laptop, meanwhile)
        if stops.count > 1 and ending.code not in (0, STOPPED):
            run.events.append("session_ended", state="crashed", cause="left at once on a second signal")
            return LEFT_AT_ONCE
        if stops.count and -ending.code in STOP_SIGNALS:  # a signal to all, before this trainer could listen
            run.events.append("session_ended", state="stopped", cause="asked for while the trainer was starting")
            return STOPPED
        hindrance = ending.hindrance
        if hindrance is not None:
            deaths_in_a_row = 0
            if ending.cause:
                run.events.append("session_ended", state="crashed", cause=ending.cause)
                screen.show({"event": "pause_unsaved", "cause": ending.cause})
            continue
        if not ending.cause:
            return ending.code
        run.events.append("session_ended", state="crashed", cause=ending.cause)
        if ending.error is not None and (not ending.died or stops.count):
            raise ending.error
        deaths_in_a_row = 1 if ending.saved else deaths_in_a_row + 1
        if deaths_in_a_row > max_restarts:
            times = (
                "once" if deaths_in_a_row == 1 else f"{deaths_in_a_row} times in a row without saving in between"
            )
            raise RestartsExhaustedError(
                f"{ending.cause}; that happened {times}, and --max-restarts is {max_restarts}.",
                f"{run.resume_command}   tries again; the trainer's words are in {run.log_file}",
            )
        if ending.for_want_of_memory:
            plan = make_smaller(run, plan, ending)
        wait_seconds = min(FIRST_WAIT_SECONDS * 2 ** (deaths_in_a_row - 1), LONGEST_WAIT_SECONDS)
        event = run.events.append(
            "trainer_restarted",
            cause=ending.cause,
            deaths_in_a_row=deaths_in_a_row,
            max_restarts=max_restarts,
            wait_seconds=wait_seconds,
        )
        screen.show(event)
        stops.wait(wait_seconds)
        if stops.count:
            run.events.append(
                "session_ended", state="stopped", cause="asked for before the next trainer was started"
            )
            return STOPPED


def fit_to_machine(run: RunFolder, plan: Plan, screen: Screen) -> Plan:
    """Return the plan with a setting that the machine has memory for now, written down; the trainer grows back.

    What a plan was measured for may be gone when a run goes on, or another one begins by what is remembered; the
    machine would swap before the trainer's governor had its first look.
    """
    stored = run.read_json(run.plan_file)
    plan = plan if stored is None else plan_from_json(stored)
    machine = system_reader().machine()
    less = within(plan, machine.available_bytes - machine.short_bytes)
    if less.setting != plan.setting:
        write_json(run.plan_file, less.to_json())
        cause = f"only {format_bytes(machine.available_bytes)} are left on this machine"
        screen.show(run.events.append("setting_changed", **told_change(plan.setting, less.setting), cause=cause))
    return less


def run_trainer(
    run: RunFolder,
    plan: Plan,
    screen: Screen,
    stops: StopSignals,
    laptop: Laptop,
    meanwhile: Callable[[], None] = lambda: None,
) -> Ending:
    """Start a trainer, and watch over it until it has ended."""
    child = Child(
        "lowmem_seq.training",
        str(run.path),
        environment=plan.environment,
        log=run.log_file,
        limit_bytes=plan.data_limit_bytes,
    )
    laptop.started(child)
    watch = MemoryWatch(run, plan.cap_bytes, child, screen)
    told_to_stop = saved = waits_for_disk = False
    pauses_for: Hindrance | None = None
    leaving: Message | None = None
    with stops.ending(child, at=2):
        for message in child.messages(SAMPLE_SECONDS):
            if stops.count and not told_to_stop:
                told_to_stop = True
                child.tell("stop")
                screen.show_stopping()
            watch.sample()
            meanwhile()
            hindrance = laptop.look()
            if hindrance is not None and pauses_for is None and not (told_to_stop or waits_for_disk):
                pauses_for = hindrance
                child.tell("stop")
                screen.show({"event": "pausing", "cause": hindrance.cause})
            if message is not None:
                laptop.hear(message, watch.machine_is_short)
                if message.get("event") in ("paused", "unpaused"):
                    waits_for_disk = message["event"] == "paused"
                saved = saved or message.get("event") == "checkpoint"
                leaving = message if message.get("event") == "leaving" else leaving
                if message.get("event") == "peak":
                    watch.hear_peak(int(message["bytes"]))
                screen.show(message)
        code = child.wait()
    watch.record()
    if code == 0 or (code == STOPPED and stops.count):
        return Ending(code, "", died=False, for_want_of_memory=False, saved=saved)
    if pauses_for is not None and code in (STOPPED, DiskError.exit_code):
        cause = "" if code == STOPPED else f"the trainer {child.describe_end(code)}"
        return Ending(code, cause, died=False, for_want_of_memory=False, saved=saved, hindrance=pauses_for)
    if code == STOPPED:
        cause = "the trainer was asked to stop by somebody else than its supervisor"
        return Ending(code, cause, died=True, for_want_of_memory=False, saved=True)
    if code == START_ANEW and leaving is not None:
        return Ending(
            code=code,
            cause=str(leaving["cause"]),
            died=True,
            for_want_of_memory=bool(leaving["for_want_of_memory"]),
            saved=saved,
            plan_was_at_fault=not leaving["machine_is_short"],
        )
    met_limit = child.ran_out_of_memory or died_for_memory(code, limited=plan.data_limit_bytes is not None)
    short = met_limit or (child.was_killed(code) and watch.machine_is_short)
    failure = child.failure(code, "trainer", f"{run.resume_command}   goes on from the newest checkpoint")
    return Ending(
        code=code,
        cause=f"the trainer {child.describe_end(code)}" + (", for want of memory" if short else ""),
        died=short or child.died(code),
        for_want_of_memory=short,
        saved=saved,
        plan_was_at_fault=met_limit,
        error=failure,
    )


def make_smaller(run: RunFolder, plan: Plan, ending: Ending) -> Plan:
    """Return the plan with a smaller setting, written down.

    Where the setting itself needed too much, the run never grows back to it.

    Raises:
        CapTooSmallError: it met the limit with the smallest setting there is, before it could save anything.
    """
    stored = run.read_json(run.plan_file)
    plan = plan if stored is None else plan_from_json(stored)  # the trainer may have made it smaller already
    less = smaller(plan, at_any_rate=True)
    if less is None:
        if ending.saved or not ending.plan_was_at_fault:
            return plan
        raise CapTooSmallError(
            f"{ending.cause}; that was with the smallest setting there is, under a cap of "
            f"{format_bytes(plan.cap_bytes)}.",
            f"{run.resume_command} --max-ram MORE",
        )
    if ending.plan_was_at_fault:
        less = replace(less, chosen=less.setting)
    write_json(run.plan_file, less.to_json())
    run.events.append("setting_changed", **told_change(plan.setting, less.setting), cause=ending.cause)
    return less
