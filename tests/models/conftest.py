"""One thread for every test here; and timm as an oracle, from a folder that LOWMEM_SEQ_PEERS names (or we skip).

`pip install --no-deps --target FOLDER timm huggingface_hub torchvision` makes one. It stays outside because
`accelerate launch` imports timm wherever it finds it.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A tiny forward pass took 1.4 ms with one thread, and 700 ms with two on two busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def timm() -> Iterator[Any]:
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
