from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lowmem_seq.checkpoint import manifest as manifest_module
from lowmem_seq.checkpoint.codec import write_tensors
from lowmem_seq.checkpoint.manifest import Checkpoint
from lowmem_seq.checkpoint.store import SET_ASIDE_PREFIXES, bytes_on_disk
from lowmem_seq.files import write_json, write_text
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.state import weights_sha256
from lowmem_seq.units import format_bytes
from tests.builders import end, start_python
from tests.checkpoint.builders import files_of, flip_a_bit, save_step, weights, write_checkpoint
from tests.cli.conftest import CommandLine, Ended
from tests.cli.test_start import IMPORTED, assert_refused
from tests.report.builders import STEPS, finish, save, start_session, stop, tell

AT = 1_800_000_000.0
WHEN = time.strftime("%Y-%m-%d %H:%M", time.localtime(AT))


def save_and_tell(run: RunFolder, step: int, **details: Any) -> Checkpoint:
    """A checkpoint, and the event that tells of it."""
    checkpoint = save_step(run, step, **details)
    save(run, step, at=AT)
    return checkpoint


def write_weights(run: RunFolder, classes: int = 3) -> str:
    """The final weights of a run; return their checksum."""
    tensors = {name: torch.from_numpy(value) for name, value in weights(STEPS, classes).items()}
    write_tensors(run.weights_file, tensors)
    return weights_sha256(tensors)


def line_of(checkpoint: Checkpoint, rest: str, accuracy: str = "") -> str:
    size = format_bytes(bytes_on_disk(checkpoint))
    return f"{checkpoint.path.name}  {size:>8}  {WHEN}  {accuracy:>7}  {rest}"


def assert_wrong(ended: Ended, told: str, hint: str) -> None:
    assert_refused(ended, 6, told, hint)


def as_json(command_line: CommandLine, run: RunFolder, code: int = 0) -> dict[str, Any]:
    ended = command_line("verify", str(run.path), "--json")
    assert ended.code == code
    assert (ended.err == "") is (code == 0)
    told: dict[str, Any] = json.loads(ended.out)
    assert told["verifies"] is (code == 0)
    return told


def test_a_line_a_checkpoint_and_what_a_resume_would_do(command_line: CommandLine, run: RunFolder) -> None:
    start_session(run)
    older = save_and_tell(run, 20)
    newer = save_and_tell(run, 40, val_accuracy=0.612)
    assert command_line("verify", str(run.path)) == (
        0,
        "\n".join(
            [
                line_of(older, "verifies"),
                line_of(newer, "verifies", "61.20%"),
                "all 2 checkpoints verify; resume goes on from step 40",
                "",
            ]
        ),
        "",
    )


def test_one_checkpoint_is_no_plural(command_line: CommandLine, run: RunFolder) -> None:
    save_and_tell(run, 1200)
    ended = command_line("verify", str(run.path))
    assert ended.out.splitlines()[-1] == "the one checkpoint verifies; resume goes on from step 1,200"


def test_json_tells_the_same(command_line: CommandLine, run: RunFolder) -> None:
    start_session(run)
    saved = save_and_tell(run, 40, val_accuracy=0.612)
    stop(run, 40)
    assert as_json(command_line, run) == {
        "run": str(run.path),
        "state": "stopped",
        "verifies": True,
        "resume_step": 40,
        "checkpoints": [
            {
                "name": "step-00000040",
                "step": 40,
                "bytes": bytes_on_disk(saved),
                "saved_unix_seconds": AT,
                "val_accuracy": 0.612,
                "fault": None,
            }
        ],
        "set_aside": [],
        "unfinished": [],
        "has_weights": False,
        "weights_fault": None,
        "torn_events": 0,
    }


def test_before_the_first_save_there_is_nothing_to_verify(command_line: CommandLine, run: RunFolder) -> None:
    told = "no checkpoint was saved yet; there is nothing to verify\n"
    assert command_line("verify", str(run.path)) == (0, told, "")
    start_session(run)
    assert command_line("verify", str(run.path)) == (0, told, "")
    assert as_json(command_line, run)["resume_step"] is None


