from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, so that none sees the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LOWMEM_SEQ_CACHE", str(folder))
    return folder
