"""A whole session that joins without images: it has the host's, trains on them, and goes on with them later."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowmem_seq.data.catalogue import HOST
from lowmem_seq.runs.folder import open_run
from tests.builders import names
from tests.cluster.test_sessions import TwoMachines
from tests.data.builders import coloured_files, write_folder
from tests.sessions import Session, events

SETTINGS = (
    *("train", "tiny", "--precision", "fp32", "--micro-batch", "16", "--max-ram", "1GB", "--steps", "100000"),
    *("--set", "machine.threads=1", "--set", "cluster.round=2s", "--set", "cluster.lost_after=4s"),
)


class Strangers(TwoMachines):
    """Two machines that share nothing but the line."""

    @property
    def cache(self) -> Path:
        """The joiner's."""
        return self.folder / "cache-of-the-joiner"

    def start_there(self, *words: str) -> Session:
        environment = {"LOWMEM_SEQ_TOKEN": self.token, "LOWMEM_SEQ_CACHE": str(self.cache)}
        return self._ends.enter_context(Session(*words, cwd=self.folder, **environment))


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Strangers]:
    with contextlib.ExitStack() as ends:
        yield Strangers(tmp_path, ends)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_machine_that_has_no_images_trains_on_the_hosts(two: Strangers) -> None:
    colours = coloured_files(red=(200, 40, 40), green=(40, 200, 40), blue=(40, 40, 200))
    photos = write_folder(two.folder / "photos", colours)
    part = ("--host", "--port", str(two.port))
    host = two.start(*SETTINGS, "--data", str(photos), "--run-dir", "host", *part)
    host.wait_for_words("listening on port")
    assert "--data" not in host.said.partition("lowmem-seq train")[2].partition("--join")[0]
    join = ("--join", f"127.0.0.1:{two.port}")
    joiner = two.start_there(*SETTINGS, "--run-dir", "joiner", *join)
    two.wait_for_round(host)
    for session in (joiner, host):
        session.process.send_signal(signal.SIGINT)
    said = joiner.ended(4)
    host.ended(4)
    assert "the host's images are here: 185 KB came in" in said
    assert "data    the host's images (blue, green, red)" in said
    assert [event["bytes"] for event in events(two.run("host"), "pack_wanted")] == [184_560]

    run = open_run(two.run("joiner"))
    (fetched,) = events(run.path, "fetched")
    record = json.loads(run.data_file.read_text(encoding="utf-8"))
    assert run.config.data.source == record["source"] == HOST
    assert record["fingerprint"] == fetched["fingerprint"]
    assert [Path(record["pack"]).name] == names(two.cache / "packs")
    assert "photos" not in record["pack"]

    alone = two.start_there("resume", "joiner")
    alone.wait_for_words("data    the host's images")
    alone.stopped()
    shutil.rmtree(two.cache / "packs")
    gone = two.start_there("resume", "joiner").ended(5)
    assert "are not in this one's cache" in gone
    assert "--join IP:PORT" in gone
