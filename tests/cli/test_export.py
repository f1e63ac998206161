from __future__ import annotations

import json
from pathlib import Path

from tests.builders import names
from tests.cli.conftest import CommandLine
from tests.cli.test_start import assert_refused
from tests.conftest import Coloured


def test_a_model_is_written_where_it_is_told_to(command_line: CommandLine, coloured: Coloured) -> None:
    ended = command_line("export", str(coloured.run.path), "--to", "deep/model")
    assert (ended.code, ended.err) == (0, "")
    assert "the final weights" in ended.out
    assert "timm has none of this kind" in ended.out
    assert f"to load it: {Path('deep/model/README.md')}" in ended.out
    assert names(Path("deep/model")) == ["README.md", "config.json", "model.safetensors", "model.yaml"]
    told = json.loads(command_line("export", str(coloured.run.path), "--to", "deep/model", "--json").out)
    assert told == {
        "run": str(coloured.run.path),
        "weights": "model.safetensors",
        "step": None,
        "folder": str(Path("deep/model")),
        "timm_architecture": None,
    }


def test_other_things_are_not_overwritten(command_line: CommandLine, coloured: Coloured) -> None:
    ended = command_line("export", str(coloured.run.path), "--to", str(coloured.photos))
    assert_refused(ended, 2, "holds other things than an export", "--to DIR")
