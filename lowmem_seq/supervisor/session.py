"""The beginning of a session: have the data packed and the plan made, each by a child that ends with its task.

The supervisor holds no torch and little memory. It alone hears signals, and it alone watches the whole process tree
against the cap.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from lowmem_seq.cluster.rank import read_rank
from lowmem_seq.compiled import library
from lowmem_seq.config import RunConfig
from lowmem_seq.data.catalogue import HOST
from lowmem_seq.errors import CapTooSmallError, DataError, LowmemSeqError
from lowmem_seq.files import write_json
from lowmem_seq.memory.plan import NATIVE_LSTM, Plan, cap_in_force, plan_from_json
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.memory.tree import ProcessTree
from lowmem_seq.runs.environment import describe_environment, planned_for
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.child import Child, Message
from lowmem_seq.supervisor.planner import CHILD_SAMPLE_SECONDS, CHILD_SEARCH_SECONDS, make_plan
from lowmem_seq.supervisor.screen import Screen
from lowmem_seq.supervisor.signals import StopSignals
from lowmem_seq.supervisor.subject import part_of
from lowmem_seq.units import format_bytes

PARTS = ("", "rank", "member", "host")
"""Of a cluster, the one that holds most last."""


class Others(Protocol):
    """Those that a session trains with: a hub (cluster.py), or the other ranks of a world (meeting.py)."""

    def knock(self) -> None:
        """See that they are there, and would train the same, before anything else is done."""

    def open(self) -> None:
        """Go on from there with what is known once the data is ready."""

    def wait(self) -> None:
        """Wait, with the plan ready, for those that have to begin at the same moment."""


def prepare(
    run: RunFolder,
    config: RunConfig,
    screen: Screen,
    stops: StopSignals,
    plan_anew: bool,
    others: Others | None = None,
    take_up: Callable[[], None] = lambda: None,
) -> Plan:
    """Have the others there, and the data and the plan ready; what goes wrong stands in the events.

    Args:
        run: what is trained.
        config: its settings.
        screen: shows what is done.
        stops: end it.
        plan_anew: whatever plan there is.
        others: those that this session trains with, if anybody.
        take_up: does what is to be done with the run's folder first, once the others are there.

    Raises:
        KeyboardInterrupt: a stop was asked for.
        LowmemSeqError: see `prepare_data`, `make_plan` of planner.py, cluster.py and meeting.py.
    """
    try:
        if others is not None:
            others.knock()
        take_up()
        prepare_data(run, config, screen, stops)
        if others is not None:
            others.open()
        if run.config != config:  # the images' new place, now that they are known to be the same ones
            run.write_config(config)
        plan = read_or_make_plan(run, config, screen, stops, plan_anew)
        if others is not None:
            others.wait()
    except LowmemSeqError as error:
        run.events.append("session_ended", state="crashed", cause=error.message)
        raise
    except KeyboardInterrupt:
        run.events.append("session_ended", state="stopped", cause="asked for before the training began")
        raise
    return plan


def prepare_data(run: RunFolder, config: RunConfig, screen: Screen, stops: StopSignals) -> None:
    """Have the dataset packed (or found packed, or fetched), and write its place and fingerprint to data.json.

    Raises:
        KeyboardInterrupt: a stop was asked for.
        LowmemSeqError: what the packer said, or the data is not what the run was started with.
        CapTooSmallError: packing takes more than the run may hold.
    """
    rank = read_rank(run)
    machine = (config if rank is None else rank.own_part(config)).machine
    neighbours = 1 if rank is None else rank.local_of
    cap_bytes = cap_in_force(machine.max_ram_bytes, system_reader().machine().available_bytes, neighbours)
    source, image_size = config.data.source, config.data.image_size
    if source == HOST:
        pack, fingerprint = _have_fetched(run, screen, stops, cap_bytes)
    else:
        pack, fingerprint = have_packed(source, image_size, screen.show, stops, run.log_file, cap_bytes)
    before = run.read_json(run.data_file)
    expected = None if before is None else before.get("fingerprint")
    if expected is not None and expected != fingerprint:
        raise DataError(
            f"{source} holds other images than this run was started with "
            f"(fingerprint {fingerprint[:12]}, and {str(expected)[:12]} is expected).",
            f"{run.resume_command} --data PATH   with the images of the start",
        )
    record = {"format_version": 1, "source": source, "pack": pack, "fingerprint": fingerprint}
    write_json(run.data_file, record)


def have_packed(
    source: str,
    image_size: int,
    show: Callable[[Message], None],
    stops: StopSignals,
    log: Path | None = None,
    cap_bytes: int | None = None,
) -> tuple[str, str]:
    """Have a dataset packed, or found packed, by a child; return the pack's folder and fingerprint.

    The cap is kept by looking, on every system: under a limit of the system's some codecs say of a picture only
    that it is broken, and it would be missing in the pack for good.

    Args:
        source: as `find_dataset` takes it.
        image_size: the side that pictures are brought to.
        show: hears what the child says.
        stops: end the child.
        log: takes what it writes on stderr.
        cap_bytes: what this process and those that it started may hold, if that is bounded.

    Raises:
        KeyboardInterrupt: a stop was asked for.
        DataError: what the packer said.
        CapTooSmallError: packing came to hold more.
    """
    hint = (
        f"lowmem-seq data add {shlex.quote(source)} --image-size {image_size}   packs it without a cap; or make"
        " the largest pictures smaller"
    )
    child = Child("lowmem_seq.data", source, str(image_size), log=log)
    return _packed_by(child, show, stops, cap_bytes, (f"packing {source}", hint))


def _have_fetched(run: RunFolder, screen: Screen, stops: StopSignals, cap_bytes: int | None) -> tuple[str, str]:
    """Have the host's pack in the cache by a child; return its folder and fingerprint."""

    def show(message: Message) -> None:
        if message.get("event") in ("fetched", "fetch_cut_off"):
            run.events.append(**message)
        screen.show(message)

    child = Child("lowmem_seq.cluster.fetch", str(run.path), log=run.log_file)
    return _packed_by(child, show, stops, cap_bytes, ("fetching the images", "give it more: --max-ram 500MB"))


