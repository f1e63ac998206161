"""What every test stands on: one thread for matrix products, a cache of its own, a tiny pack, a ready run."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from lowmem_seq import files
from lowmem_seq.data.pack import Pack
from lowmem_seq.data.prepare import prepare
from lowmem_seq.runs.folder import RunFolder
from tests.builders import make_run, tiny_config, train_here
from tests.data.builders import coloured_files, write_folder, write_pack
from tests.disks import UnsyncedDisk
from tests.sessions import Stories, telling, train_undisturbed

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on two busy cores spin (docs/log.md)
settings.register_profile("lowmem", deadline=None, max_examples=40)  # no deadline: the machines are noisy
settings.load_profile("lowmem")
if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)  # under nohup; what is ignored here, a child would ignore as well


@pytest.fixture(scope="session", autouse=True)
def cache_of_all_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for the session, so that a dataset is packed once, and no test sees the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWMEM_SEQ_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """45 train and 12 test pictures of noise, 16x16, of three classes."""
    folder = tmp_path_factory.mktemp("pack") / "tiny"
    return write_pack(folder, {"train": [0, 1, 2] * 15, "test": [0, 1, 2] * 4}, image_size=16)


@pytest.fixture
def run(tmp_path: Path, tiny_pack: Pack) -> RunFolder:
    """A run of the preset `tiny` on the tiny pack, before its first step."""
    return make_run(tmp_path / "run", tiny_pack, tiny_config())


@dataclass(frozen=True)
class Coloured:
    """Pictures of three colours, and a finished run of `tiny` that has learned them."""

    photos: Path
    pack: Pack
    run: RunFolder


@pytest.fixture(scope="session")
def coloured(tmp_path_factory: pytest.TempPathFactory, cache_of_all_tests: Path) -> Coloured:
    """60 pictures in folders blue, green and red, and a run of 40 steps on them."""
    folder = tmp_path_factory.mktemp("coloured")
    files = coloured_files(red=(200, 40, 40), green=(40, 200, 40), blue=(40, 40, 200))
    photos = write_folder(folder / "photos", files)
    settings = ("steps=40", "recipe.effective_batch=16", f"data.source={photos}", "recipe.warmup_fraction=0")
    pack = prepare(str(photos), 16)
    run = make_run(folder / "run", pack, tiny_config(*settings))
    train_here(run)
    return Coloured(photos, pack, run)


@pytest.fixture
def unsynced() -> Iterator[None]:
    """A disk that does not wait, for tests that write so often that waiting would be most of their time."""
    with files.using(UnsyncedDisk()):
        yield


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the preset `tiny`, trained in processes of its own, with which others are compared."""
    return train_undisturbed(tmp_path_factory.mktemp("sessions"))


@pytest.fixture(scope="module")
def stories(
    request: pytest.FixtureRequest, undisturbed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stories]:
    """The stories of a test file, being told two at a time."""
    here = [item for item in request.session.items if item.path == request.path]
    with telling(here, undisturbed, tmp_path_factory.mktemp("stories")) as stories:
        yield stories


@pytest.fixture(scope="session")
def timm() -> Iterator[Any]:
    """timm as an oracle, from a folder that LOWMEM_SEQ_PEERS names (`make peers` makes one), or tests are skipped.

    It stays outside because `accelerate launch` imports timm wherever it finds it.
    """
    import torch

    folder = os.environ.get("LOWMEM_SEQ_PEERS")
    if not folder:
        pytest.skip("LOWMEM_SEQ_PEERS names no folder with timm")
    if not hasattr(torch.ops.torchvision, "nms"):  # torchvision's compiled part doesn't load beside a CPU build
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
    sys.path.insert(0, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield importlib.import_module("timm")
    sys.path.remove(folder)
