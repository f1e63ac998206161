"""`lowmem-seq verify`: whether each checkpoint of a run can be gone on from."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from lowmem_seq.cli.settings import JsonOption, RunDirArgument
from lowmem_seq.cli.terminal import harmless, make_console, print_json
from lowmem_seq.errors import NoCheckpointError
from lowmem_seq.report.status import ALIVE, saved_at, saved_steps
from lowmem_seq.report.summary import summarise_all
from lowmem_seq.runs.folder import RunFolder, open_run
from lowmem_seq.units import format_bytes

if TYPE_CHECKING:  # reading headers loads numpy, which the start of other commands need not wait for
    from lowmem_seq.checkpoint.verification import Verdict


def verify(
    run_dir: RunDirArgument,
    as_json: JsonOption = False,
) -> None:
    """Say of every checkpoint of a run whether it can be gone on from.

    All of it is read, and nothing is changed. Ends with 0 if all verify, and with 6 if one does not.

    Examples:
        lowmem-seq verify runs/small-20261122-230000
    """
    run = open_run(run_dir)
    findings = examine(run)
    console = make_console(sys.stdout, soft_wrap=True)
    if as_json:
        print_json(findings.to_json())
    else:
        for line in findings.lines():
            console.print(line)
    findings.raise_if_wrong(run)
    if not as_json:
        console.print(Text(findings.conclusion, style="bold green"))


@dataclass(frozen=True)
class Findings:
    """What was found in one run."""

    run: str
    state: str
    total_steps: int | None
    verdicts: tuple[Verdict, ...]
    saved_unix_seconds: tuple[float | None, ...]
    """When each of them was saved."""
    resume_step: int | None
    set_aside: tuple[str, ...]
    unfinished: tuple[str, ...]
    told_step: int | None
    """The last step that the events call saved."""
    torn_events: int
    has_weights: bool
    weights_fault: str | None

    @property
    def wrong(self) -> str:
        """What does not verify, in words; empty where everything does."""
        count, faults = len(self.verdicts), sum(one.fault is not None for one in self.verdicts)
        told = []
        if faults:
            told.append(f"{faults} of {count} checkpoints {'does' if faults == 1 else 'do'} not verify")
        elif not count and self.told_step is not None:
            told.append(f"step {self.told_step:,} was saved, and no checkpoint lies there now")
        elif not count and self.set_aside:
            told.append("every checkpoint that lies there was set aside")
        if self.weights_fault is not None:
            told.append("the final weights do not verify")
        return ", and ".join(told)

    def to_json(self) -> dict[str, Any]:
        """The findings as `lowmem-seq verify --json` prints them."""
        return {
            "run": self.run,
            "state": self.state,
            "verifies": not self.wrong,
            "resume_step": self.resume_step,
            "checkpoints": [
                {
                    "name": one.checkpoint.path.name,
                    "step": one.checkpoint.step,
                    "bytes": one.bytes,
                    "saved_unix_seconds": at,
                    "val_accuracy": one.val_accuracy,
                    "fault": one.fault,
                }
                for one, at in zip(self.verdicts, self.saved_unix_seconds, strict=True)
            ],
            "set_aside": list(self.set_aside),
            "unfinished": list(self.unfinished),
            "has_weights": self.has_weights,
            "weights_fault": self.weights_fault,
            "torn_events": self.torn_events,
        }

    def lines(self) -> list[Text]:
        """One line for each thing that was looked at, for people."""
        width = max((len(one.checkpoint.path.name) for one in self.verdicts), default=0)
        told: list[Text] = []
        for one, at in zip(self.verdicts, self.saved_unix_seconds, strict=True):
            when = "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
            accuracy = "" if one.val_accuracy is None else f"{one.val_accuracy:.2%}"
            figures = (
                f"{one.checkpoint.path.name:<{width}}  {format_bytes(one.bytes):>8}  {when:16}  {accuracy:>7}  "
            )
            told.append(_line(figures, one.fault))
        if self.has_weights:
            told.append(_line("the final weights, model.safetensors: ", self.weights_fault))
        told += [_text(f"{name} was set aside by an earlier resume, and is not counted") for name in self.set_aside]
        told += [_text(f"{name} is of a save that was killed; resume clears it away") for name in self.unfinished]
        if self.torn_events:
            lines = "1 line is" if self.torn_events == 1 else f"{self.torn_events:,} lines are"
            told.append(_text(f"events.jsonl: {lines} torn, as kills leave them, and passed over"))
        return told

    def raise_if_wrong(self, run: RunFolder) -> None:
        """See that everything verifies.

        Raises:
            NoCheckpointError: something does not.
        """
        if self.wrong:
            raise NoCheckpointError(f"{self.run}: {self.wrong}.", self._hint(run))

    def _hint(self, run: RunFolder) -> str:
        newest_fault = next((one for one in reversed(self.verdicts) if one.fault is not None), None)
        if self.state in ALIVE:
            return "it is running, and saves on; look again after its next checkpoint"
        if self.resume_step is not None and self.state != "finished":
            return f"{run.resume_command}   goes on from step {self.resume_step:,}"
        if self.resume_step is not None and self.weights_fault is None:
            return f"the run is finished, and its weights verify; to go on: {run.resume_command} --epochs N"
        if self.resume_step is not None:
            return f"{run.resume_command} --steps {self.total_steps}   writes the final weights again"
        if newest_fault is not None and newest_fault.kind == "newer":
            return "pip install --upgrade lowmem-seq"
        if newest_fault is not None and newest_fault.kind == "foreign":
            return "restore the run's config.yaml and data.json, or the checkpoints, from a copy"
        if newest_fault is not None and newest_fault.kind == "unusable":
            return f"move {newest_fault.checkpoint.path} away, and verify again"
        return "restore the folder from a copy, or start a new run with lowmem-seq train"

    @property
    def conclusion(self) -> str:
        """The last line, where everything verifies."""
        count = len(self.verdicts)
        if not count:
            return "no checkpoint was saved yet; there is nothing to verify"
        what = f"all {count} checkpoints verify" if count > 1 else "the one checkpoint verifies"
        return f"{what}; resume goes on from step {self.resume_step:,}"


def examine(run: RunFolder) -> Findings:
    """Return what is found in a run; nothing in its folder is changed."""
    from lowmem_seq.checkpoint.verification import (
        MODEL,
        find_weights_fault,
        leftovers,
        resume_step,
        set_aside,
        verify_checkpoints,
    )

    summary = summarise_all([run])[0]
    running = summary["state"] in ALIVE
    told = saved_steps(run)  # read before the folder: what is told of here lies there, or its successor does
    data = run.read_json(run.data_file) or {}
    identity = {"experiment_sha256": run.config.experiment_hash()}
    if isinstance(data.get("fingerprint"), str):
        identity["data_fingerprint"] = data["fingerprint"]
    verdicts = verify_checkpoints(run.checkpoints, identity, with_leftovers=not running)
    usual = next((one.contents[MODEL] for one in verdicts if one.fault is None), None)
    has_weights, weights_fault = run.weights_file.exists(), None
    if has_weights:
        weights_fault = find_weights_fault(run.weights_file, usual, summary["weights_sha256"])
    counted = {one.checkpoint.path.name for one in verdicts}
    killed = [] if running else [one.path.name for one in leftovers(run.checkpoints)]
    return Findings(
        run=str(run.path),
        state=summary["state"],
        total_steps=summary["total_steps"],
        verdicts=tuple(verdicts),
        saved_unix_seconds=tuple(saved_at(one.checkpoint, told) for one in verdicts),
        resume_step=resume_step(verdicts),
        set_aside=tuple(set_aside(run.checkpoints)),
        unfinished=tuple(name for name in killed if name not in counted),
        told_step=max(told, default=None),
        torn_events=run.events.count_torn(),
        has_weights=has_weights,
        weights_fault=weights_fault,
    )


def _text(text: str) -> Text:
    """Return a line of names that may be somebody else's."""
    return Text(harmless(text, one_line=True))


def _line(what: str, fault: str | None) -> Text:
    style = "green" if fault is None else "bold red"
    found = "verifies" if fault is None else harmless(f"does not verify: {fault}", one_line=True)
    return _text(what).append(found, style)
