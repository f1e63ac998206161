"""The power goes at any moment: what is found afterwards is the old or the new, never neither, never a mixture."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import IO, Any

import pytest

from lowmem_seq import files
from lowmem_seq.checkpoint.manifest import MANIFEST, Checkpoint
from lowmem_seq.checkpoint.store import CheckpointStore, Retention
from lowmem_seq.data.cache import recall, remember
from lowmem_seq.data.pack import Pack
from lowmem_seq.files import is_temporary, name_wanted, placing, read_json, write_json
from lowmem_seq.memory.plan import plan_from_json
from lowmem_seq.runs.events import EventLog
from lowmem_seq.runs.folder import create_run, open_run
from tests.builders import tiny_config, tiny_plan
from tests.crash.power_loss import Findings, lose_power_everywhere
from tests.crash.recording import RecordingDisk
from tests.data.builders import write_pack
from tests.disks import UnsyncedDisk

IDENTITY = {"experiment_sha256": "e" * 64, "data_fingerprint": "d" * 64}
NOTHING = "nothing"
CONFIG = tiny_config()


class ForgetfulDisk(RecordingDisk):
    """Records what a file layer would leave that forgets syncs: all `file` or `folder` ones, or one by number."""

    def __init__(self, root: Path, forgotten: int | str) -> None:
        super().__init__(root)
        self.asked: list[str] = []
        self._forgotten = forgotten

    def sync_file(self, file: IO[Any]) -> None:
        if not self._forgets("file", Path(file.name)):
            super().sync_file(file)

    def sync_folder(self, folder: Path) -> None:
        if not self._forgets("folder", folder):
            super().sync_folder(folder)

    def _forgets(self, kind: str, path: Path) -> bool:
        self.asked.append(f"{kind} {name_wanted(path)}")
        return self._forgotten in (kind, len(self.asked) - 1)


@pytest.fixture
def disk_folder(tmp_path: Path) -> Path:
    """The folder that is recorded."""
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


@pytest.fixture
def lose_power(tmp_path: Path) -> Callable[[RecordingDisk, Callable[[Path], Hashable]], Findings]:
    def everywhere(record: RecordingDisk, look: Callable[[Path], Hashable]) -> Findings:
        with files.using(UnsyncedDisk()):
            return lose_power_everywhere(record, look, tmp_path)

    return everywhere


LosePower = Callable[[RecordingDisk, Callable[[Path], Hashable]], Findings]


def store_in(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", Retention(newest=2))


def contents_of(step: int, version: str = "") -> dict[str, bytes]:
    return {"model.safetensors": b"weights of %d %s" % (step, version.encode()), "state.json": b"{%d}" % step}


def writer_of(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def save(folder: Path, step: int, version: str = "") -> Checkpoint:
    writers = {name: writer_of(content) for name, content in contents_of(step, version).items()}
    return store_in(folder).save(step, writers, IDENTITY)


def saved(step: int, version: str = "") -> Hashable:
    """What is to be found of a save: the step with all of its content."""
    return step, tuple(contents_of(step, version).items())


def content_of(checkpoint: Checkpoint) -> tuple[tuple[str, bytes], ...]:
    paths = sorted(path for path in checkpoint.path.iterdir() if path.name != MANIFEST)
    return tuple((path.name, path.read_bytes()) for path in paths)


def newest(folder: Path) -> Hashable:
    """Find the newest checkpoint as a resume does; the store must be tidy then, and take another one."""
    store = store_in(folder)
    checkpoint = store.newest_valid(IDENTITY, lambda event, message: None)
    if checkpoint is None:
        return NOTHING
    assert not [path for path in store.folder.iterdir() if is_temporary(path)]
    found = checkpoint.step, content_of(checkpoint)
    assert store.newest_valid(IDENTITY, refuse_to_tell) == checkpoint
    assert save(folder, 9) == store.newest_valid(IDENTITY, refuse_to_tell)
    return found


def refuse_to_tell(event: str, message: str) -> None:
    raise AssertionError(f"nothing was to be told: {event}: {message}")


def assert_none(findings: Findings, fewest_trees: int) -> None:
    assert findings.violations == []
    assert findings.trees >= fewest_trees


def test_a_save_leaves_the_old_checkpoint_or_the_new_one(disk_folder: Path, lose_power: LosePower) -> None:
    record = RecordingDisk(disk_folder)
    with files.using(record):
        record.expect(NOTHING, saved(1))
        save(disk_folder, 1)
        for step in (2, 3, 4):  # the third and fourth prune
            record.expect(saved(step - 1), saved(step))
            save(disk_folder, step)
        record.expect(saved(4))
    assert [checkpoint.step for checkpoint in store_in(disk_folder).all()] == [3, 4]
    assert_none(lose_power(record, newest), fewest_trees=400)


def test_a_save_in_another_s_place_leaves_the_old_one_or_the_new_one(
    disk_folder: Path, lose_power: LosePower
) -> None:
    save(disk_folder, 1)
    save(disk_folder, 2, "old")
    record = RecordingDisk(disk_folder)
    with files.using(record):
        record.expect(saved(2, "old"), saved(2, "new"))
        save(disk_folder, 2, "new")
        record.expect(saved(2, "new"))
    assert_none(lose_power(record, newest), fewest_trees=40)


def test_recovering_and_setting_aside_leave_what_a_run_can_go_on_from(
    disk_folder: Path, lose_power: LosePower
) -> None:
    for step in (1, 2):
        save(disk_folder, step)
    unnamed, torn, broken, before = (
        disk_folder / "checkpoints" / name
        for name in ("step-00000002.partial-0", "step-00000003.partial-0", "step-00000004", "broken-step-00000004")
    )
    (disk_folder / "checkpoints" / "step-00000002").rename(unnamed)
    for folder in (torn, broken, before):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    record = RecordingDisk(disk_folder)
    with files.using(record):
        record.expect(saved(2))
        assert store_in(disk_folder).newest_valid(IDENTITY, lambda event, message: None) is not None
        record.expect(saved(2))
    assert sorted(path.name for path in unnamed.parent.iterdir()) == [
        "broken-step-00000004",
        "step-00000001",
        "step-00000002",
    ]
    assert_none(lose_power(record, newest), fewest_trees=10)


NO_RUN, A_RUN = "no run", "a run"


def the_start(folder: Path) -> Hashable:
    """Find out how far a start came, as the command does; one that left no run can be made once more."""
    path = folder / "runs" / "first"
    if not (path / "config.yaml").exists():
        create_run(path, CONFIG)
        return NO_RUN
    run = open_run(path)
    assert run.config == CONFIG
    assert run.read_json(run.environment_file) is not None
    data, plan = run.read_json(run.data_file), run.read_json(run.plan_file)
    assert data in (None, {"data": 1})
    assert plan is None or plan_from_json(plan) == tiny_plan()
    events = [event["event"] for event in run.events]
    assert events in ([], ["planned"], ["planned", "checkpoint"])
    step = newest(path)
    return A_RUN, data is not None, plan is not None, step


def test_a_first_start_leaves_a_run_or_none(disk_folder: Path, lose_power: LosePower) -> None:
    record = RecordingDisk(disk_folder)
    with files.using(record):
        record.expect(NO_RUN, (A_RUN, False, False, NOTHING))
        run = create_run(disk_folder / "runs" / "first", CONFIG)
        record.expect((A_RUN, False, False, NOTHING), (A_RUN, True, False, NOTHING))
        write_json(run.data_file, {"data": 1})
        record.expect((A_RUN, True, False, NOTHING), (A_RUN, True, True, NOTHING))
        write_json(run.plan_file, tiny_plan().to_json())
        run.events.append("planned")
        record.expect((A_RUN, True, True, NOTHING), (A_RUN, True, True, saved(1)))
        save(run.path, 1)
        record.expect((A_RUN, True, True, saved(1)))
        run.events.append("checkpoint", step=1)
    assert_none(lose_power(record, the_start), fewest_trees=100)


def test_events_that_were_not_lost_are_whole_and_in_order(disk_folder: Path, lose_power: LosePower) -> None:
    def events(folder: Path) -> Hashable:
        log = EventLog(folder / "events.jsonl")
        found = [event["step"] for event in log]
        log.append("after", step=9)
        assert [event["step"] for event in log] == [*found, 9]
        return tuple(found)

    record = RecordingDisk(disk_folder)
    log = EventLog(disk_folder / "events.jsonl")
    with files.using(record):
        for step in (1, 2, 3):
            record.expect(*(tuple(range(1, count)) for count in range(1, step + 2)))
            log.append("train", step=step)
    assert_none(lose_power(record, events), fewest_trees=8)


@pytest.mark.parametrize("way", ["write_json", "placing"])
def test_a_file_written_over_another_is_the_old_or_the_new(
    disk_folder: Path, lose_power: LosePower, way: str
) -> None:
    def value(folder: Path) -> Hashable:
        return str(read_json(folder / "plan.json")["plan"])

    path = disk_folder / "plan.json"
    write_json(path, {"plan": "old"})
    record = RecordingDisk(disk_folder)
    with files.using(record):
        record.expect("old", "new")
        if way == "write_json":
            write_json(path, {"plan": "new"})
        else:
            with placing(path) as place:
                place.write_text('{"plan": "new"}')
                place.with_name("of the library").write_text("left behind")
        record.expect("new")
    assert_none(lose_power(record, value), fewest_trees=6)


def test_a_pack_is_there_wholly_or_not_at_all(
    disk_folder: Path, lose_power: LosePower, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "packs/test-8px"

    def pack(folder: Path) -> Hashable:
        monkeypatch.setenv("LOWMEM_SEQ_CACHE", str(folder))
        remembered = recall("key")
        assert remembered in (None, folder / name)
        if not (folder / name).exists():
            return NOTHING
        found = Pack.open(folder / name)
        found.verify()
        return "pack", remembered is not None

    monkeypatch.setenv("LOWMEM_SEQ_CACHE", str(disk_folder))
    record = RecordingDisk(disk_folder)
    with files.using(record):
        record.expect(NOTHING, ("pack", False))
        built = write_pack(disk_folder / name, {"train": [0, 1, 2], "test": [2]})
        record.expect(("pack", False), ("pack", True))
        remember("key", built.folder)
        record.expect(("pack", True))
    assert_none(lose_power(record, pack), fewest_trees=70)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_layer_that_forgets_to_sync_is_found_out(disk_folder: Path, lose_power: LosePower, kind: str) -> None:
    """These tests can fail: without either kind of sync a save that has ended may be lost."""
    save(disk_folder, 1)
    record = ForgetfulDisk(disk_folder, kind)
    with files.using(record):
        record.expect(saved(1), saved(2))
        save(disk_folder, 2)
        record.expect(saved(2))
    findings = lose_power(record, newest)
    assert saved(1) in [violation.found for violation in findings.violations]


def test_each_sync_of_a_first_save_is_needed(disk_folder: Path, lose_power: LosePower) -> None:
    harmless: list[str] = []
    for number in itertools.count():
        folder = disk_folder / str(number)
        folder.mkdir()
        record = ForgetfulDisk(folder, number)
        with files.using(record):
            record.expect(NOTHING, saved(1))
            save(folder, 1)
            record.expect(saved(1))
        if number == len(record.asked):
            break
        if not lose_power(record, newest).violations:
            harmless.append(record.asked[number])
    assert {"file model.safetensors", "file state.json", "file manifest.json"} < set(record.asked)
    assert set(harmless) <= {"folder step-00000001"}  # synced twice: after the manifest and before the rename
