from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowmem_seq.config import RunConfig, lay, load_preset, override, validate
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
        "machine.keep_awake=false",
        "machine.pause_on_battery=true",
        "machine.only_between=22-7",
        "machine.background=true",
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


def test_settings_are_frozen() -> None:
    config: RunConfig = tiny_config()
    with pytest.raises(AttributeError, match="immutable"):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        config.recipe.epochs = 3  # type: ignore[misc]


def test_a_wrong_value_is_told_in_short() -> None:
    message = refusal("recipe.epochs=" + "x" * 100_000, "data.classes=[" + "[a], " * 1000 + "]").message
    assert "recipe.epochs" in message
    assert all(len(line) < 300 for line in message.splitlines())
