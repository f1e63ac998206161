from __future__ import annotations

import pytest

from lowmem_seq.config import load_preset, override, validate
from lowmem_seq.errors import UsageError
from lowmem_seq.memory.space import lstm_paths


@pytest.mark.parametrize(
    ("preset", "wanted", "device", "paths"),
    [
        ("tiny", "auto", "cpu", ("native", "function", "torch")),
        ("tiny", "native", "cpu", ("native",)),
        ("tiny", "function", "cpu", ("function",)),
        ("tiny", "torch", "cpu", ("torch",)),
        ("tiny", "function", "cuda", ("torch",)),  # it was measured on CPUs only
        ("tiny", "auto", "mps", ("torch",)),
        ("vanilla", "function", "cpu", ("torch",)),  # it reads two axes
    ],
)
def test_how_lstms_can_be_computed(
    preset: str, wanted: str, device: str, paths: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowmem_seq.memory.space.library", lambda: "one")
    settings = load_preset(preset)
    override(settings, f"machine.lstm_path={wanted}")
    assert lstm_paths(validate(settings), device) == paths


def test_without_compiled_cells_lstms_are_computed_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowmem_seq.memory.space.library", lambda: None)
    settings = load_preset("tiny")
    assert lstm_paths(validate(settings), "cpu") == ("function", "torch")
    override(settings, "machine.lstm_path=native")
    with pytest.raises(UsageError, match="compiled part of lowmem-seq is missing") as raised:
        lstm_paths(validate(settings), "cpu")
    assert "machine.lstm_path=auto" in str(raised.value.hint)
    assert lstm_paths(validate(settings), "cuda") == ("torch",)
