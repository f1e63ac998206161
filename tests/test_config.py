from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.config import (
    LARGEST_CONFIG_BYTES,
    RunConfig,
    lay,
    load_config,
    load_preset,
    override,
    preset_names,
    validate,
)
from lowmem_seq.errors import UsageError
from lowmem_seq.files import write_text
from lowmem_seq.units import Interval
from tests.builders import tiny_config


def refusal(*assignments: str) -> UsageError:
    """The error that the preset `tiny` with these assignments is refused with."""
    with pytest.raises(UsageError) as caught:
        tiny_config(*assignments)
    assert caught.value.exit_code == 2
    return caught.value


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
    "medium": (
        "61e1c56a912c0d3daf7d9417eb873b46e0b1f528db6d47c9640758bce50af64e",
        "9a78fb15985e9432f3a9b0e82a96eff55c04a068a4b5339433867ffc25fda86e",
    ),
    "sequencer2d_l": (
        "b7cb3e78535f6522d7703bb78638799f368a937364484b1c005f44351e62e21c",
        "ac889d4d1d1ab5f297d7d306eac8977822ca6522dbeafbeacdffccbb12114b86",
    ),
    "sequencer2d_m": (
        "acbb8df45c2e09dff5ada058ce01ad8b21120423882c10995374b3494206ed1d",
        "559a62e2e323e41abd1980318fac6e58c141c94bb6d45a82532366678832bced",
    ),
    "sequencer2d_s": (
        "23eba2918512d80b6a847fbf65b556e44a9097ccdf551ba8e5ec3f9f7ed3bc0b",
        "e9193c132c20b0df7acb39c5c7b6f6d6cfa0704758a00deca2d2e7d7cf8ea0f9",
    ),
    "small": (
        "ed6e30b879218d344115dbd4a337c573ff89fd86558494d38eac16aad2714839",
        "758d2598aceab751f65126f063061e6fbb38998d681bb6e4b160cc0ea11c686d",
    ),
    "small-plus": (
        "0f0900494e8d053cf4befc5781aebb58ebae1ed05198cb4ffede1543bb6462e9",
        "3bbb7d9c8510ede95cb80a4bca7084535d200fd4205f4a1d92c0cf53f7f51f54",
    ),
    "tiny": (
        "70626ea2d5b3c59b377c0b63ea5b491ab6805a80b18062ec3809c27e413feea2",
        "79bddfd7c7dae8ef607b0f05f91f5da417dc96e424b45fe9c0301cdf24d05626",
    ),
    "vanilla": (
        "4701299538222c8d8988cd467b02099a84a02eb09579fb1563429c9fba845e84",
        "e131e1305f778a6aede1647ad9808f7ab8320e4e0320471ba1827fcf4bbde11b",
    ),
}
"""The SHA-256 of each preset's experiment, and of its config.yaml: in the run folders that are out there."""


def test_there_is_a_digest_for_every_preset() -> None:
    assert list(WRITTEN) == preset_names()


@pytest.mark.parametrize("name", WRITTEN)
def test_presets_have_the_digests_that_they_were_released_with(name: str) -> None:
    config = validate(load_preset(name))
    assert (config.experiment_hash(), hashlib.sha256(config.to_yaml().encode()).hexdigest()) == WRITTEN[name]


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


