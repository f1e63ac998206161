"""What a safetensors file says of itself: names, types, shapes. Nothing but the header is read, and no torch."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from lowmem_seq.errors import NoCheckpointError

LARGEST_HEADER_BYTES = 2 * 10**6
"""A header takes 14 times its length in memory when it is read. The optimizer's of sequencer2d_l has 0.3 MB."""

TYPE_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}
"""What torch calls the types, by what safetensors calls them."""

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape by name: `{"head.bias": ("F32", (10,))}`."""


def read_shapes(path: Path) -> Shapes:
    """Return the types and shapes of a file's tensors.

    The library checks that the header is no longer than the file, and that the tensors fill the rest of it exactly:
    a header can't promise more than is there.

    Raises:
        NoCheckpointError: the file is no whole safetensors file, or its header is longer than any of ours.
    """
    try:
        with path.open("rb") as start:
            header_bytes = int.from_bytes(start.read(8), "little")
        if header_bytes > LARGEST_HEADER_BYTES:
            raise SafetensorError(f"its header is said to have {header_bytes:,} bytes")
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise NoCheckpointError(f"{path} can't be read: {error}", "is it a copy that broke off?") from error