# What does not verify.


def test_a_broken_checkpoint_ends_with_6_and_the_way_on(command_line: CommandLine, run: RunFolder) -> None:
    older, newer = (save_and_tell(run, step) for step in (20, 40))
    flip_a_bit(newer.path / "model.safetensors")
    ended = command_line("verify", str(run.path))
    assert ended.out.splitlines() == [
        line_of(older, "verifies"),
        line_of(newer, "does not verify: model.safetensors has changed since it was written"),
    ]
    told = f"error: {run.path}: 1 of 2 checkpoints does not verify.\n\n"
    assert ended.err == f"{told}hint: {run.resume_command}   goes on from step 20\n"
    assert ended.code == 6
    found = as_json(command_line, run, code=6)
    assert found["resume_step"] == 20
    assert [one["fault"] for one in found["checkpoints"]] == [
        None,
        "model.safetensors has changed since it was written",
    ]


def test_where_none_verifies_a_copy_is_asked_for(command_line: CommandLine, run: RunFolder) -> None:
    for step in (20, 40):
        flip_a_bit(save_and_tell(run, step).path / "state.json")
    assert_wrong(command_line("verify", str(run.path)), "2 of 2 checkpoints do not verify.", "from a copy")
    assert as_json(command_line, run, code=6)["resume_step"] is None


def test_tensors_that_do_not_fit_the_others_are_found(command_line: CommandLine, run: RunFolder) -> None:
    save_and_tell(run, 20)
    odd = save_and_tell(run, 40, files=files_of(40, classes=5))
    ended = command_line("verify", str(run.path))
    assert_wrong(ended, "1 of 2 checkpoints does not verify.", f"move {odd.path} away, and verify again")
    assert (
        "does not verify: model.safetensors: head.bias is F32 (5,), and in step-00000020 it is F32 (3,)"
        in ended.out
    )


def test_a_checkpoint_of_a_later_release_asks_for_that(
    command_line: CommandLine, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_and_tell(run, 20)
    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, "FORMAT_VERSION", 3)
        save_and_tell(run, 40)
    ended = command_line("verify", str(run.path))
    assert_wrong(ended, "1 of 2 checkpoints does not verify.", "pip install --upgrade lowmem-seq")


@pytest.mark.parametrize("key", ["experiment_sha256", "data_fingerprint"])
def test_a_checkpoint_of_another_experiment_is_found(command_line: CommandLine, run: RunFolder, key: str) -> None:
    data = run.read_json(run.data_file)
    assert data is not None
    identity = {"experiment_sha256": run.config.experiment_hash(), "data_fingerprint": data["fingerprint"]}
    write_checkpoint(run.checkpoints, 20, {**identity, key: "f" * 64})
    ended = command_line("verify", str(run.path))
    assert_wrong(ended, "1 of 1 checkpoints does not verify.", "restore the run's config.yaml")
    assert f"belongs to another experiment (other {key})" in ended.out


def test_checkpoints_of_a_run_whose_data_was_never_found_are_held_against_its_settings(
    command_line: CommandLine, run: RunFolder
) -> None:
    save_and_tell(run, 20)
    run.data_file.unlink()
    assert as_json(command_line, run)["resume_step"] == 20


def test_saves_that_are_gone_end_with_6(command_line: CommandLine, run: RunFolder) -> None:
    for step in (20, 1200):
        save_and_tell(run, step)
    shutil.rmtree(run.checkpoints)
    ended = command_line("verify", str(run.path))
    assert_wrong(ended, "step 1,200 was saved, and no checkpoint lies there now.", "from a copy")
    assert ended.out == ""
    assert as_json(command_line, run, code=6)["checkpoints"] == []


