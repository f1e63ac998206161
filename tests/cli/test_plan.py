from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lowmem_seq.cli import plan as module
from lowmem_seq.cli.plan import accumulation, bar, draw, legend, letter, to_json
from lowmem_seq.config import RunConfig
from lowmem_seq.errors import CapTooSmallError
from lowmem_seq.memory.footprint import CATEGORIES, Facts, Footprint
from lowmem_seq.memory.forecast import make_forecast
from lowmem_seq.memory.plan import Measurement, Plan, Setting
from lowmem_seq.memory.readings import MachineMemory
from lowmem_seq.memory.remembered import Knowledge
from lowmem_seq.supervisor import session
from lowmem_seq.supervisor.planner import Planned
from tests.builders import tiny_config, tiny_plan
from tests.cli.conftest import CommandLine
from tests.cli.test_flags import TRAIN_FLAGS, preset

MB = 10**6
FACTS = Facts("cpu", "bf16", 7, 240 * MB, 30 * MB, 0, 16, 7200, 800, 2000)
KNOWN = Knowledge(facts=FACTS, evaluated_images_per_second=2000.0, save_seconds=0.3)
FOOTPRINT = Footprint(
    libraries_bytes=240 * MB,
    weights_bytes=30 * MB,
    gradients_bytes=60 * MB,
    optimizer_bytes=60 * MB,
    data_bytes=2 * MB,
    activations_bytes=568 * MB,
    supervisor_bytes=40 * MB,
)
MACHINE = MachineMemory(8000 * MB, 4000 * MB)


def a_plan(**changes: Any) -> Plan:
    point = Measurement(16, 2, 3, "lean", 960 * MB, 1100 * MB, 800.0)
    plan = replace(
        tiny_plan(16),
        workers=2,
        recomputed_layers=3,
        layers=7,
        allocator="lean",
        chosen=Setting(16, 2, 3),
        footprint=FOOTPRINT,
        cap_bytes=1250 * MB,
        predicted_peak_bytes=1000 * MB,
        predicted_images_per_second=800.0,
        measurements=(point, replace(point, images_per_second=640.0)),
    )
    return replace(plan, **changes)


CONFIG = tiny_config("recipe.effective_batch=128", "recipe.epochs=10")


def drawn(plan: Plan, width: int = 80, coloured: bool = False, config: RunConfig = CONFIG) -> str:
    planned = Planned(plan, KNOWN)
    stream = StringIO()
    console = Console(
        file=stream, width=width, force_terminal=coloured, color_system="standard" if coloured else None
    )
    console.print(draw(config, planned, make_forecast(config, plan, KNOWN), MACHINE, width, coloured), width=width)
    return stream.getvalue()


def test_a_plan_tells_all_that_is_to_be_expected() -> None:
    said = " ".join(drawn(a_plan(), width=100).split())
    assert "tiny on shapes, 16x16" in said
    assert "1.00 GB at the peak, 80% of the cap of 1.25 GB" in said
    for told in (
        "cap 1.25 GB, given by --max-ram or the settings",
        "machine 4.00 GB of 8.00 GB free now",
        "step micro-batch 16 x accumulation 4 x 2 workers, 128 images",
        "recomputed 3 of 7 layers in backward",
        "allocator lean: gives memory back at once, which takes time",
        "device cpu, fp32, 2 cores",
        "speed about 800 images/s in training; measured 2 times, the slowest 640 images/s",
        "time 1 min 35 s to 1 min 59 s for 10 epochs (563 steps), of it 5.2% evaluation and 0.4% saves",
        "disk 394 MB: 4 checkpoints of 91.0 MB, and the final weights;",
    ):
        assert told in said, told


def test_a_cap_from_the_machine_says_so() -> None:
    said = " ".join(drawn(a_plan(cap_source="machine")).split())
    assert "cap 1.25 GB, 70% of what is free; --max-ram gives another" in said


@pytest.mark.parametrize("coloured", [False, True])
@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_line_is_wider_than_the_terminal(width: int, coloured: bool) -> None:
    stream = StringIO(drawn(a_plan(), width, coloured))
    for line in Console(file=StringIO()).render_lines(stream.getvalue()):
        assert line
    plain = drawn(a_plan(), width)
    assert max(len(line) for line in plain.splitlines()) <= width


def test_the_bar_shows_each_category_by_its_letter_where_there_is_no_colour() -> None:
    text = bar(FOOTPRINT, 1250 * MB, 50, coloured=False).plain
    assert text == "[" + "L" * 10 + "W" + "G" * 2 + "O" * 3 + "#" * 22 + "S" * 2 + "." * 10 + "]"


def test_the_bar_ends_where_the_cap_is() -> None:
    full = replace(FOOTPRINT, activations_bytes=10**12)
    assert bar(full, 1250 * MB, 50, coloured=False).plain[-2:] == "#]"
    assert len(bar(full, 1250 * MB, 50, coloured=True).plain) == 52


def test_letters_tell_the_categories_apart() -> None:
    letters = [letter(name) for name in CATEGORIES.values()]
    assert len(set(letters)) == len(letters)


def test_the_legend_names_every_category_with_bytes_and_share() -> None:
    stream = StringIO()
    Console(file=stream, width=80).print(legend(FOOTPRINT, coloured=False))
    said = " ".join(stream.getvalue().split())
    assert "LL libraries 240 MB 24%" in said
    assert "## activations, scratch 568 MB 57%" in said
    assert "AA average of weights -" in said


