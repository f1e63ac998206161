"""What a machine raises that the hub does not take, by what the hub said."""

from __future__ import annotations

from lowmem_seq.cluster.messages import SAME_RELEASE_HINT, GoAway, Refused
from lowmem_seq.errors import ClusterError


def refused(message: Refused) -> ClusterError:
    """Return the error that says why the hub doesn't let this machine in."""
    return ClusterError(
        f"the cluster refused this machine: its {message.field} is {message.theirs}, the host's is {message.ours}",
        message.hint,
    )


def sent_away(message: GoAway) -> ClusterError:
    """Return the error that says why the hub wants no more of this machine."""
    match message.reason:
        case "full":
            return ClusterError(f"the cluster is full: {message.text}", "end one of its machines first")
        case "replaced":
            return ClusterError(
                "another process joined the cluster as this machine",
                "run one trainer a run folder; a copied run folder has the same machine key",
            )
        case "no_pack":
            return ClusterError(
                f"the images could not be fetched: {message.text}",
                "mend it there; or have the same images on this machine: --data PATH",
            )
    return ClusterError(f"the hub did not understand this machine: {message.text}", SAME_RELEASE_HINT)
