"""The one place that imports torchvision, and copes with one whose compiled part doesn't match torch.

A torchvision built for CUDA beside a CPU build of torch fails at import with `operator torchvision::nms does not
exist`. Its Python parts, of which the data sets are all we need, work once the schemas of its operators are
known. Importing this module imports torch; import it only where something is to be downloaded or read.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import importlib.util
import socket
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from filelock import FileLock, Timeout

from lowmem_seq.data.dataset import Progress
from lowmem_seq.errors import DataError

NO_DOWNLOAD_HINT = (
    "use the built-in pictures, which need no network: --data shapes; or your own: --data FOLDER or --data ZIP"
)
STALLED_SECONDS = 30.0
_MISSING_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_defined: list[torch.library.Library] = []  # a library's schemas go when it is collected


def _compiled_part_loads() -> bool:
    """Whether torchvision's compiled operators register themselves with this torch."""
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for library in sorted(Path(folder).glob("_C*")):
            try:
                torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
            except (OSError, ImportError):
                return False
            return True
    return False


@functools.lru_cache(maxsize=1)
def datasets() -> ModuleType:
    """Return `torchvision.datasets`.

    Raises:
        DataError: torchvision is missing, or doesn't match this torch at all.
    """
    hint = "install the torchvision that belongs to this torch, or use --data shapes or your own --data FOLDER"
    try:
        if not _compiled_part_loads():
            _define_operators()
        return importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError, AttributeError) as error:
        raise DataError(f"torchvision can't be imported beside torch {torch.__version__}: {error}", hint) from error


def _define_operators() -> None:
    for name in _MISSING_OPERATORS:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        with contextlib.suppress(RuntimeError):  # another package has defined it first
            library.define(name + _SCHEMA)  # type: ignore[no-untyped-call]
        _defined.append(library)


class _Bar:
    """Stands in for the progress bar that torchvision prints, and tells `progress` instead."""

    def __init__(self, progress: Progress, what: str, *_: object, total: int | None = None, **__: object) -> None:
        self._report = functools.partial(progress, what)
        self._done, self._total = 0, total

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        self._done += count
        self._report(self._done, self._total)


@contextlib.contextmanager
def _alone_in(folder: Path, progress: Progress) -> Iterator[None]:
    """Let one process at a time write into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress("waiting for the download of another process", 0, None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _downloading(what: str, folder: Path, progress: Progress) -> Iterator[ModuleType]:
    """Give torchvision's download functions, with progress, an end to waiting, and errors that help."""
    module = datasets().utils
    bar, timeout = getattr(module, "tqdm", None), socket.getdefaulttimeout()
    with _alone_in(folder, progress):
        module.tqdm = functools.partial(_Bar, progress, f"downloading {what}")
        socket.setdefaulttimeout(STALLED_SECONDS)
        try:
            yield module
        except (OSError, RuntimeError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise  # told by the caller, with numbers
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            told = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
            reason = " ".join(str(told).split())
            raise DataError(f"{what} can't be downloaded: {reason}", NO_DOWNLOAD_HINT) from error
        finally:
            socket.setdefaulttimeout(timeout)
            module.tqdm = bar


def download(what: str, url: str, md5: str, folder: Path, progress: Progress) -> Path:
    """Return the file that `url` names in `folder`, downloaded unless it is there and has this MD5.

    Raises:
        DataError: no network, no such address, or other bytes than expected.
    """
    with _downloading(what, folder, progress) as utils:
        utils.download_url(url, str(folder), md5=md5)
    return folder / url.rsplit("/", 1)[-1]


def idx_dataset(kind: str, train: bool, folder: Path, progress: Progress) -> Any:
    """Return torchvision's `kind` (MNIST, FashionMNIST), with `data`, `targets`, `classes` and `raw_folder`.

    Raises:
        DataError: its files are not in `folder` and can't be downloaded.
    """
    base = getattr(datasets(), kind)
    # Old releases kept pickled tensors in a folder `processed` and would read them: they are not looked at.
    reader = type(kind, (base,), {"_check_legacy_exist": lambda _: False})
    with _downloading(kind, folder, progress):
        return reader(str(folder), train=train, download=True)
