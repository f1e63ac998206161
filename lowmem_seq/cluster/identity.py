"""Whether a machine would train the same as the others: what its hello is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.messages import SAME_RELEASE_HINT, Hello, Refused
from lowmem_seq.cluster.serving import Serving

HINTS = {
    "program": SAME_RELEASE_HINT,
    "experiment": "start every machine with the same preset and settings; the host's are in its run's config.yaml",
    "data": "every machine needs the same images: leave --data out to have the host's, or name the same ones",
    "layout": "the model has other tensors: start every machine with the same preset and settings",
    "machines": "a run has room for so many machines, one after another; join with a run folder that took part",
    "cluster": "this machine's run belongs to another cluster; join with a new run, or one that began here",
}
"""By the field of `hello` that differs; `cluster` is its base's."""


@dataclass(frozen=True)
class Identity:
    """What every machine of a run has in common."""

    program: str
    experiment: str
    data: str
    cluster: str
    """A random name: that of the ledger's first branch."""
    layout: str | None = None
    """The fingerprint of the tensors' names and shapes; None as long as the host has not told its own."""

    @classmethod
    def of(cls, serving: Serving, cluster: str) -> Identity:
        """Return what is known when the hub begins."""
        return cls(serving.program, serving.experiment, serving.data, cluster)

    def refusal(self, hello: Hello) -> Refused | None:
        """Return what to answer a machine that would train something else; None: it may come in.

        The version is compared first: another one explains whatever else differs. A machine without data differs in
        nothing, and gets no work until it says hello with some; nor does one whose weights hold nobody's work.
        """
        pairs = {
            "program": (self.program, hello.program),
            "experiment": (self.experiment, hello.experiment),
            "data": (self.data, hello.data or self.data),
            "layout": (self.layout or hello.layout, hello.layout or self.layout),
            "cluster": (self.cluster, hello.base.cluster if hello.base and hello.base.accepted else self.cluster),
        }
        for field, (ours, theirs) in pairs.items():
            if ours != theirs and ours is not None and theirs is not None:
                return Refused(field, ours, theirs, HINTS[field])
        return None


def no_room(ledger: Ledger, hello: Hello) -> Refused | None:
    """Return what to answer a machine for which a run's ledger has no room; None: it has."""
    try:
        ledger.history.require_room_for([hello.machine])
    except ValueError as error:
        return Refused("machines", str(error), hello.machine, HINTS["machines"])
    return None
