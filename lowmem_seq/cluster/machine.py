"""Who a machine of a cluster is: a key that it shows the hub alone, and the id that follows from it, for all."""

from __future__ import annotations

import hashlib
import secrets


def new_machine_key() -> str:
    """Return 32 hex digits that a machine shows the hub alone, so that nobody else can pass for it."""
    return secrets.token_hex(16)


def machine_id(machine_key: str) -> str:
    """Return the name, 16 hex digits, that all may know of the machine with this key."""
    return hashlib.blake2b(bytes.fromhex(machine_key), person=b"lowmem-seq id 1", digest_size=8).hexdigest()
