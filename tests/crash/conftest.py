from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lowmem_seq.data.pack import Pack
from lowmem_seq.runs.folder import RunFolder
from tests.builders import names
from tests.crash.patient import NAMES, NEWER, Patient, open_tiny, train_two_checkpoints


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_pack: Pack) -> RunFolder:
    return train_two_checkpoints(tmp_path_factory.mktemp("damage") / "run", tiny_pack)


@pytest.fixture(scope="session")
def of_another_run(tmp_path_factory: pytest.TempPathFactory, tiny_pack: Pack) -> Path:
    """The newest checkpoint of a run that began with other weights."""
    return train_two_checkpoints(tmp_path_factory.mktemp("other") / "run", tiny_pack, "seed=1").checkpoints / NEWER


@pytest.fixture
def patient(trained: RunFolder, tmp_path: Path) -> Patient:
    run = RunFolder(Path(shutil.copytree(trained.path, tmp_path / "run")))
    patient = Patient(run, dict(open_tiny(run).saver.identity))
    assert names(patient.newest) == list(NAMES)
    assert patient.fault() is None
    return patient
