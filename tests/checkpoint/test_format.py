"""docs/concepts/checkpoints.md is exact: its own reader, taken from the page, reads what a run has written."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from lowmem_seq.checkpoint.manifest import FORMAT_VERSION, Checkpoint, find_fault
from lowmem_seq.data.pack import Pack
from lowmem_seq.memory.plan import Setting, told_change
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.loop import Training
from tests.builders import make_run, names, tiny_config, train_here

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "concepts" / "checkpoints.md").read_text(encoding="utf-8")
STEPS = 6
TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "number or null": (int, float, type(None)),
    "text": (str,),
    "object": (dict,),
}


def section(heading: str) -> str:
    """What stands on the page under a heading, up to the next one."""
    return re.split(r"^#+ ", PAGE.split(f"# {heading}\n")[1], flags=re.MULTILINE)[0]


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the table under a heading, by their first cell, which is code."""
    rows = re.findall(r"^\| (`.*) \|$", section(heading), flags=re.MULTILINE)
    cells = [[cell.strip() for cell in row.split(" | ")] for row in rows]
    return {first.strip("`"): rest for first, *rest in cells}


READER_CODE = section("A reader").split("```python\n")[1].split("```")[0]


@pytest.fixture(scope="module")
def reader() -> SimpleNamespace:
    """The functions of the page's code."""
    defined: dict[str, Any] = {}
    exec(READER_CODE, defined)
    return SimpleNamespace(**defined)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_pack: Pack) -> Training:
    """A run of Tiny from its first step to its test, with a running average, saved every second step."""
    config = tiny_config(f"steps={STEPS}", "recipe.ema_decay=0.9", "checkpoint.every=2steps")
    return train_here(make_run(tmp_path_factory.mktemp("format") / "run", tiny_pack, config))


@pytest.fixture
def copied(trained: Training, tmp_path: Path) -> Path:
    """A copy of the newest checkpoint, to be spoilt."""
    newest = trained.saver.store.all()[-1].path
    return shutil.copytree(newest, tmp_path / newest.name)


def same_bits(read: Mapping[str, Any], live: Mapping[str, Tensor]) -> bool:
    assert read.keys() == live.keys()
    return all(
        read[name].shape == tuple(value.shape) and read[name].tobytes() == value.detach().numpy().tobytes()
        for name, value in live.items()
    )


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """A manifest with its checksum, as the page defines it."""
    seal = '"manifest_sha256": "{}"'
    blank = json.dumps({**manifest, "manifest_sha256": "0" * 64}, indent=2)
    return blank.replace(seal.format("0" * 64), seal.format(hashlib.sha256(blank.encode()).hexdigest())).encode()


