"""A machine that has no images fetches the host's: real hubs and real children over the loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from lowmem_seq.cluster.membership import take_no_part, take_part
from lowmem_seq.cluster.token import TOKEN_VARIABLE, new_token
from lowmem_seq.data.arriving import SYNC_BYTES
from lowmem_seq.data.cache import ARRIVING
from lowmem_seq.data.catalogue import HOST
from lowmem_seq.data.dataset import PART_NAMES
from lowmem_seq.data.pack import Pack
from lowmem_seq.runs.folder import RunFolder, create_run
from tests.builders import names, tiny_config
from tests.cluster.processes import started_hub, write_host
from tests.cluster.wires import Relay
from tests.data.builders import write_pack
from tests.sessions import python_with

SIDE = 64
MB = 10**6
SECONDS = 60.0
MOST_GROWTH_BYTES = 16 * MB
"""Of the hub while it sends 122 MB to three, and of one of these. It was 2 to 3 MB on two busy cores."""
SIZED = f"data.image_size={SIDE}"


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """41 MB of noise: under two seconds at the rate that a hub sends."""
    folder = tmp_path_factory.mktemp("large") / "of-the-host"
    return write_pack(folder, {"train": [0, 1, 2] * 1000, "test": [0, 1, 2] * 100}, image_size=SIDE)


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    code = new_token().code
    monkeypatch.setenv(TOKEN_VARIABLE, code)
    return code


@pytest.fixture
def host(tmp_path: Path, pack: Pack) -> RunFolder:
    return write_host(tmp_path / "host", pack, SIZED)


def port_of(host: RunFolder) -> int:
    told: int = json.loads((host.path / "cluster" / "hub.json").read_text(encoding="utf-8"))["port"]
    return told


class Joiner:
    """A machine with a run folder and a cache of its own, and what its child says."""

    def __init__(self, folder: Path, port: int, *assignments: str) -> None:
        self.cache = folder / "cache"
        config = tiny_config("steps=5", SIZED, f"data.source={HOST}", *assignments)
        self.run = create_run(folder / "run", config)
        take_part(self.run, "member", "127.0.0.1", port)
        self.events: list[dict[str, Any]] = []

    def start(self, **environment: str) -> subprocess.Popen[str]:
        self.events = []
        words = [sys.executable, "-m", "lowmem_seq.cluster.fetch", str(self.run.path)]
        environment = {**os.environ, "LOWMEM_SEQ_CACHE": str(self.cache), **environment}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, encoding="utf-8", env=environment)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self.process

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def ended(self) -> int:
        code = self.process.wait(SECONDS)
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return code

    def fetch(self, **environment: str) -> int:
        self.start(**environment)
        return self.ended()

    def told(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]

    def await_bytes(self, least: int) -> None:
        """Return when so much is here."""
        deadline = time.monotonic() + SECONDS
        while not (self.told("fetching") and self.told("fetching")[-1]["done"] >= least):
            assert self.process.poll() is None, self.events[-3:]
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def held_bytes(self) -> int:
        """Its memory; 0 once it has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return int(psutil.Process(self.process.pid).memory_info().rss)
        return 0

    @property
    def packs(self) -> list[str]:
        return names(self.cache / "packs") if (self.cache / "packs").is_dir() else []

    def pack(self) -> Pack:
        """What is in the cache, which must be whole, and be all that there is."""
        assert self.told("packed"), self.events[-3:]
        (name,) = self.packs
        found = Pack.open(self.cache / "packs" / name)
        found.verify()
        assert self.told("packed")[-1] == {
            "event": "packed",
            "pack": str(found.folder),
            "fingerprint": found.fingerprint,
        }
        return found


def same(one: Pack, other: Pack) -> bool:
    return all(
        (one.folder / f"{part}.{kind}").read_bytes() == (other.folder / f"{part}.{kind}").read_bytes()
        for part in PART_NAMES
        for kind in ("images", "labels")
    )


