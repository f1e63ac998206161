"""A run of several machines, as one of them trains it: its own steps, on weights that it shares with the others.

Between two steps the weights may change by what the others did. The schedule runs on the samples of all. The host
looks at the validation part; at the end all machines take the host's averaged weights, so that there is one model.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from lowmem_seq import __version__
from lowmem_seq.checkpoint.manifest import Checkpoint
from lowmem_seq.cluster.layout import Layout
from lowmem_seq.cluster.member import Joined, Member
from lowmem_seq.cluster.member_checkpoint import to_json
from lowmem_seq.cluster.member_settings import MemberSettings
from lowmem_seq.cluster.membership import Membership, cluster_folder
from lowmem_seq.cluster.opening import STANDING, standing_of
from lowmem_seq.cluster.serving import START_FILE
from lowmem_seq.cluster.token import token_from_environment
from lowmem_seq.errors import ClusterError
from lowmem_seq.files import placing, write_json
from lowmem_seq.training.loop import Training
from lowmem_seq.training.workers import Range

Floats = npt.NDArray[np.float32]
SECONDS_TO_JOIN = 60.0
SECONDS_TO_JOIN_AGAIN = 5.0
"""A machine that can go on alone dials on meanwhile."""
SECONDS_BETWEEN_FIGURES = 5.0
TOLD_BY_THE_HUB = frozenset({"standing", "member_reunion", "member_welcome"})
"""What stands in the events of the machine that hosts already, unless its hub is gone."""
SECONDS_FOR_THE_RESULT = 1800.0
"""How long a machine waits at the end for the host to evaluate and write the weights that the run ends with."""


class Together:
    """The samples and weights that a cluster gives one of its machines.

    Args:
        training: its session.
        membership: its part.
        fingerprint: of the data.
    """

    def __init__(self, training: Training, membership: Membership, fingerprint: str) -> None:
        self._training, self._membership = training, membership
        parameters = training.state.parameters
        self._on_cpu = training.plan.device == "cpu"
        self._layout = Layout.of_shapes({name: tuple(value.shape) for name, value in parameters.items()})
        config = training.config
        self._member = Member(
            MemberSettings(
                token=token_from_environment(),
                address=membership.address,
                port=membership.port,
                machine_key=membership.machine_key,
                name=membership.name,
                program=__version__,
                torch=str(torch.__version__),
                python=platform.python_version(),
                system=platform.system(),
                experiment=config.experiment_hash(),
                data=fingerprint,
                device=training.plan.device,
                precision=training.plan.precision,
                effective_batch=training.batch,
                samples_per_second=training.plan.predicted_images_per_second,
            ),
            self._layout,
            self._tell,
        )
        self._shown_at = time.monotonic()
        self._is_over = False

    def join(self, checkpoint: Checkpoint | None) -> None:
        """Be let in by the hub, and begin at the weights that all share, or alone where it is gone in mid-run.

        Args:
            checkpoint: what was taken up, if anything.

        Raises:
            ClusterError: nobody answers, or the hub refuses this machine.
            NoCheckpointError: the checkpoint's state of a cluster is damaged.
        """
        training, counters = self._training, self._training.state.counters
        saved = None if checkpoint is None else standing_of(checkpoint)
        if saved is not None:
            self._member.restore({}, to_json(saved))
        elif checkpoint is not None and not self._membership.hosts:
            raise ClusterError(
                f"{counters.step:,} steps of this run were trained alone, and the host's run has not had them.",
                "host with this machine, and join with the other; or join with a new run: lowmem-seq train",
            )
        if self._membership.hosts:
            self._write_start()
        training.channel.say({"event": "joining"})
        joined = self._dial(can_go_alone=saved is not None)
        if joined is None:  # a stop was asked for
            return
        training.set_length(-(-joined.total // training.batch))
        tensors = self._tensors()
        if not self._member.alone:
            self._member.adopt(tensors, self._stop_requested)
            self._bring_back(tensors)
        if not self._member.has_weights:
            return
        if training.state.average is not None and checkpoint is None:
            for name, value in training.state.parameters.items():
                training.state.average.values[name].copy_(value.detach())
        reached = self._member.samples_done // training.batch
        counters.step = min(max(counters.step, reached), training.total_steps)
        part = self._membership
        self._tell(
            {
                "event": "member_begins",
                "cluster": joined.base.cluster,
                "machine": part.machine,
                "name": part.name,
                "hosts": part.hosts,
                **self._member.costs(),
            }
        )

    def _dial(self, can_go_alone: bool) -> Joined | None:
        """Return what the hub says; where it is gone, a machine that had been let in before goes on alone."""
        try:
            seconds = SECONDS_TO_JOIN_AGAIN if can_go_alone else SECONDS_TO_JOIN
            return self._member.join(seconds, stop_requested=self._stop_requested)
        except ClusterError:
            if self._member.was_refused or not can_go_alone:
                raise
            return self._member.go_alone(self._tensors())

    def _stop_requested(self) -> bool:
        return self._training.channel.stop_requested

    @property
    def is_over(self) -> bool:
        """Whether the samples of the run were all accepted, and the last weights here, before this step."""
        return self._is_over

    @property
    def validates(self) -> bool:
        """Whether this is the host, or trains alone for now."""
        return self._membership.hosts or self._member.alone

    @property
    def samples_done(self) -> int:
        """Those of all machines that are in this one's weights."""
        return self._member.samples_done

    @property
    def saved_bytes(self) -> int:
        """The ledger is small."""
        return 0

    def before_step(self) -> None:
        """Take in what others did, and see whether that was the end: it may come at any moment, and counts here."""
        self._is_over = self._member.finished
        if self._member.is_due:
            tensors = self._tensors()
            if self._member.between_steps(tensors):
                self._bring_back(tensors)
        if self._is_over:
            self._training.state.counters.step = self._training.total_steps

    def take(self, samples: int) -> list[Range]:
        """Return the next positions that this machine has on lease; it waits where others have the rest."""
        return self._member.take(samples, self._stop_requested)

    def trained(self, ranges: Sequence[Range], seconds: float) -> None:
        """Count a step as this machine's work, and tell the screen how fast all are."""
        self._member.trained(ranges, seconds)
        if time.monotonic() - self._shown_at > SECONDS_BETWEEN_FIGURES:
            self._show_peers()

    def does(self, what: str) -> None:
        """Tell the others what this machine is at."""
        self._member.state = what  # type: ignore[assignment]

    def end(self, reached: bool) -> None:
        """Hand in the last work and take leave; where the run is over, end at the weights that all end with."""
        if not self._member.has_weights:  # a stop was asked for before they came
            self._member.close()
            return
        if reached and not self._membership.hosts:
            self._take_result()
        tensors = self._tensors()
        reason: Literal["finished", "stopped"] = "finished" if reached else "stopped"
        if self._member.end(tensors, reason):
            self._bring_back(tensors)
        self._tell({"event": "member_ends", "reason": reason, **self._member.costs()})

    def _take_result(self) -> None:
        """Wait for the averaged weights of the host, and put them in place of this machine's own."""
        state = self._training.state
        final = self._member.final_average(SECONDS_FOR_THE_RESULT, self._stop_requested)
        if final is None:
            self._tell({"event": "result_missing"})
            return
        goal = state.parameters if state.average is None else state.average.values
        with torch.no_grad():
            for name, value in final.items():
                goal[name].copy_(torch.from_numpy(value))

    def writers(self) -> Mapping[str, Callable[[Path], None]]:
        """What a checkpoint holds of the cluster: where the run and this machine stood in it."""
        _, standing = self._member.checkpoint()
        return {STANDING: lambda path: write_json(path, standing)}

    def _write_start(self) -> None:
        """Write what all begin with, where the hub has nothing of its own: this machine's weights."""
        from safetensors.numpy import save_file

        training = self._training
        folder = cluster_folder(training.run)
        weights = {name: np.array(value) for name, value in self._tensors().items()}
        with placing(folder / START_FILE) as path:
            save_file(weights, path)

    def _tensors(self) -> dict[str, Floats]:
        """Return the weights: views of them on a CPU, copies elsewhere."""
        return {name: value.detach().cpu().numpy() for name, value in self._training.state.parameters.items()}

    def _bring_back(self, tensors: Mapping[str, Floats]) -> None:
        """Write the weights back to where they live, if that is not where they were changed."""
        if self._on_cpu:
            return
        with torch.no_grad():
            for name, value in self._training.state.parameters.items():
                value.copy_(torch.from_numpy(tensors[name]))

    def _show_peers(self) -> None:
        """Tell the screen who is there, and how fast; that of the host hears it from the hub."""
        self._shown_at = time.monotonic()
        if not self._membership.hosts:
            peers = [msgspec.to_builtins(peer) for peer in self._member.peers]
            self._training.channel.say({"event": "peers", "peers": peers})

    def _tell(self, message: dict[str, Any]) -> None:
        if message["event"] == "member_peers":
            self._show_peers()
            self._training.journal.record("peers_present", others=max(0, len(self._member.peers) - 1))
            return
        if self._membership.hosts and message["event"] in TOLD_BY_THE_HUB and not message["alone"]:
            return
        details = {key: value for key, value in message.items() if key != "event"}
        self._training.journal.record(str(message["event"]), **details)