@pytest.mark.parametrize(
    ("assignment", "named", "hint"),
    [
        ("recipe.peak_lerning_rate=1", "recipe.peak_lerning_rate", "did you mean 'peak_learning_rate'?"),
        ("sed=1", "sed", "did you mean 'seed'?"),
        ("model.drop_pth=0.1", "model.drop_pth", "did you mean 'drop_path'?"),
        ("machine.max_ram=6GB", "machine.max_ram", "did you mean 'max_ram_bytes'?"),
        (
            "checkpoint.zzz=1",
            "checkpoint.zzz",
            "known here: every, keep, keep_best, keep_every_steps, disk_patience",
        ),
        ("checkpoint.keepbest=true", "checkpoint.keepbest", "did you mean 'keep_best'?"),
        ("machine.max_restart=3", "machine.max_restart", "did you mean 'max_restarts'?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_of_its_section(assignment: str, named: str, hint: str) -> None:
    error = refusal(assignment)
    assert f"there is no setting {named!r}" in error.message
    assert error.hint == hint


def test_every_fault_is_named_at_once() -> None:
    error = refusal(
        "machine.micro_batch=-1",
        "model.widths=[16]",
        "recipe.epoch=3",
        "recipe.epochs=0",
        "recipe.clip_norm=.inf",
        "augmentation.mixup=0.6",
        "augmentation.cutmix=0.6",
        "checkpoint.every=200",
        "data=3",
        "machine.max_ram_bytes=6XB",
    )
    assert error.message.splitlines() == [
        "the configuration is not valid.",
        "model: layers, widths, lstm_widths and patch_sizes need one value a stage each",
        "data: must be a section of settings (got 3)",
        "augmentation: mixup and cutmix together must not pass 1",
        "recipe.epochs: must be a whole number, at least 1 (got 0)",
        "recipe.clip_norm: must be a finite number (got inf)",
        "there is no setting 'recipe.epoch'",
        "checkpoint.every: '200' is neither steps nor a time.",
        "machine.max_ram_bytes: 'XB' is not a unit of memory.",
        "machine.micro_batch: must be a whole number, at least 1, at most 1000000, or null (got -1)",
    ]
    assert error.hint == "did you mean 'epochs'?"


SEED = "must be a whole number, at least 0, at most 9223372036854775807"


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("recipe.epochs=true", "must be a whole number, at least 1 (got True)"),
        ("recipe.epochs=1.5", "must be a whole number, at least 1 (got 1.5)"),
        ("recipe.epochs=many", "must be a whole number, at least 1 (got 'many')"),
        ("recipe.peak_learning_rate=true", "must be a number, above 0 (got True)"),
        ("recipe.clip_norm='0'", "must be a number, above 0, or null (got '0')"),
        ("recipe.beta1=1", "must be a number, at least 0, below 1 (got 1)"),
        ("recipe.label_smoothing=2", "must be a number, at least 0, at most 1 (got 2)"),
        ("data.validation_fraction=.nan", "must be a number, above 0, below 0.9 (got nan)"),
        ("seed=9223372036854775808", f"{SEED} (got 9223372036854775808)"),
        ("model.layers=[1, true]", "must be a list, each entry a whole number, at least 1 (got [1, True])"),
        ("data.classes=[1]", "must be a list, each entry a text, or null (got [1])"),
        ("data.source=3", "must be a text (got 3)"),
        ("name=''", "must be a text that is not empty (got '')"),
        ("augmentation.flip=3", "must be true or false, or null (got 3)"),
        ("machine.device=tpu", "must be 'auto', 'cpu', 'cuda' or 'mps' (got 'tpu')"),
        ("machine.max_ram_bytes=true", "must be a whole number, at least 1, or null (got True)"),
        ("model.architecture=rnn", "must be 'sequencer2d' or 'vanilla_bilstm' (got 'rnn')"),
        ("recipe=null", "must be a section of settings (got None)"),
        ("format_version=2", "must be 1 (got 2)"),
        pytest.param("seed=-0x" + "f" * 5000, f"{SEED} (got a number of thousands of digits)", id="a huge number"),
    ],
)
def test_what_a_setting_must_be_is_told_in_plain_words(assignment: str, told: str) -> None:
    (_, line) = refusal(assignment).message.splitlines()
    assert line.startswith(f"{assignment.partition('=')[0]}: {told}")


@pytest.mark.parametrize("key", ["name", "model", "model.layers"])
def test_a_setting_without_a_default_is_asked_for(key: str) -> None:
    settings = load_preset("tiny")
    section, _, last = key.rpartition(".")
    del (settings[section] if section else settings)[last]
    with pytest.raises(UsageError, match=rf"\n{key}: is missing$"):
        validate(settings)


def test_numbers_may_be_written_in_several_ways(tmp_path: Path) -> None:
    text = yaml.safe_dump(load_preset("tiny") | {"seed": 7, "recipe": "RECIPE"})
    path = tmp_path / "mine.yaml"
    written = "{peak_learning_rate: 1e-3, epochs: 3.0, weight_decay: 0, clip_norm: '2'}"
    write_text(path, text.replace("RECIPE", written))
    recipe = validate(load_preset(str(path))).recipe
    numbers = (recipe.peak_learning_rate, recipe.epochs, recipe.weight_decay, recipe.clip_norm)
    assert numbers == (0.001, 3, 0.0, 2.0)
    assert [type(number) for number in numbers] == [float, int, float, float]


@pytest.mark.parametrize(
    "assignment",
    [
        "recipe.effective_batch=0",
        "recipe.peak_learning_rate=0",
        "recipe.beta1=1",
        "recipe.label_smoothing=1.1",
        "recipe.clip_norm=0",
        "data.image_size=7",
        "data.image_size=1025",
        "data.validation_fraction=0",
        "data.validation_fraction=0.9",
        "seed=-1",
        "steps=0",
        "model.layers=[]",
        "model.drop_path=1",
        "machine.device=tpu",
        "machine.precision=fp16",
        "machine.max_ram_bytes=0",
        "checkpoint.keep=0",
        "checkpoint.keep_best=sometimes",
        "checkpoint.keep_every_steps=0",
        "machine.max_restarts=-1",
        "augmentation.mixup=1.5",
        "name=",
        "recipe=3",
    ],
)
def test_a_value_out_of_range_is_refused_by_name(assignment: str) -> None:
    key = assignment.partition("=")[0]
    error = refusal(assignment)
    assert f"\n{key.split('.')[0]}" in error.message
    assert key.split(".")[-1] in error.message


@pytest.mark.parametrize("key", ["recipe.peak_learning_rate", "recipe.weight_decay", "augmentation.zoom"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_finite_number_is_refused(key: str, value: float) -> None:
    assert key in refusal(f"{key}={value}").message


def test_one_value_a_stage_is_asked_for() -> None:
    assert "need one value a stage each" in refusal("model.widths=[16]").message


def test_mixing_shares_may_not_pass_one() -> None:
    assert (
        "mixup and cutmix together must not pass 1"
        in refusal("augmentation.mixup=0.6", "augmentation.cutmix=0.6").message
    )


def test_an_unknown_architecture_is_refused() -> None:
    error = refusal("model.architecture=transformer")
    assert "sequencer2d" in error.message
    assert "vanilla_bilstm" in error.message


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("checkpoint.every=200", "'200' is neither steps nor a time."),
        ("checkpoint.every=null", "'None' is not an interval."),
        ("checkpoint.disk_patience=30", "'30' has no unit of time."),
        ("checkpoint.disk_patience=30GB", "'GB' is not a unit of time."),
        ("checkpoint.disk_patience=for ever", "'for ever' is not a time."),
        ("checkpoint.disk_patience=-1s", "'-1s' is not a time."),
        ("checkpoint.disk_patience=null", "'None' is not a time."),
        ("machine.max_ram_bytes=6XB", "'XB' is not a unit of memory."),
        ("machine.max_ram_bytes='6'", "'6' has no unit of memory."),
    ],
)
def test_amounts_without_a_right_unit_are_refused(assignment: str, told: str) -> None:
    assert refusal(assignment).message == f"the configuration is not valid.\n{assignment.partition('=')[0]}: {told}"


def test_amounts_with_units_are_read() -> None:
    config = tiny_config("machine.max_ram_bytes=6GiB", "checkpoint.every=5min")
    assert config.machine.max_ram_bytes == 6 * 2**30
    assert config.checkpoint.interval == Interval("seconds", 300)


@pytest.mark.parametrize(("text", "seconds"), [("30min", 1800.0), ("0s", 0.0), ("1.5h", 5400.0)])
def test_the_patience_with_a_disk_is_a_time(text: str, seconds: float) -> None:
    assert tiny_config(f"checkpoint.disk_patience={text}").checkpoint.disk_patience_seconds == seconds


def test_what_survives_crashes_is_on_without_being_asked_for() -> None:
    config = tiny_config()
    assert config.checkpoint.to_settings() == {
        "every": "5min",
        "keep": 2,
        "keep_best": True,
        "keep_every_steps": None,
        "disk_patience": "30min",
    }
    assert config.machine.max_restarts == 10


def test_settings_of_the_first_release_are_read_with_the_defaults_of_the_new_ones(tmp_path: Path) -> None:
    settings = yaml.safe_load(tiny_config().to_yaml())
    for key in ("keep_best", "keep_every_steps", "disk_patience"):
        del settings["checkpoint"][key]
    del settings["machine"]["max_restarts"]
    write_text(tmp_path / "config.yaml", yaml.safe_dump(settings))
    assert load_config(tmp_path / "config.yaml") == tiny_config()


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("a.b=3", 3),
        ("a.b=1e-3", 0.001),
        ("a.b='1e-3'", "1e-3"),
        ("a.b='200'", "200"),
        ("a.b=infinity", "infinity"),
        ("a.b=0.5", 0.5),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b=null", None),
        ("a.b=", None),
        ("a.b=true", True),
        ("a.b=6GB", "6GB"),
        ("a.b=x=y", "x=y"),
        (" a.b = 3", 3),
    ],
)
def test_override_reads_values_as_yaml_and_lays_them_over(assignment: str, value: object) -> None:
    settings: dict[str, Any] = {"a": {"b": "old", "c": "stays"}, "d": 1}
    override(settings, assignment)
    assert settings == {"a": {"b": value, "c": "stays"}, "d": 1}


