"""What training among several holds in memory beside the training itself, as the plan reckons it.

A member keeps the common base, its last delta, what compression lost, and one received update. The hub keeps the
base, what compression lost, the deltas of a round and the update made of them; most where those are fp32. What a
hub holds for more than two machines comes on top. A rank of engine mode keeps two buffers, whatever the model.
"""

from __future__ import annotations

FP32, VECTORS_OF_A_MEMBER, VECTORS_OF_THE_HUB = 4, 3, 2
MEMBER_LIBRARIES_BYTES = 12 * 10**6
"""pyzmq, and a few chunks on their way."""
HUB_LIBRARIES_BYTES = 60 * 10**6
"""Python, numpy and pyzmq, and a few chunks."""
PLANNED_MACHINES = 2
BUCKET_BYTES = 8 * 2**20
"""Of each of the two buffers by which ranks sum their gradients; what travels at once."""
RANK_LIBRARIES_BYTES = 60 * 10**6
"""gloo's own buffers of what is under way, and the stacks of eight threads, which the system's limit counts whether
they are touched or not: with the buckets, resident memory grew by 26 MB, the data segment by 55 and two stacks."""


def member_bytes(weights: int) -> int:
    """Return what a trainer holds for its part in a cluster, of a model with so many weights."""
    return weights * FP32 * (VECTORS_OF_A_MEMBER + 1) + MEMBER_LIBRARIES_BYTES


def hub_bytes(weights: int, has_momentum: bool, machines: int = PLANNED_MACHINES) -> int:
    """Return what a hub holds for so many machines, of a model with so many weights."""
    vectors = VECTORS_OF_THE_HUB + has_momentum + machines + 1
    return weights * FP32 * vectors + HUB_LIBRARIES_BYTES


def rank_bytes() -> int:
    """Return what a trainer holds as one rank of a world."""
    return 2 * BUCKET_BYTES + RANK_LIBRARIES_BYTES
