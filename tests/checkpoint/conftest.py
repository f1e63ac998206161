from __future__ import annotations

from pathlib import Path

import pytest

from lowmem_seq.checkpoint.store import CheckpointStore, Retention


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """An empty one that keeps two checkpoints."""
    return CheckpointStore(tmp_path / "checkpoints", Retention(newest=2))