def test_a_machine_without_images_has_the_hosts(tmp_path: Path, host: RunFolder, pack: Pack) -> None:
    joiner = Joiner(tmp_path / "joiner", port_of(host))
    with started_hub(host) as hub:
        assert joiner.fetch() == 0
        found = joiner.pack()
        assert same(found, pack)
        assert found.folder.name == f"fetched-{SIDE}px-{pack.fingerprint[:12]}"
        assert (found.description.source, found.description.classes) == (HOST, pack.classes)
        (told,) = joiner.told("fetched")
        size = sum(file.bytes for file in pack.description.files.values())
        assert (told["bytes"], told["had_bytes"], told["fingerprint"]) == (size, 0, pack.fingerprint)
        assert told["seconds"] > (size - 4 * MB) / (25 * MB)  # no faster than the host can bear
        assert [one["done"] for one in joiner.told("fetching")] == sorted(
            one["done"] for one in joiner.told("fetching")
        )
        assert joiner.fetch() == 0  # again: it is there
        assert joiner.told("fetched") == []
        said, _ = hub.communicate("stop\n", timeout=SECONDS)
    asked = [json.loads(line) for line in said.splitlines() if '"pack_wanted"' in line]
    assert [(one["name"], one["bytes"]) for one in asked] == [(asked[0]["name"], size)]


def test_a_machine_that_was_killed_goes_on_where_it_was(tmp_path: Path, host: RunFolder, pack: Pack) -> None:
    joiner = Joiner(tmp_path / "joiner", port_of(host))
    with started_hub(host):
        joiner.start()
        joiner.await_bytes(20 * MB)
        joiner.process.kill()
        joiner.ended()
        assert joiner.packs == [f"fetched-{SIDE}px-{pack.fingerprint[:12]}{ARRIVING}"]
        assert joiner.fetch() == 0
        (told,) = joiner.told("fetched")
        assert told["had_bytes"] >= 20 * MB - SYNC_BYTES
        assert told["had_bytes"] % SYNC_BYTES == 0
        assert told["bytes"] + told["had_bytes"] == sum(file.bytes for file in pack.description.files.values())
        assert same(joiner.pack(), pack)