def _packed_by(
    child: Child,
    show: Callable[[Message], None],
    stops: StopSignals,
    cap_bytes: int | None,
    told: tuple[str, str],
) -> tuple[str, str]:
    """Hear a child out that makes a pack, and end it where it comes to hold too much, with what is told of that."""
    tree = ProcessTree(os.getpid(), system_reader(), seconds_between_searches=CHILD_SEARCH_SECONDS)
    tree.add(child.process.pid)
    packed: tuple[str, str] | None = None
    too_large = 0
    with stops.ending(child, at=1):
        for message in child.messages(CHILD_SAMPLE_SECONDS):
            if cap_bytes is not None and not too_large and (held := tree.held_bytes()) > cap_bytes:
                too_large = held
                child.kill()
            if message is not None and message.get("event") == "packed":
                packed = str(message["pack"]), str(message["fingerprint"])
            elif message is not None:
                show(message)
        code = child.wait()
    stops.raise_if_any()
    if cap_bytes is not None and too_large:
        what, hint = told
        raise CapTooSmallError(
            f"{what} took {format_bytes(too_large)} with all processes of the run, and the cap is "
            f"{format_bytes(cap_bytes)}.",
            hint,
        )
    if code != 0 or packed is None:
        raise child.failure(code, "packer")
    return packed


def can_follow(plan: Plan) -> bool:
    """Whether what a plan computes with is there: the compiled part of the package may have gone since."""
    return plan.lstm_path != NATIVE_LSTM or library() is not None


def read_or_make_plan(run: RunFolder, config: RunConfig, screen: Screen, stops: StopSignals, anew: bool) -> Plan:
    """Return the plan of the run; it is measured where there is none for this machine, or one is asked for anew.

    So it is where this session has more to hold beside the training than the plan leaves room for, or shares its
    steps or its machine with another number of ranks.
    """
    rank, wanted = read_rank(run), PARTS.index(part_of(run))
    together = (1, 1) if rank is None else (rank.of, rank.local_of)
    stored = None if anew else run.read_json(run.plan_file)
    plan = None if stored is None else plan_from_json(stored)
    if (
        plan is None
        or plan.planned_for not in ("", planned_for(describe_environment()))
        or not can_follow(plan)
        or PARTS.index(plan.part) < wanted
        or (plan.ranks, plan.neighbours) != together
    ):
        return make_plan(run, config, screen, stops).plan
    return plan
