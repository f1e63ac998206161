"""The canaries find what is wrong; that they pass where nothing is, tests/cli/test_doctor.py shows."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from lowmem_seq.models import bilstm2d, lstm_function
from lowmem_seq.training import canaries
from tests.builders import Heard

TOLERANCE = 1e-4


def test_a_path_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = lstm_function.read_grid

    def wrong(*arguments: Any) -> torch.Tensor:
        return real(*arguments) * 1.01

    monkeypatch.setattr(bilstm2d, "read_grid", wrong)
    errors = canaries.compute_lstms()["relative_errors"]
    assert errors["torch"] < TOLERANCE < errors["function"]


def test_a_result_that_is_no_number_has_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    real = lstm_function.read_grid
    monkeypatch.setattr(bilstm2d, "read_grid", lambda *given: real(*given) * torch.nan)
    assert canaries.compute_lstms()["relative_errors"]["function"] is None


def test_onednn_that_multiplies_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowmem_seq.models.products.onednn_linear", lambda: lambda a, w, *_: 1.1 * (a @ w.t()))
    assert canaries.try_onednn()["relative_error"] == pytest.approx(0.1, rel=1e-3)


def test_onednn_that_is_switched_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowmem_seq.models.products.onednn_linear", lambda: None)
    assert canaries.try_onednn()["is_there"] is False


def test_each_canary_says_when_it_begins_and_one_that_raises_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()

    def broken() -> dict[str, Any]:
        raise RuntimeError("wrong shape")

    monkeypatch.setattr(canaries, "Channel", lambda saves: heard)
    monkeypatch.setitem(canaries.CANARIES, "lstm", broken)
    monkeypatch.setitem(canaries.CANARIES, "bf16", lambda: {"pays": True})
    monkeypatch.setattr(sys, "argv", ["canaries", "lstm", "bf16"])
    assert canaries.main() == 0
    assert heard.said == [
        {"event": "began", "canary": "lstm"},
        {"event": "failed", "canary": "lstm", "error": "RuntimeError: wrong shape"},
        {"event": "began", "canary": "bf16"},
        {"event": "facts", "canary": "bf16", "facts": {"pays": True}},
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU")
def test_gpus_that_are_not_there_say_so() -> None:
    assert canaries.try_cuda() == {"is_there": False}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_card_computes_right() -> None:
    facts = canaries.try_cuda()
    assert facts["lstm_is_right"]
    assert facts["relative_error"] < 1e-2
    assert 0 < facts["free_bytes"] <= facts["total_bytes"]


@pytest.mark.mps
@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an Apple GPU")
def test_an_apple_gpu_is_right_and_keeps_nothing() -> None:
    facts = canaries.try_mps()
    assert facts["lstm_is_right"]
    assert facts["growth_bytes"] < 8 * 2**20
