from __future__ import annotations

import http.server
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowmem_seq.data import torchvision_compat
from lowmem_seq.data.dataset import silent
from lowmem_seq.data.prepare import prepare
from lowmem_seq.errors import DataError

HELLO_MD5 = "5d41402abc4b2a76b9719d911017c592"


def in_a_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_datasets_are_there_also_beside_a_torch_that_does_not_match() -> None:
    assert torchvision_compat.datasets().MNIST.__name__ == "MNIST"


def test_it_works_without_the_compiled_part() -> None:
    """As where torchvision was built for CUDA and torch was not."""
    code = (
        "from lowmem_seq.data import torchvision_compat as compat\n"
        "compat._compiled_part_loads = lambda: False\n"
        "print(compat.datasets().FashionMNIST.__name__)\n"
    )
    assert in_a_fresh_process(code).strip() == "FashionMNIST"


def test_a_torchvision_that_cannot_be_imported_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", fails)
    torchvision_compat.datasets.cache_clear()
    try:
        with pytest.raises(DataError, match="torchvision::nms") as caught:
            torchvision_compat.datasets()
    finally:
        torchvision_compat.datasets.cache_clear()
    assert "--data shapes" in caught.value.hint


@pytest.mark.parametrize("module", ["prepare", "parts", "pack", "sources", "catalogue", "shapes"])
def test_packing_and_reading_import_no_torch(module: str) -> None:
    code = f"import sys, lowmem_seq.data.{module}\nprint('torch' in sys.modules, 'torchvision' in sys.modules)"
    assert in_a_fresh_process(code).split() == ["False", "False"]


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path == "/hello"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", "5" if found else "0")
        self.end_headers()
        self.wfile.write(b"hello" if found else b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_a_download_tells_its_progress(tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int, int | None]] = []
    path = torchvision_compat.download("x", f"{server}/hello", HELLO_MD5, tmp_path, lambda *said: told.append(said))
    assert path.read_bytes() == b"hello"
    assert told == [("downloading x", 5, 5)]
    assert capsys.readouterr().err == ""


def test_what_is_there_is_not_downloaded_again(tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"hello")
    path = torchvision_compat.download("x", "http://127.0.0.1:9/hello", HELLO_MD5, tmp_path, silent)
    assert path.read_bytes() == b"hello"


@pytest.mark.parametrize(("page", "md5"), [("gone", HELLO_MD5), ("hello", "0" * 32)])
def test_a_page_that_is_gone_or_other_bytes(tmp_path: Path, server: str, page: str, md5: str) -> None:
    with pytest.raises(DataError, match="x can't be downloaded") as caught:
        torchvision_compat.download("x", f"{server}/{page}", md5, tmp_path, silent)
    assert "--data shapes" in caught.value.hint
    assert "--data FOLDER" in caught.value.hint


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion-mnist"])
def test_without_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(DataError, match=r"can't be downloaded: .*Name or service not known") as caught:
        prepare(name, 32)
    if name.startswith("cifar"):  # of the others torchvision tells at length what it has tried
        assert caught.value.message.endswith("downloaded: Name or service not known")
    assert caught.value.exit_code == 5
    assert "--data shapes" in caught.value.hint
