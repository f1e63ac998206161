from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.config import LARGEST_CONFIG_BYTES, load_config, load_preset, preset_names, validate
from lowmem_seq.errors import UsageError
from lowmem_seq.files import write_text
from tests.builders import tiny_config


def leaves(settings: dict[str, Any], prefix: str = "") -> set[str]:
    """The keys of nested settings, as `a.b`."""
    found = set()
    for key, value in settings.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return found


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_all_its_keys_are_known(name: str) -> None:
    settings = load_preset(name)
    config = validate(settings)
    assert config.name == name
    assert leaves(settings) <= leaves(config.to_settings())


@pytest.mark.parametrize("name", preset_names())
def test_a_run_s_config_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    config = validate(load_preset(name))
    write_text(tmp_path / "config.yaml", config.to_yaml())
    again = load_config(tmp_path / "config.yaml")
    assert again == config
    assert again.experiment_hash() == config.experiment_hash()


WRITTEN = {
    "medium": "61e1c56a912c0d3daf7d9417eb873b46e0b1f528db6d47c9640758bce50af64e",
    "sequencer2d_l": "b7cb3e78535f6522d7703bb78638799f368a937364484b1c005f44351e62e21c",
    "sequencer2d_m": "acbb8df45c2e09dff5ada058ce01ad8b21120423882c10995374b3494206ed1d",
    "sequencer2d_s": "23eba2918512d80b6a847fbf65b556e44a9097ccdf551ba8e5ec3f9f7ed3bc0b",
    "small": "ed6e30b879218d344115dbd4a337c573ff89fd86558494d38eac16aad2714839",
    "small-plus": "0f0900494e8d053cf4befc5781aebb58ebae1ed05198cb4ffede1543bb6462e9",
    "tiny": "70626ea2d5b3c59b377c0b63ea5b491ab6805a80b18062ec3809c27e413feea2",
    "vanilla": "4701299538222c8d8988cd467b02099a84a02eb09579fb1563429c9fba845e84",
}
"""The SHA-256 of each preset's experiment: in the run folders that are out there."""


def test_there_is_a_digest_for_every_preset() -> None:
    assert list(WRITTEN) == preset_names()


@pytest.mark.parametrize("name", WRITTEN)
def test_presets_have_the_digests_that_they_were_released_with(name: str) -> None:
    assert validate(load_preset(name)).experiment_hash() == WRITTEN[name]


def test_there_are_presets() -> None:
    assert {"small", "medium", "vanilla", "tiny"} <= set(preset_names())


@given(
    rate=st.floats(1e-12, 1e3),
    decay=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**63 - 1),
    source=st.text(),
    classes=st.none() | st.lists(st.text(), max_size=3),
)
def test_any_setting_comes_back_from_yaml_bit_for_bit(
    rate: float, decay: float, seed: int, source: str, classes: list[str] | None
) -> None:
    settings = load_preset("tiny")
    settings["recipe"] |= {"peak_learning_rate": rate, "ema_decay": decay}
    settings["data"] |= {"source": source, "classes": classes}
    settings["seed"] = seed
    config = validate(settings)
    assert validate(yaml.safe_load(config.to_yaml())) == config


def test_settings_of_the_first_release_are_read_with_the_defaults_of_the_new_ones(tmp_path: Path) -> None:
    settings = yaml.safe_load(tiny_config().to_yaml())
    for key in ("keep_best", "keep_every_steps", "disk_patience"):
        del settings["checkpoint"][key]
    del settings["machine"]["max_restarts"]
    write_text(tmp_path / "config.yaml", yaml.safe_dump(settings))
    assert load_config(tmp_path / "config.yaml") == tiny_config()


def test_a_preset_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    settings = load_preset("tiny")
    del settings["name"]
    write_text(path, yaml.safe_dump(settings))
    assert validate(load_preset(str(path))).name == "mine"


@pytest.mark.parametrize(
    ("content", "told"), [(b"a: [1", "is not YAML"), (b"\xff\xfe\x00", "is not YAML"), (b"- 1", "holds no mapping")]
)
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_preset(str(path))
    assert str(path) in caught.value.message
    assert told in caught.value.message
    assert caught.value.hint == "compare it with a preset in configs/"


def test_a_missing_file_and_an_unknown_preset_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file .*mine\.yaml"):
        load_preset(str(tmp_path / "mine.yaml"))
    with pytest.raises(UsageError, match="there is no preset 'smal'") as caught:
        load_preset("smal")
    assert caught.value.hint == "did you mean 'small'?"
    with pytest.raises(UsageError, match="there is no preset 'qqq'") as caught:
        load_preset("qqq")
    assert all(name in caught.value.hint for name in preset_names())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "can't be read"),
        ("a: [1", "can't be read"),
        ("just text", "holds no settings"),
        ("format_version: 2", "has format version 2, and this release reads version 1"),
        ("name: x", "has format version None"),
    ],
)
def test_a_run_s_config_that_is_none_is_refused(tmp_path: Path, content: str | None, told: str) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        write_text(path, content)
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert str(path) in caught.value.message
    assert told in caught.value.message
    assert caught.value.hint


def references(merged: bool) -> str:
    """A few lines of YAML that stand for 10^12 values."""
    lines = ["a0: &a0 {x: 1, y: 2}"]
    for level in range(1, 12):
        tenfold = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{tenfold}]}}" if merged else f"[{tenfold}]"))
    return "\n".join(lines)


HOSTILE = {
    "references": (references(merged=False), "references (*name) are not taken here"),
    "merged references": (references(merged=True), "references (*name) are not taken here"),
    "a reference to itself": ("a: &a [*a]", "references (*name) are not taken here"),
    "deep lists": ("[" * 20_000, "maximum recursion depth exceeded"),
    "deep objects": ("a: " + "{b: " * 10_000, "maximum recursion depth exceeded"),
    "far too much": ("#" * (LARGEST_CONFIG_BYTES + 1), "has over 64,000 bytes"),
    "a Python object": ("a: !!python/object/apply:os.system [reboot]", "could not determine a constructor"),
    "a number without end": ("seed: " + "9" * 20_000, "Exceeds the limit"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_of_settings_is_refused_before_it_grows(tmp_path: Path, kind: str) -> None:
    content, told = HOSTILE[kind]
    path = tmp_path / "config.yaml"
    path.write_text(content)
    for load in (load_config, lambda path: load_preset(str(path))):
        with pytest.raises(UsageError) as caught:
            load(path)
        assert told in caught.value.message
        assert len(caught.value.message) < 1000
