"""What steps are computed with at present, and how that changes while a run goes on.

The governor advises between micro-batches. To become smaller, the step under way is dropped and begun anew, so that
each step is computed with one setting from its first micro-batch to its last: whoever knows the events can repeat
the run. To grow waits for the next step.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch

from lowmem_seq.files import write_json
from lowmem_seq.memory.governor import Advice, Governor
from lowmem_seq.memory.plan import Plan, Setting, highest_peaks, smaller, told_change
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.journal import Journal
from lowmem_seq.training.patience import DiskPatience
from lowmem_seq.training.shortage import StartAnew
from lowmem_seq.training.workers import Workers


class SettingInForce:
    """The plan's setting, applied to the workers, and changed on the governor's advice.

    Args:
        run: where plan.json is kept.
        plan: how to begin.
        workers: what computes.
        governor: gives the advice.
        journal: hears of every change.
        patience: waits for the disk on which plan.json lies.
    """

    def __init__(
        self,
        run: RunFolder,
        plan: Plan,
        workers: Workers,
        governor: Governor,
        journal: Journal,
        patience: DiskPatience,
    ) -> None:
        self._run, self._workers, self.governor = run, workers, governor
        self._journal, self._patience = journal, patience
        self._mutex = threading.Lock()
        self._advice: Advice | None = None
        self._before: list[tuple[Setting, int]] = []
        """Whence it came to be so small, and the highest peak that is known of it, in bytes."""
        self._told_that_it_is_smallest = False
        self._peaks = highest_peaks(plan.measured)
        self.take(plan)

    def take(self, plan: Plan) -> None:
        """Compute as a plan says from here on, between two steps."""
        self.plan = plan
        torch.set_num_threads(plan.threads)
        self._workers.set_count(plan.workers)
        self._workers.set_recomputed_layers(plan.recomputed_layers)
        self._workers.set_lstm_path(plan.lstm_path)
        self._smaller = smaller(plan)

    def _larger(self) -> Setting | None:
        if self._before:
            return self._before[-1][0]
        return self.plan.chosen if self.plan.setting != self.plan.chosen else None

    def _larger_bytes(self) -> int | None:
        """Return the peak of the next larger setting: as this process had it, or as the plan knows it."""
        if self._before:
            return self._before[-1][1]
        if self.plan.setting == self.plan.chosen:
            return None
        return self._peaks.get(self.plan.chosen, self.plan.predicted_peak_bytes - self.plan.others_bytes)

    def asks_to_stop(self) -> bool:
        """Whether the step under way should be dropped, because memory is short; any worker's thread may ask."""
        with self._mutex:  # or an advice to grow could take the place of a later one to shrink
            growing = self._advice is not None and self._advice.what == "grow"
            if self._advice is None or growing:  # the rest of a long step can be long enough for a shortage
                advice = self.governor.look(None if growing else self._larger_bytes())
                if advice is not None and advice.what == "shrink" and self._smaller is None:
                    self._bear(advice)
                elif advice is not None:
                    self._advice = advice
            return self._advice is not None and self._advice.what != "grow"

    def _bear(self, advice: Advice) -> None:
        """Go on as it is where nothing smaller is left; what the system enforces, it enforces."""
        self._advice = None
        self.governor.changed(advice, has_changed=False)
        if not self._told_that_it_is_smallest:
            self._told_that_it_is_smallest = True
            self._journal.record(
                "setting_kept", cause=f"{advice.cause}, and nothing smaller is left to compute with"
            )

    def change(self, step: int) -> None:
        """Follow the advice, if there is one, before step `step` is computed.

        Raises:
            StartAnew: only another process can help.
            DiskError: plan.json could not be written.
        """
        advice, self._advice = self._advice, None
        if advice is None:
            return
        if advice.what == "restart":
            raise StartAnew(advice.cause)
        before, plan = self.plan, self._next(advice)
        if plan is None:
            return
        self._patience.run("the plan", lambda: write_json(self._run.plan_file, plan.to_json()))
        self.take(plan)
        self.governor.changed(advice)
        self._journal.record(
            "setting_changed", step=step, **told_change(before.setting, plan.setting), cause=advice.cause
        )

    def _next(self, advice: Advice) -> Plan | None:
        if advice.what == "shrink":
            if self._smaller is not None:
                peak = max(self.governor.peak_bytes, self._peaks.get(self.plan.setting, 0))
                self._before.append((self.plan.setting, peak))
            return self._smaller
        larger = self._larger()
        if self._before:
            self._before.pop()
        return None if larger is None else self.plan.with_setting(larger)

    def sizes_to_evaluate(self, step: int) -> Iterator[int]:
        """Yield how many images to evaluate next, for ever: the micro-batch, and less as soon as memory is short.

        What came up meanwhile makes the steps smaller too, from the next one on.
        """
        size = self.plan.micro_batch
        while True:
            advice = self.governor.look(None)
            if advice is not None:
                self._advice = advice if advice.what == "restart" or self._smaller is not None else None
                self.governor.changed(advice, has_changed=False)
                if advice.what == "shrink" and size > 1:
                    self._journal.record(
                        "evaluation_cut", step=step, images=size // 2, images_before=size, cause=advice.cause
                    )
                    size //= 2
            yield size

    def step_ended(self, steps_left: int) -> None:
        """Hear that a step is done; growth that won't fit the run is told of."""
        leak = self.governor.step_ended(steps_left)
        if leak is not None:
            self._journal.record("leak_noticed", message=leak)