def test_the_pages_reader_needs_nothing_but_numpy() -> None:
    imports = [node for node in ast.walk(ast.parse(READER_CODE)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert all(isinstance(node, ast.Import) for node in imports)
    assert {name.name for node in imports for name in node.names} == {"hashlib", "json", "numpy", "struct"}


def test_the_pages_reader_gets_every_tensor_bit_for_bit(reader: SimpleNamespace, trained: Training) -> None:
    state = trained.state
    assert state.average is not None
    newest = trained.saver.store.all()[-1]
    manifest, counters, tensors = reader.read_checkpoint(newest.path)
    assert tensors.keys() == {"model.safetensors", "optimizer.safetensors", "average.safetensors"}
    assert same_bits(tensors["model.safetensors"], state.parameters)
    assert same_bits(tensors["optimizer.safetensors"], state.optimizer.state())
    assert same_bits(tensors["average.safetensors"], state.average.values)
    assert counters == asdict(state.counters)
    assert (manifest["format_version"], manifest["step"]) == (FORMAT_VERSION, STEPS) == (2, newest.step)
    assert {key: manifest[key] for key in trained.saver.identity} == trained.saver.identity
    assert manifest["metrics"] == state.counters.metrics
    assert manifest["metrics"]["val_accuracy"] is not None


def test_the_optimizers_tensors_are_named_and_shaped_as_the_page_says(
    reader: SimpleNamespace, trained: Training
) -> None:
    _, _, tensors = reader.read_checkpoint(trained.saver.store.all()[-1].path)
    weights, optimizer = tensors["model.safetensors"], tensors["optimizer.safetensors"]
    assert optimizer.keys() == {f"{kind}.{name}" for kind in ("mean", "square", "steps") for name in weights}
    for name, value in weights.items():
        assert optimizer[f"mean.{name}"].shape == optimizer[f"square.{name}"].shape == value.shape
        assert optimizer[f"steps.{name}"].shape == ()
        assert optimizer[f"steps.{name}"] == STEPS


def test_every_checkpoint_of_the_run_can_be_read(reader: SimpleNamespace, trained: Training) -> None:
    assert len(trained.saver.store.all()) >= 2
    for checkpoint in trained.saver.store.all():
        assert re.fullmatch(r"step-\d{8,18}", checkpoint.path.name)
        manifest, counters, _ = reader.read_checkpoint(checkpoint.path)
        assert manifest["step"] == counters["step"] == int(checkpoint.path.name.removeprefix("step-"))


def test_the_page_names_each_file_of_a_checkpoint_and_of_a_run(trained: Training) -> None:
    assert set(names(trained.saver.store.all()[-1].path)) == table("A checkpoint").keys()
    named = set(re.findall(r"[\w.-]+", section("A run is a folder").split("```")[1]))
    folder = RunFolder(Path("RUN_DIR"))
    known = {value.name for value in (*vars(folder).values(), folder.events.path) if isinstance(value, Path)}
    assert known | set(names(trained.run.path)) <= named


@pytest.mark.parametrize("file", ["manifest.json", "state.json"])
def test_the_page_gives_the_keys_and_types_of(file: str, trained: Training) -> None:
    rows = table(file)
    for checkpoint in trained.saver.store.all():
        values = json.loads((checkpoint.path / file).read_text(encoding="utf-8"))
        assert list(values) == list(rows)
        wrong = [key for key, value in values.items() if not isinstance(value, TYPES[rows[key][0]])]
        assert not wrong


def test_the_pages_reader_sees_a_change_of_any_byte_of_the_manifest(reader: SimpleNamespace, copied: Path) -> None:
    path = copied / "manifest.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        spoilt = bytearray(whole)
        spoilt[position] ^= 1
        path.write_bytes(spoilt)
        with pytest.raises(ValueError):  # noqa: PT011 (what is no JSON any more tells another one)
            reader.read_manifest(copied)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json"]
)
def test_the_pages_reader_sees_a_file_that_changed_grew_or_was_cut(
    name: str, reader: SimpleNamespace, copied: Path
) -> None:
    path = copied / name
    whole = path.read_bytes()
    flipped = [
        whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
        for position in (0, len(whole) // 2, len(whole) - 1)
    ]
    for content in (*flipped, whole[:-1], whole + b"\0", b"", bytes(len(whole))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^{re.escape(name)} has changed since it was written$"):
            reader.read_checkpoint(copied)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        reader.read_checkpoint(copied)


def test_reader_and_store_agree_on_a_manifest_that_was_sealed_as_the_page_says(
    reader: SimpleNamespace, copied: Path
) -> None:
    manifest = reader.read_manifest(copied)
    manifest["metrics"]["val_accuracy"] = 0.5
    (copied / "manifest.json").write_bytes(sealed(manifest))
    assert reader.read_manifest(copied)["metrics"]["val_accuracy"] == 0.5
    assert find_fault(Checkpoint(copied, STEPS)) is None


def test_reader_and_store_read_version_1(reader: SimpleNamespace, copied: Path) -> None:
    manifest = reader.read_manifest(copied)
    del manifest["manifest_sha256"], manifest["metrics"]
    (copied / "manifest.json").write_text(json.dumps({**manifest, "format_version": 1}), encoding="utf-8")
    assert reader.read_checkpoint(copied)[0]["step"] == STEPS
    assert find_fault(Checkpoint(copied, STEPS)) is None


def test_reader_and_store_refuse_a_later_version(reader: SimpleNamespace, copied: Path) -> None:
    manifest = {**reader.read_manifest(copied), "format_version": FORMAT_VERSION + 1}
    (copied / "manifest.json").write_bytes(sealed(manifest))
    with pytest.raises(ValueError, match="a later release wrote this checkpoint"):
        reader.read_manifest(copied)
    fault = find_fault(Checkpoint(copied, STEPS))
    assert fault is not None
    assert fault.kind == "newer"


@pytest.mark.parametrize("name", ["../config.yaml", "/etc/passwd", ".hidden.json", "Model.safetensors"])
def test_reader_and_store_refuse_a_name_that_is_none(name: str, reader: SimpleNamespace, copied: Path) -> None:
    manifest = reader.read_manifest(copied)
    manifest["files"] = {name: manifest["files"]["state.json"]}
    (copied / "manifest.json").write_bytes(sealed(manifest))
    with pytest.raises(ValueError, match="names a file outside of the folder"):
        reader.read_checkpoint(copied)
    fault = find_fault(Checkpoint(copied, STEPS))
    assert fault is not None
    assert fault.text.endswith(f"names a file outside of it: {name}")


def test_the_final_weights_are_as_the_page_says(reader: SimpleNamespace, trained: Training) -> None:
    assert trained.state.average is not None
    tensors, metadata = reader.read_tensors(trained.run.weights_file.read_bytes())
    assert same_bits(tensors, trained.state.average.values)
    assert metadata.keys() == table("The final weights").keys()
    assert (metadata["format"], metadata["name"]) == ("lowmem-seq", "tiny")
    assert json.loads(metadata["classes"]) == list(trained.parts.classes)
    assert json.loads(metadata["model"]) == trained.config.model.to_settings()
    described = trained.pack.description
    assert json.loads(metadata["image_size"]) == described.image_size
    assert json.loads(metadata["mean"]) == list(described.mean)
    assert json.loads(metadata["deviation"]) == list(described.deviation)
    (told,) = [event["weights_sha256"] for event in trained.run.events if event["event"] == "test"]
    assert reader.weights_sha256(tensors) == told


def event_keys_on_the_page() -> dict[str, tuple[set[str], set[str]]]:
    """For each event of the page the keys that are always there, and those that may be missing."""
    keys = {}
    for event, (cell,) in table("events.jsonl").items():
        optional = set(re.findall(r"\(`(\w+)`\)", cell))
        keys[event] = (set(re.findall(r"`(\w+)`", cell)) - optional, optional)
    return keys


def event_keys_in_the_code() -> dict[str, tuple[set[str], set[str]]]:
    """The same, from every call in the package that records an event and gives its keys by name.

    What the store tells in two texts is recorded by the trainer: the event and its message.
    """
    calls: dict[str, list[set[str]]] = {}
    for path in sorted((ROOT / "lowmem_seq").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            event, called = str(node.args[0].value), ast.unparse(node.func)
            if called == "tell":
                calls.setdefault(event, []).append({"message"})
            elif called.endswith((".record", "._record", "events.append")):
                keywords = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
                if any(ast.unparse(keyword.value).startswith("told_change(") for keyword in node.keywords):
                    keywords |= told_change(Setting(1, 1), Setting(1, 1)).keys()
                calls.setdefault(event, []).append(keywords)
    keys: dict[str, tuple[set[str], set[str]]] = {}
    for kind, each in calls.items():
        always = each[0].intersection(*each)
        keys[kind] = (always, always.union(*each) - always)
    return keys


def test_the_page_has_every_event_that_the_code_records_with_its_keys() -> None:
    assert event_keys_on_the_page() == event_keys_in_the_code()


def test_the_events_of_a_run_have_the_keys_of_the_page(trained: Training) -> None:
    page = event_keys_on_the_page()
    seen = set()
    for line in trained.run.events.path.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        assert isinstance(event.pop("time_unix_seconds"), float)
        kind = event.pop("event")
        always, optional = page[kind]
        assert always <= event.keys() <= always | optional
        seen.add(kind)
    assert seen == {"session_started", "train", "validation", "checkpoint", "test"}