def test_what_was_set_aside_is_named_and_not_counted(command_line: CommandLine, run: RunFolder) -> None:
    save_and_tell(run, 20)
    broken = save_and_tell(run, 40)
    broken.path.rename(broken.path.with_name("broken-step-00000040"))
    ended = command_line("verify", str(run.path))
    assert ended.code == 0
    assert ended.out.splitlines()[1:] == [
        "broken-step-00000040 was set aside by an earlier resume, and is not counted",
        "the one checkpoint verifies; resume goes on from step 20",
    ]
    assert as_json(command_line, run)["set_aside"] == ["broken-step-00000040"]


@pytest.mark.parametrize("prefix", SET_ASIDE_PREFIXES)
def test_where_all_were_set_aside_it_is_said(command_line: CommandLine, run: RunFolder, prefix: str) -> None:
    saved = save_step(run, 40)
    saved.path.rename(saved.path.with_name(f"{prefix}step-00000040"))
    ended = command_line("verify", str(run.path))
    assert_wrong(ended, "every checkpoint that lies there was set aside.", "from a copy")


def test_what_a_killed_save_left_is_told(command_line: CommandLine, run: RunFolder) -> None:
    save_and_tell(run, 20)
    whole = save_step(run, 40)
    whole.path.rename(whole.path.with_name("step-00000040.partial-0123abcd"))
    (run.checkpoints / "step-00000060.partial-0123abcd").mkdir()
    ended = command_line("verify", str(run.path))
    assert ended.code == 0
    assert ended.out.splitlines()[2:] == [
        "step-00000060.partial-0123abcd is of a save that was killed; resume clears it away",
        "all 2 checkpoints verify; resume goes on from step 40",
    ]
    assert as_json(command_line, run)["unfinished"] == ["step-00000060.partial-0123abcd"]
    with run.locked():  # a save under way
        found = as_json(command_line, run)
    assert (found["resume_step"], found["unfinished"]) == (20, [])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_no_name_in_the_folder_reaches_the_terminal_as_a_command(command_line: CommandLine, run: RunFolder) -> None:
    mark = "\x1b]0;title\x07\n"
    for step in (20, 40, 60):
        save_and_tell(run, step)
    for step in (20, 40):
        (run.checkpoints / f"step-000000{step}").rename(run.checkpoints / f"step-000000{step}.partial-{mark}{step}")
    (run.checkpoints / f"step-00000040.partial-{mark}40" / "manifest.json").unlink()
    (run.checkpoints / f"broken-step-{mark}").mkdir()
    ended = command_line("verify", str(run.path))
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "step-00000020.partial- ]0;title",
        "step-00000060",
        "broken-step- ]0;title",
        "step-00000040.partial- ]0;title",
        "all 2 checkpoints verify; resume goes on from step 60",
    ]
    assert all(line.isprintable() for line in lines)
    assert as_json(command_line, run)["unfinished"] == [f"step-00000040.partial-{mark}40"]


@pytest.mark.parametrize(("count", "told"), [(1, "1 line is torn"), (2, "2 lines are torn")])
def test_torn_events_are_counted_and_no_fault(
    command_line: CommandLine, run: RunFolder, count: int, told: str
) -> None:
    save_and_tell(run, 20)
    for _ in range(count):
        with run.events.path.open("ab") as file:
            file.write(b'\n{"event": "tra')  # an empty line hides nothing
        tell(run, "memory", tree_bytes=1, peak_tree_bytes=1, cap_bytes=1)
    ended = command_line("verify", str(run.path))
    assert ended.code == 0
    assert f"events.jsonl: {told}, as kills leave them, and passed over" in ended.out
    assert as_json(command_line, run)["torn_events"] == count


def test_events_that_make_no_sense_are_no_reason_not_to_verify(command_line: CommandLine, run: RunFolder) -> None:
    save_and_tell(run, 20)
    tell(run, "memory")
    tell(run, "checkpoint", step=[1])
    assert as_json(command_line, run)["resume_step"] == 20


def test_a_config_that_is_not_valid_ends_with_2(command_line: CommandLine, run: RunFolder) -> None:
    save_and_tell(run, 20)
    write_text(run.config_file, run.config.to_yaml() + "surprise: 1\n")
    assert_refused(command_line("verify", str(run.path)), 2, "there is no setting 'surprise'", "known here")