def test_override_makes_the_sections_that_are_missing() -> None:
    settings: dict[str, Any] = {}
    override(settings, "recipe.epochs=3")
    assert settings == {"recipe": {"epochs": 3}}


@pytest.mark.parametrize(
    ("assignment", "told", "hint"),
    [
        ("recipe.epochs", "is no assignment", "--set recipe.peak_learning_rate=0.001"),
        ("=3", "is no assignment", "--set recipe.peak_learning_rate=0.001"),
        ("a=[1", "the value is no YAML", "quote it"),
    ],
)
def test_override_refuses_what_is_no_assignment(assignment: str, told: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        override({"name": "tiny"}, assignment)
    assert told in caught.value.message
    assert repr(assignment) in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "assignment",
    [
        "machine.max_ram_bytes=1GB",
        "machine.threads=7",
        "machine.micro_batch=3",
        "machine.precision=bf16",
        "checkpoint.every=7steps",
        "checkpoint.keep=5",
        "checkpoint.keep_best=false",
        "checkpoint.keep_every_steps=100",
        "checkpoint.disk_patience=1h",
        "machine.max_restarts=0",
        "data.source=elsewhere",
        "steps=9",
        "recipe.epochs=99",
        "name=other",
    ],
)
def test_the_experiment_is_the_same_wherever_it_is_computed_and_saved(assignment: str) -> None:
    assert tiny_config(assignment).experiment_hash() == tiny_config().experiment_hash()