def test_a_host_that_goes_away_in_the_middle_is_dialled_until_it_is_back(
    tmp_path: Path, host: RunFolder, pack: Pack
) -> None:
    joiner = Joiner(tmp_path / "joiner", port_of(host))
    with started_hub(host) as hub:
        joiner.start()
        joiner.await_bytes(10 * MB)
        hub.kill()
        hub.wait()
    deadline = time.monotonic() + SECONDS
    while not joiner.told("fetch_cut_off"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert joiner.process.poll() is None
    with started_hub(host):
        assert joiner.ended() == 0
    assert same(joiner.pack(), pack)
    assert joiner.told("fetched")[0]["had_bytes"] == 0  # it was one fetch all along


def test_a_line_that_is_cut_again_and_again_loses_nothing(tmp_path: Path, host: RunFolder, pack: Pack) -> None:
    with started_hub(host), contextlib.closing(Relay(port_of(host))) as relay:
        joiner = Joiner(tmp_path / "joiner", relay.port)
        joiner.start()
        for reached in (5, 15, 30):
            joiner.await_bytes(reached * MB)
            relay.cut()
        assert joiner.ended() == 0
    assert len(joiner.told("fetch_cut_off")) >= 3
    assert same(joiner.pack(), pack)
    whole = (pack.folder / "train.images").read_bytes()
    assert whole[:64] not in relay.recorded["down"]  # nothing of it went in clear


def test_several_machines_at_once_have_their_turns(tmp_path: Path, host: RunFolder, pack: Pack) -> None:
    joiners = [Joiner(tmp_path / name, port_of(host)) for name in ("one", "two", "three")]
    with started_hub(host) as hub:
        process = psutil.Process(hub.pid)
        before = most = process.memory_info().rss
        for joiner in joiners:
            joiner.start()
        joiners[0].await_bytes(MB)
        there_before = there_most = joiners[0].held_bytes()
        while any(joiner.process.poll() is None for joiner in joiners):
            most = max(most, process.memory_info().rss)
            there_most = max(there_most, joiners[0].held_bytes())
            time.sleep(0.02)
    assert [joiner.ended() for joiner in joiners] == [0, 0, 0]
    assert all(same(joiner.pack(), pack) for joiner in joiners)
    seconds = [joiner.told("fetched")[0]["seconds"] for joiner in joiners]
    assert max(seconds) < 1.5 * min(seconds)  # nobody waited until another one was done
    assert most - before < MOST_GROWTH_BYTES
    assert there_most - there_before < MOST_GROWTH_BYTES


def test_two_runs_of_one_machine_fetch_once(tmp_path: Path, host: RunFolder, pack: Pack) -> None:
    first, second = (Joiner(tmp_path / name, port_of(host)) for name in ("one", "two"))
    second.cache = first.cache
    with started_hub(host):
        first.start()
        first.await_bytes(MB)
        second.start()
        assert (first.ended(), second.ended()) == (0, 0)
    assert [len(one.told("fetched")) for one in (first, second)] == [1, 0]
    assert any("another run" in one["what"] for one in second.told("packing"))
    assert same(second.pack(), pack)


def test_images_that_are_in_the_cache_are_not_fetched(tmp_path: Path, host: RunFolder, pack: Pack) -> None:
    joiner = Joiner(tmp_path / "joiner", port_of(host))
    shutil.copytree(pack.folder, joiner.cache / "packs" / f"own-{SIDE}px-{pack.fingerprint[:12]}")
    with started_hub(host):
        assert joiner.fetch() == 0
    assert joiner.told("fetching") == joiner.told("fetched") == []
    assert joiner.pack().folder.name.startswith("own-")


def test_a_run_that_goes_on_alone_has_its_images_from_the_cache(
    tmp_path: Path, host: RunFolder, pack: Pack
) -> None:
    joiner = Joiner(tmp_path / "joiner", port_of(host))
    record = {"format_version": 1, "source": HOST, "pack": "gone", "fingerprint": pack.fingerprint}
    joiner.run.data_file.write_text(json.dumps(record), encoding="utf-8")
    take_no_part(joiner.run)
    assert joiner.fetch() == 5
    assert "not in this one's cache" in joiner.told("error")[0]["message"]
    assert "--join IP:PORT" in joiner.told("error")[0]["hint"]
    shutil.copytree(pack.folder, joiner.cache / "packs" / f"fetched-{SIDE}px-{pack.fingerprint[:12]}")
    assert joiner.fetch() == 0


# What is refused


def test_a_wrong_token_gets_nothing(tmp_path: Path, host: RunFolder) -> None:
    joiner = Joiner(tmp_path / "joiner", port_of(host))
    with started_hub(host) as hub:
        assert joiner.fetch(**{TOKEN_VARIABLE: new_token().code}) == 7
        assert "its token is another one" in joiner.told("error")[0]["message"]
        assert joiner.packs == []
        said, _ = hub.communicate("stop\n", timeout=SECONDS)
    assert "pack_wanted" not in said


def test_who_would_train_something_else_gets_nothing(tmp_path: Path, host: RunFolder) -> None:
    joiner = Joiner(tmp_path / "joiner", port_of(host), "seed=7")
    with started_hub(host) as hub:
        assert joiner.fetch() == 7
        assert "its experiment is" in joiner.told("error")[0]["message"]
        assert joiner.packs == []
        said, _ = hub.communicate("stop\n", timeout=SECONDS)
    assert "pack_wanted" not in said


def test_a_pack_that_is_gone_from_the_host_is_told_without_its_place(tmp_path: Path, pack: Pack) -> None:
    place = tmp_path / "secret-place"
    shutil.copytree(pack.folder, place)
    host = write_host(tmp_path / "host", Pack.open(place), SIZED)
    shutil.rmtree(place)
    joiner = Joiner(tmp_path / "joiner", port_of(host))
    with started_hub(host) as hub:
        assert joiner.fetch() == 7
        said, _ = hub.communicate("stop\n", timeout=SECONDS)
    assert "the host can't send its images" in joiner.told("error")[0]["message"]
    assert "secret-place" not in json.dumps(joiner.events)
    assert "secret-place" in said


def test_too_little_room_is_said_before_anything_comes(tmp_path: Path, host: RunFolder) -> None:
    full = tmp_path / "full"
    full.mkdir()
    path = python_with(
        "import shutil, types",
        "shutil.disk_usage = lambda _: types.SimpleNamespace(free=60_000_000, total=1, used=1)",
        folder=full,
    )
    joiner = Joiner(tmp_path / "joiner", port_of(host))
    with started_hub(host) as hub:
        assert joiner.fetch(PYTHONPATH=path) == 5
        said, _ = hub.communicate("stop\n", timeout=SECONDS)
    (error,) = joiner.told("error")
    assert "the pack needs 40.6 MB, and 60.0 MB are free" in error["message"]
    assert "LOWMEM_SEQ_CACHE" in error["hint"]
    assert "pack_wanted" not in said
