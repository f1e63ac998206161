"""Who a machine is that joins a cluster, and what it says of that."""

from __future__ import annotations

from dataclasses import dataclass, field

from lowmem_seq.cluster.layout import Layout
from lowmem_seq.cluster.messages import Hello
from lowmem_seq.cluster.token import Token, machine_id


@dataclass(frozen=True)
class MemberSettings:
    """Where the hub is, and who it is that joins it. The fields from `name` on are told to the hub as they are."""

    token: Token
    address: str
    port: int
    machine_key: str = field(repr=False)
    """Kept in the run folder: with it a machine is the same one after a restart."""
    name: str
    program: str
    torch: str
    python: str
    system: str
    experiment: str
    """A digest of all settings that decide what is trained."""
    data: str | None
    """The dataset's fingerprint."""
    device: str
    precision: str
    effective_batch: int
    samples_per_second: float = 0.0
    """As planned or measured before; 0: not known. It decides only how large the first lease is."""


def hello_of(settings: MemberSettings, layout: Layout) -> Hello:
    """Return what a machine that trains says of itself."""
    return Hello(
        machine=machine_id(settings.machine_key),
        machine_key=settings.machine_key,
        name=settings.name,
        program=settings.program,
        torch=settings.torch,
        python=settings.python,
        system=settings.system,
        experiment=settings.experiment,
        data=settings.data,
        layout=layout.fingerprint(),
        device=settings.device,
        precision=settings.precision,
        effective_batch=settings.effective_batch,
        samples_per_second=settings.samples_per_second,
        base=None,
    )