@pytest.mark.parametrize(
    "assignment",
    [
        "seed=1",
        "recipe.effective_batch=33",
        "recipe.peak_learning_rate=0.1",
        "augmentation.flip=false",
        "data.classes=[b, a]",
        "data.validation_fraction=0.2",
        "model.drop_path=0.2",
    ],
)
def test_what_decides_the_result_is_in_the_experiment_s_hash(assignment: str) -> None:
    assert tiny_config(assignment).experiment_hash() != tiny_config().experiment_hash()


def test_a_value_is_no_section() -> None:
    with pytest.raises(UsageError) as caught:
        override({"name": "tiny"}, "name.x=1")
    assert caught.value.message == "name.x: 'name' is a value, not a section."
    assert "config.yaml" in caught.value.hint


def test_an_empty_section_is_filled() -> None:
    settings: dict[str, object] = {"machine": None}
    lay(settings, "machine.threads", 2)
    assert settings == {"machine": {"threads": 2}}


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


def test_settings_are_frozen() -> None:
    config: RunConfig = tiny_config()
    with pytest.raises(AttributeError, match="immutable"):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        config.recipe.epochs = 3  # type: ignore[misc]


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


def test_a_wrong_value_is_told_in_short() -> None:
    message = refusal("recipe.epochs=" + "x" * 100_000, "data.classes=[" + "[a], " * 1000 + "]").message
    assert "recipe.epochs" in message
    assert all(len(line) < 300 for line in message.splitlines())
