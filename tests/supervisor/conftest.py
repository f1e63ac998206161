from __future__ import annotations

import pytest

from lowmem_seq.runs.folder import RunFolder
from tests.supervisor.lives import Supervise


@pytest.fixture
def supervise(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Supervise:
    return Supervise(run, monkeypatch)