@pytest.mark.parametrize(("micro_batch", "workers", "count"), [(16, 2, 4), (22, 2, 3), (128, 1, 1), (3, 1, 43)])
def test_accumulation_is_what_a_worker_computes_for_a_step(micro_batch: int, workers: int, count: int) -> None:
    assert accumulation(a_plan(micro_batch=micro_batch, workers=workers), 128) == count


def test_json_has_the_whole_plan_with_units_in_its_keys() -> None:
    plan = a_plan()
    told = to_json(CONFIG, Planned(plan, KNOWN), make_forecast(CONFIG, plan, KNOWN), MACHINE)
    assert json.loads(json.dumps(told)) == json.loads(json.dumps(told, allow_nan=False))
    assert {key: told[key] for key in ("micro_batch", "accumulation", "workers", "recomputed_layers")} == {
        "micro_batch": 16,
        "accumulation": 4,
        "workers": 2,
        "recomputed_layers": 3,
    }
    assert (told["allocator"], told["cap_bytes"], told["cap_source"]) == ("lean", 1250 * MB, "given")
    assert told["footprint"]["activations_bytes"] == 568 * MB
    assert (told["images_per_second"], told["slowest_images_per_second"]) == (800.0, 640.0)
    assert told["wall_seconds"] < told["most_wall_seconds"]
    assert (told["machine_bytes"], told["available_bytes"]) == (8000 * MB, 4000 * MB)
    assert told["disk_bytes"] == 4 * told["checkpoint_bytes"] + 30 * MB
    assert told["free_disk_bytes"] > 0


class Planning:
    """Stands where data would be prepared and a plan be measured; keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[RunConfig, bool, Path]] = []
        self.error: CapTooSmallError | None = None

    def prepare_data(self, *_arguments: object) -> None:
        """Pack nothing."""

    def make_plan(self, run: Any, config: RunConfig, _screen: object, _stops: object, fresh: bool) -> Planned:
        self.asked.append((config, fresh, run.path))
        if self.error is not None:
            raise self.error
        return Planned(a_plan(), KNOWN)


@pytest.fixture
def planning(monkeypatch: pytest.MonkeyPatch) -> Planning:
    planning = Planning()
    monkeypatch.setattr(session, "prepare_data", planning.prepare_data)
    monkeypatch.setattr(module, "make_plan", planning.make_plan)
    return planning


OTHER_FLAGS = ("--seed", "--checkpoint-every", "--pause-on-battery", "--only-between", "--no-keep-awake")
"""Of train, which change nothing that a plan tells; `--set` gives them."""


@pytest.mark.parametrize(
    ("flags", "assignments"),
    [one for one in TRAIN_FLAGS if not set(one[0]) & set(OTHER_FLAGS)],
    ids=lambda value: " ".join(value),
)
def test_every_flag_reaches_the_config_that_is_planned_for(
    command_line: CommandLine, planning: Planning, flags: list[str], assignments: list[str]
) -> None:
    assert command_line("plan", "tiny", *flags).code == 0
    ((config, fresh, _),) = planning.asked
    assert (config, fresh) == (preset(*assignments), False)


def test_a_fresh_plan_is_asked_for(command_line: CommandLine, planning: Planning) -> None:
    assert command_line("plan", "tiny", "--fresh").code == 0
    assert planning.asked[0][1]


def test_a_plan_leaves_nothing_behind(command_line: CommandLine, planning: Planning) -> None:
    assert command_line("plan", "tiny").code == 0
    assert not planning.asked[0][2].exists()
    assert not planning.asked[0][2].parent.exists()
    assert list(Path.cwd().iterdir()) == []


def test_json_stands_alone_on_stdout(command_line: CommandLine, planning: Planning) -> None:
    ended = command_line("plan", "tiny", "--json")
    assert json.loads(ended.out)["micro_batch"] == 16


def without_what_is_free(screen: str) -> list[str]:
    """The lines, but for those that tell what this machine has free at the moment."""
    lines = screen.splitlines()
    kept = [line for line in lines if not line.startswith("machine ") and " are free here" not in line]
    assert len(kept) >= len(lines) - 3
    return kept


def test_a_dry_run_shows_the_same(command_line: CommandLine, planning: Planning) -> None:
    planned = command_line("plan", "tiny", "--data", "shapes").out
    shown = command_line("train", "tiny", "--data", "shapes", "--dry-run").out
    assert without_what_is_free(shown) == without_what_is_free(planned)
    assert "micro-batch 16 x accumulation" in shown
    assert planning.asked[0][0] == planning.asked[1][0]


def test_a_cap_that_can_t_work_ends_with_3(command_line: CommandLine, planning: Planning) -> None:
    planning.error = CapTooSmallError("the cap of 1 MB is too small", "the smallest that would do")
    ended = command_line("plan", "tiny", "--json")
    assert (ended.code, ended.out) == (3, "")
    assert "hint: the smallest that would do" in ended.err
    assert not planning.asked[0][2].exists()


def test_names_of_others_do_nothing_to_the_terminal() -> None:
    config = tiny_config('data.source="\\e[2Jshapes"', 'name="\\e[31mtiny"')
    assert "\x1b" not in drawn(a_plan(), config=config)
