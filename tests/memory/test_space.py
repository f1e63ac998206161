from __future__ import annotations

import pytest

from lowmem_seq.config import load_preset, override, validate
from lowmem_seq.memory.space import lstm_paths


@pytest.mark.parametrize(
    ("preset", "wanted", "device", "paths"),
    [
        ("tiny", "auto", "cpu", ("function", "torch")),
        ("tiny", "function", "cpu", ("function",)),
        ("tiny", "torch", "cpu", ("torch",)),
        ("tiny", "function", "cuda", ("torch",)),  # it was measured on CPUs only
        ("tiny", "auto", "mps", ("torch",)),
        ("vanilla", "function", "cpu", ("torch",)),  # it reads two axes
    ],
)
def test_how_lstms_can_be_computed(preset: str, wanted: str, device: str, paths: tuple[str, ...]) -> None:
    settings = load_preset(preset)
    override(settings, f"machine.lstm_path={wanted}")
    assert lstm_paths(validate(settings), device) == paths
