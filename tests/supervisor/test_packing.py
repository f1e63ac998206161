"""The process that packs the pictures of a run, under the cap of that run."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from PIL import Image

from lowmem_seq.cluster.rank import Rank, take_rank
from lowmem_seq.data.cache import packs_folder
from lowmem_seq.data.pack import Pack
from lowmem_seq.errors import CapTooSmallError
from lowmem_seq.memory.plan import SHARE_OF_AVAILABLE
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor import session
from lowmem_seq.supervisor.child import Message
from lowmem_seq.supervisor.session import have_packed, prepare_data
from lowmem_seq.supervisor.signals import StopSignals
from tests.data.builders import class_files, write_folder
from tests.memory.builders import ROOMY, FakeReader

MB = 10**6
LARGE_SIDE = 4000
"""A picture of so many pixels a side takes 240 MB while it is brought to its size."""
ENOUGH_FOR_SMALL_ONES = 130 * MB


class Screen:
    def show(self, message: Message) -> None:
        assert message["event"] == "packing"

    def show_memory(self, tree: int, peak: int, cap: int) -> None:
        raise AssertionError("packing shows no memory")

    def show_stopping(self) -> None:
        raise AssertionError("the packer stops at once")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few small pictures, and an empty cache."""
    monkeypatch.setenv("LOWMEM_SEQ_CACHE", str(tmp_path / "cache"))
    return write_folder(tmp_path / "my photos", class_files("cat", "dog"))


def packed(photos: Path, cap_bytes: int | None) -> Pack:
    folder, _ = have_packed(str(photos), 16, Screen().show, StopSignals(), cap_bytes=cap_bytes)
    return Pack.open(Path(folder))


def test_a_packer_that_passes_the_cap_is_ended_and_leaves_no_pack(photos: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (LARGE_SIDE, LARGE_SIDE)).save(file, "PNG")
    write_folder(photos, {f"cat/large-{number}.png": file.getvalue() for number in range(6)})
    cap = system_reader().held_bytes(os.getpid()) + ENOUGH_FOR_SMALL_ONES
    with pytest.raises(
        CapTooSmallError, match=r"^packing .* took .* [MG]B with all processes of the run"
    ) as caught:
        packed(photos, cap)
    assert caught.value.exit_code == 3
    assert caught.value.hint.startswith(f"lowmem-seq data add '{photos}' --image-size 16   packs it without a cap")
    assert list(packs_folder().glob("*/pack.json")) == []
    assert packed(photos, None).size("train") + packed(photos, None).size("test") == 8 + 6


def test_a_packer_within_the_cap_is_left_alone(photos: Path) -> None:
    cap = system_reader().held_bytes(os.getpid()) + ENOUGH_FOR_SMALL_ONES
    assert packed(photos, cap).description.skipped.total == 0


@pytest.mark.parametrize(
    ("given", "rank", "cap"),
    [
        (900 * MB, None, 900 * MB),
        (None, None, int(ROOMY.available_bytes * SHARE_OF_AVAILABLE)),
        (900 * MB, Rank(0, 3, 0, 2, "10.0.0.7", 4000), 450 * MB),
        (None, Rank(0, 3, 0, 2, "10.0.0.7", 4000), int(ROOMY.available_bytes * SHARE_OF_AVAILABLE / 2)),
    ],
)
def test_the_packer_has_the_cap_of_its_run_or_its_rank(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, given: int | None, rank: Rank | None, cap: int
) -> None:
    caps: list[Any] = []
    record = run.read_json(run.data_file)
    assert record is not None

    def packs(*arguments: Any) -> tuple[str, str]:
        caps.append(arguments[-1])
        return record["pack"], record["fingerprint"]

    if rank is not None:
        take_rank(run, rank)
    monkeypatch.setattr(session, "have_packed", packs)
    monkeypatch.setattr(session, "system_reader", FakeReader)
    config = structs.replace(run.config, machine=structs.replace(run.config.machine, max_ram_bytes=given))
    prepare_data(run, config, Screen(), StopSignals())
    assert caps == [cap]