def test_data_that_can_not_be_read_ends_with_2(command_line: CommandLine, run: RunFolder) -> None:
    write_json(run.data_file, [1])
    assert_refused(command_line("verify", str(run.path)), 2, "data.json holds no JSON object", "from a copy")


# The final weights.


def finished(run: RunFolder, classes: int = 3) -> None:
    """A run that went to its end."""
    start_session(run)
    save_and_tell(run, 20)
    save_and_tell(run, STEPS)
    finish(run, weights_sha256=write_weights(run, classes))


def flip_the_weights(run: RunFolder) -> None:
    content = run.weights_file.read_bytes()
    run.weights_file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_final_weights_verify(command_line: CommandLine, run: RunFolder) -> None:
    finished(run)
    ended = command_line("verify", str(run.path))
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[2:] == [
        "the final weights, model.safetensors: verifies",
        "all 2 checkpoints verify; resume goes on from step 60",
    ]
    assert as_json(command_line, run)["has_weights"] is True


WEIGHTS: dict[str, tuple[Callable[[RunFolder], object], str]] = {
    "flipped": (flip_the_weights, "they have changed since they were written"),
    "cut off": (lambda run: run.weights_file.write_bytes(run.weights_file.read_bytes()[:-4]), "can't be read: "),
    "of other shapes": (lambda run: write_weights(run, classes=4), "in the checkpoints it is F32 (3,)"),
}


@pytest.mark.parametrize("damage", WEIGHTS)
def test_final_weights_that_do_not_verify_can_be_written_again(
    command_line: CommandLine, run: RunFolder, damage: str
) -> None:
    finished(run)
    break_it, told = WEIGHTS[damage]
    break_it(run)
    ended = command_line("verify", str(run.path))
    hint = f"{run.resume_command} --steps 60   writes the final weights again"
    assert_wrong(ended, f"{run.path}: the final weights do not verify.", hint)
    assert told in ended.out.splitlines()[2]
    assert told in as_json(command_line, run, code=6)["weights_fault"]


def test_weights_of_an_earlier_end_are_not_held_against_a_longer_run(
    command_line: CommandLine, run: RunFolder
) -> None:
    finished(run)
    start_session(run, step=STEPS)
    write_weights(run)
    flip_the_weights(run)
    assert as_json(command_line, run)["weights_fault"] is None


def test_checkpoints_and_weights_that_do_not_verify_are_told_together(
    command_line: CommandLine, run: RunFolder
) -> None:
    finished(run)
    flip_the_weights(run)
    (run.checkpoints / "step-00000060" / "state.json").unlink()
    told = f"{run.path}: 1 of 2 checkpoints does not verify, and the final weights do not verify."
    assert_wrong(command_line("verify", str(run.path)), told, "--steps 60   writes the final weights again")


def test_a_finished_run_with_a_broken_checkpoint_still_has_its_weights(
    command_line: CommandLine, run: RunFolder
) -> None:
    finished(run)
    flip_a_bit(run.checkpoints / "step-00000060" / "model.safetensors")
    ended = command_line("verify", str(run.path))
    assert_wrong(ended, "1 of 2 checkpoints does not verify.", "the run is finished, and its weights verify")


# While it runs.


def test_a_run_that_runs_is_looked_at_again_later(command_line: CommandLine, run: RunFolder) -> None:
    flip_a_bit(save_and_tell(run, 20).path / "state.json")
    with run.locked():
        ended = command_line("verify", str(run.path))
    assert_wrong(ended, "1 of 1 checkpoints does not verify.", "look again after its next checkpoint")


def test_verify_loads_no_torch(run: RunFolder) -> None:
    save_step(run, 20)
    write_weights(run)
    code, out, err = end(start_python(IMPORTED, "verify", str(run.path)))
    assert (code, err) == (0, "")
    assert out.splitlines()[-2:] == ["code 0", "imported numpy safetensors"]
