"""The beginning of a session: have the data packed and the plan made, each by a child that ends with its task.

The supervisor holds no torch and little memory. It alone hears signals, and it alone watches the whole process tree
against the cap.
"""

from __future__ import annotations

import psutil

from lowmem_seq.config import RunConfig
from lowmem_seq.errors import CapTooSmallError, DataError, LowmemSeqError
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
from lowmem_seq.memory.tree import available_bytes, is_short_of_memory, tree_bytes
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.child import Child, Message
from lowmem_seq.supervisor.screen import Screen
from lowmem_seq.supervisor.signals import StopSignals
from lowmem_seq.supervisor.watch import SAMPLE_SECONDS
from lowmem_seq.units import format_bytes


def prepare(run: RunFolder, config: RunConfig, screen: Screen, stops: StopSignals, plan_anew: bool) -> Plan:
    """Have the data and the plan ready; what goes wrong stands in the events.

    Raises:
        KeyboardInterrupt: a stop was asked for.
        LowmemSeqError: see `prepare_data` and `make_plan`.
    """
    try:
        prepare_data(run, config, screen, stops)
        if run.config != config:  # the images' new place, now that they are known to be the same ones
            run.write_config(config)
        return read_or_make_plan(run, config, screen, stops, plan_anew)
    except LowmemSeqError as error:
        run.events.append("session_ended", state="crashed", cause=error.message)
        raise
    except KeyboardInterrupt:
        run.events.append("session_ended", state="stopped", cause="asked for before the training began")
        raise


def prepare_data(run: RunFolder, config: RunConfig, screen: Screen, stops: StopSignals) -> None:
    """Have the dataset packed (or found packed), and write its place and fingerprint to data.json.

    Raises:
        KeyboardInterrupt: a stop was asked for.
        DataError: what the packer said, or the data is not what the run was started with.
    """
    child = Child("lowmem_seq.data", config.data.source, str(config.data.image_size), log=run.log_file)
    pack: str | None = None
    with stops.ending(child, at=1):
        for message in child.messages(1.0):
            if message is not None and message.get("event") == "packed":
                pack = str(message["pack"])
                fingerprint = str(message["fingerprint"])
            elif message is not None:
                screen.show(message)
        code = child.wait()
    stops.raise_if_any()
    if code != 0 or pack is None:
        raise child.failure(code, "packer")
    before = run.read_json(run.data_file)
    expected = None if before is None else before.get("fingerprint")
    if expected is not None and expected != fingerprint:
        raise DataError(
            f"{config.data.source} holds other images than this run was started with "
            f"(fingerprint {fingerprint[:12]}, and {str(expected)[:12]} is expected).",
            f"{run.resume_command} --data PATH   with the images of the start",
        )
    record = {"format_version": 1, "source": config.data.source, "pack": pack, "fingerprint": fingerprint}
    write_json(run.data_file, record)


def make_plan(run: RunFolder, config: RunConfig, screen: Screen, stops: StopSignals) -> Plan:
    """Have a disposable child measure the run under the cap, choose, and write plan.json.

    Where nothing fits, the child goes past the cap to find the smallest one that would do; it is ended when the
    machine itself runs short.

    Raises:
        KeyboardInterrupt: a stop was asked for.
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
    with stops.ending(child, at=1):
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
    stops.raise_if_any()
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


def read_or_make_plan(run: RunFolder, config: RunConfig, screen: Screen, stops: StopSignals, anew: bool) -> Plan:
    """Return the plan of the run; it is measured where there is none, or where a new one is asked for."""
    stored = None if anew else run.read_json(run.plan_file)
    return make_plan(run, config, screen, stops) if stored is None else plan_from_json(stored)
