"""What a session looks like: one progress display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lowmem_seq.cli.terminal import can_redraw, harmless
from lowmem_seq.config import RunConfig
from lowmem_seq.data.catalogue import HOST
from lowmem_seq.memory.plan import SHARE_OF_AVAILABLE, Plan
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.runs.happenings import TELLERS, fetch_in, paused_briefly, ranks_in, tell
from lowmem_seq.runs.time_left import TimeLeft
from lowmem_seq.supervisor.child import Message
from lowmem_seq.units import format_bytes, format_rate, format_seconds

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_DRAWS = 1.0
OF_THE_FREE = f" ({SHARE_OF_AVAILABLE:.0%} of what is free)"
LABELS = {
    "ranks_met": "engine",
    "kept_awake": "awake",
    "not_kept_awake": "awake",
    "in_background": "power",
    "no_battery": "power",
}
"""Events that stand in line with the head of a session."""
IN_ITS_PLACE = frozenset({"session_started", "session_ended", "test", "world_formed", "cluster_open"})
"""Events that a session shows, in the place that it has for them, or says when it is over."""


class SessionScreen:
    """Shows one session; everything it says can be found again in the run folder's events.

    Args:
        console: where.
        run: what is trained.
        config: its settings.
        quiet: say only what is needed.
        invitation: how other machines join this one, to be said once they can.
    """

    def __init__(
        self, console: Console, run: RunFolder, config: RunConfig, quiet: bool, invitation: str = ""
    ) -> None:
        self._console, self._run, self._config, self._quiet = console, run, config, quiet
        self._plan: Plan | None = None
        self._live: Live | None = None
        self._activity = "starting"
        self._step = self._total_steps = 0
        self._time_left = TimeLeft(config)
        self._epoch = self._epochs = 0.0
        self._figures: dict[str, float] = {}
        self._memory = (0, 0, 0)
        self._saved_at = self._line_at = self._drawn_at = time.monotonic()
        self._saved_step: int | None = None
        self._stopping = False
        self._packing = ""
        self._probing = False
        self._peers: list[dict[str, Any]] = []
        self._invitation, self._dialled = invitation, ""

    def __enter__(self) -> SessionScreen:
        if can_redraw(self._console) and not self._quiet:
            self._live = Live(self._draw(), console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # What the supervisor tells.

    def show(self, message: Message) -> None:
        """Take in what a child said, and show it."""
        kind = message.get("event")
        handler = getattr(self, f"_on_{kind}", None)
        if kind is not None:
            self._time_left.take(message)
        if handler is not None:
            handler(message)
        told = tell(message) if kind in TELLERS and kind not in IN_ITS_PLACE else None
        if told is not None and told.is_warning:
            self._warn(told.text)
        elif told is not None:
            self._line(f"{LABELS[kind]:8}{told.text}" if kind in LABELS else told.text)
        self._refresh(force=(handler is not None or told is not None) and kind != "progress")

    def show_plan(self, plan: Plan) -> None:
        """Take in the plan that the session will follow."""
        self._plan = plan
        self._time_left.take({"event": "planned", **plan.to_json()})

    def show_memory(self, tree: int, peak: int, cap: int) -> None:
        """Show what the process tree holds, its peak, and its cap, all in bytes."""
        self._memory = (tree, peak, cap)
        self._refresh()

    def show_stopping(self) -> None:
        """Show that the stop that was asked for is under way."""
        self._stopping = True
        self._activity = "stopping: saving the last complete step (again to leave at once)"
        self._line(f"{self._activity}")

    # What the children say.

    def _on_packing(self, message: Message) -> None:
        if self._live is None and message["what"] != self._packing:
            self._line(message["what"])
        self._packing = message["what"]
        self._activity = f"{message['what']}: {message['done']:,}" + (
            f" of {message['total']:,}" if message.get("total") else ""
        )

    def _on_fetching(self, message: Message) -> None:
        self._activity = fetch_in(message)
        is_first, self._packing = self._packing != "fetching", "fetching"
        if self._live is None and (is_first or time.monotonic() - self._line_at >= SECONDS_BETWEEN_LINES):
            self._line_at = time.monotonic()
            self._line(self._activity)

    def _on_fetch_cut_off(self, _message: Message) -> None:
        self._activity = "dialling the host again"

    def _on_probing(self, message: Message) -> None:
        if self._live is None and not self._probing:
            self._line("measuring memory and speed")
        self._probing = True
        size, workers = message["micro_batch"], message["workers"]
        recomputed = ", layers recomputed" if message.get("recomputed_layers") else ""
        self._activity = f"measuring memory and speed: micro-batch {size}, {workers} at once{recomputed}"

    def _on_remembered(self, _message: Message) -> None:
        self._line("memory and speed are known from before (lowmem-seq plan --fresh measures them anew)")

    def _on_session_started(self, message: Message) -> None:
        self._step = int(message["step"])
        self._total_steps, self._epochs = int(message["total_steps"]), float(message["epochs"])
        self._epoch = self._step / self._total_steps * self._epochs
        self._saved_at = time.monotonic()
        self._saved_step = self._step if message.get("resumed", self._step) else None
        self._activity = "training"
        self._line(self._headline(message))

    def _on_progress(self, message: Message) -> None:
        self._take_step(message)

    def _on_train(self, message: Message) -> None:
        self._take_step(message)
        self._figures["images_per_second"] = float(message["images_per_second"])
        if self._live is None and time.monotonic() - self._line_at >= SECONDS_BETWEEN_LINES:
            self._line_at = time.monotonic()
            self._line(self._plain_progress())

    def _on_evaluating(self, message: Message) -> None:
        self._activity = f"evaluating {message['images']:,} images"

    def _on_validation(self, message: Message) -> None:
        self._activity = "training"
        self._figures["val_accuracy"] = float(message["val_accuracy"])

    def _on_checkpoint(self, message: Message) -> None:
        self._saved_at, self._saved_step = time.monotonic(), int(message["step"])

    def _on_trainer_restarted(self, _message: Message) -> None:
        self._activity = "starting again"

    def _on_pausing(self, message: Message) -> None:
        self._activity = "pausing: saving the last complete step"
        self._line(f"pausing: {message['cause']}; saving the last complete step")

    def _on_pause_unsaved(self, message: Message) -> None:
        self._warn(f"{message['cause']}; what came after the newest checkpoint is computed again")

    def _on_paused(self, message: Message) -> None:
        self._activity = paused_briefly(message)

    def _on_unpaused(self, message: Message) -> None:
        self._activity = "training" if "what" in message else "starting again"

    # What the ranks of a world say.

    def _on_forming(self, message: Message) -> None:
        self._activity = f"waiting for {message['ranks']} ranks at {message['address']}"
        self._line(f"engine  {message['ranks']} processes compute each step together, at {message['address']}")
        self._line("        nothing of it is encrypted or authenticated: for a trusted network only")

    def _on_ranks_met(self, _message: Message) -> None:
        self._activity = "starting"

    def _on_waiting_for_ranks(self, message: Message) -> None:
        self._activity = f"waiting: {'; '.join(message['ranks'])}"
        if self._live is None:
            self._line(self._activity)

    def _on_world_formed(self, message: Message) -> None:
        self._activity = "taking up rank 0's state"
        first, *others = ranks_in(message)
        self._line("\n".join([f"ranks   {first} (by {message['backend']})", *(f"{'':8}{line}" for line in others)]))

    # What the machines of a cluster say.

    def _on_dialling(self, message: Message) -> None:
        told = f"dialling the host at {message['address']}"
        if told != self._dialled:
            self._line(told)
        self._activity = self._dialled = told

    def _on_cluster_open(self, message: Message) -> None:
        told = tell(message)
        assert told is not None
        self._line(f"host    {told.text}. {self._invitation}")

    def _on_peers(self, message: Message) -> None:
        peers = message["peers"]
        names = [peer["machine"] for peer in peers]
        if len(peers) > 1 and names != [peer["machine"] for peer in self._peers]:
            self._line(describe_peers(peers))
        self._peers = peers

    def _on_joining(self, _message: Message) -> None:
        self._activity = "waiting for the weights that all share"
        self._line(self._activity)

    def _on_member_alone(self, _message: Message) -> None:
        self._peers = []

    def _take_step(self, message: Message) -> None:
        if not self._stopping:
            self._activity = "training"
        self._step, self._epoch = int(message["step"]), float(message["epoch"])
        self._figures["train_loss"] = float(message["train_loss"])

    # How it looks.

    def _headline(self, started: Message) -> str:
        classes = started["classes"]
        named = ", ".join(classes) if len(classes) <= 6 else f"{len(classes)} classes"
        lines = [
            f"model   {self._config.name}, {started['parameters'] / 1e6:.2f}M parameters",
            f"data    {describe_source(self._config)} ({named}): {started['train_images']:,} training, "
            f"{started['validation_images']:,} validation, {started['test_images']:,} test images",
            f"device  {started['device']}, {started['precision']}, {started['threads']} cores",
        ]
        if self._plan is not None:
            lines.append(describe_plan(self._plan, int(started["effective_batch"])))
        lines.append(describe_cap(started.get("cap_enforced_by")))
        lines.append(f"run     {self._run.path}")
        if self._step:
            verb = "resumes" if started.get("resumed", True) else "joins"
            lines.append(f"{verb} after step {self._step:,} of {self._total_steps:,}")
        return "\n".join(lines)

    def _learning(self) -> list[str]:
        figures = self._figures
        parts = []
        if "train_loss" in figures:
            parts.append(f"loss {figures['train_loss']:.3f}")
        if "val_accuracy" in figures:
            parts.append(f"validation {figures['val_accuracy']:.1%}")
        if "images_per_second" in figures:
            here = " here" if len(self._peers) > 1 else ""
            parts.append(f"{format_rate(figures['images_per_second'])}{here}")
        if len(self._peers) > 1:
            together = sum(float(peer["samples_per_second"]) for peer in self._peers)
            parts.append(f"{len(self._peers)} machines {format_rate(together)}")
        return parts

    def _resources(self) -> list[str]:
        tree, _, cap = self._memory
        left = self._time_left.seconds()
        parts = []
        if cap:
            parts.append(f"RAM {format_bytes(tree)} of {format_bytes(cap)}")
        if left is not None:
            parts.append(f"about {format_seconds(left)} left")
        if self._saved_step is not None:
            parts.append(f"saved {format_seconds(time.monotonic() - self._saved_at)} ago")
        elif self._total_steps:
            parts.append("not saved yet")
        return parts

    def _plain_progress(self) -> str:
        where = f"step {self._step:,}/{self._total_steps:,}, epoch {self._epoch:.1f}/{self._epochs:.4g}"
        return ", ".join([where, *self._learning(), *self._resources()])

    def _draw(self) -> Group:
        if not self._total_steps:
            return Group(Text(self._activity, style="cyan"))
        top = Table.grid(padding=(0, 1))
        top.add_row(
            Text(f"step {self._step:,}/{self._total_steps:,}", style="bold"),
            ProgressBar(total=self._total_steps, completed=self._step, width=24),
            Text(f"epoch {self._epoch:.1f}/{self._epochs:.4g}"),
            Text(self._activity if self._activity != "training" else "", style="cyan"),
        )
        return Group(top, Text(" · ".join(self._learning())), Text(" · ".join(self._resources()), style="dim"))

    def _refresh(self, force: bool = False) -> None:
        now = time.monotonic()
        if self._live is not None and (force or now - self._drawn_at > SECONDS_BETWEEN_DRAWS):
            self._drawn_at = now
            self._live.update(self._draw(), refresh=True)

    def _warn(self, text: str) -> None:
        self._console.print(Text(harmless(f"warning: {text}"), style="bold yellow"))

    def _line(self, text: str) -> None:
        if not self._quiet:
            self._console.print(Text(harmless(text)))


def describe_source(config: RunConfig) -> str:
    """Return where the images come from, for people."""
    return "the host's images" if config.data.source == HOST else config.data.source


def describe_peers(peers: list[dict[str, Any]]) -> str:
    """Return the machines of a cluster, a line each: device, speed, and share of the work by it."""
    together = sum(float(peer["samples_per_second"]) for peer in peers)
    width = max(len(peer["name"]) for peer in peers)
    lines = []
    for number, peer in enumerate(peers):
        rate = float(peer["samples_per_second"])
        share = f", {rate / together:.0%} of the work" if rate else ""
        speed = format_rate(rate) if rate else "speed not known yet"
        lines.append(
            f"{'with' if number == 0 else '':8}{peer['name']:{width}}  {peer['device']}, {peer['precision']}, "
            f"{speed}{share}"
        )
    return "\n".join(lines)


def describe_plan(plan: Plan, effective_batch: int) -> str:
    """Return the plan in a line for people."""
    cap = format_bytes(plan.cap_bytes) + (OF_THE_FREE if plan.cap_source == "machine" else "")
    cap += f", a part for each of {plan.neighbours} processes" if plan.neighbours > 1 else ""
    at_once = f", {plan.workers} at once," if plan.workers > 1 else ""
    recomputed = f", {plan.recomputed_layers} layers recomputed" if plan.recomputed_layers else ""
    return (
        f"plan    micro-batches of {plan.micro_batch}{at_once} for a batch of {effective_batch}{recomputed}; "
        f"expected {format_rate(plan.predicted_images_per_second)} and {format_bytes(plan.predicted_peak_bytes)} "
        f"under a cap of {cap}"
    )


def describe_cap(enforced_by: str | None) -> str:
    """Return who keeps the cap, in a line for people."""
    if enforced_by is None:
        return "cap     best effort: nothing here enforces it; the run looks, and gives memory back in time"
    return f"cap     enforced by the system ({enforced_by}), and kept well below it by looking"
