from __future__ import annotations

import platform

import pytest
import torch

from lowmem_seq.errors import UsageError
from lowmem_seq.training import device as module
from lowmem_seq.training.device import choose_device, choose_precision, lstm_is_right_on, make_accelerator


def test_the_canary_finds_the_cpu_right() -> None:
    assert lstm_is_right_on("cpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "right", "chosen"),
    [
        (True, False, True, "cuda"),
        (False, True, True, "mps"),
        (False, True, False, "cpu"),
        (False, False, True, "cpu"),
    ],
)
def test_auto_takes_what_is_there_and_right(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, right: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(module, "lstm_is_right_on", lambda device: right)
    assert choose_device("auto") == chosen
    assert choose_device("cpu") == "cpu"


def test_a_device_that_is_not_there_or_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="there is no CUDA device") as caught:
        choose_device("cuda")
    assert caught.value.hint == "--device auto"
    with pytest.raises(UsageError, match="there is no Apple GPU") as caught:
        choose_device("mps")
    assert caught.value.hint == "--device auto"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(module, "lstm_is_right_on", lambda device: False)
    with pytest.raises(UsageError, match="computes LSTMs wrong on the Apple GPU") as caught:
        choose_device("mps")
    assert caught.value.hint == "--device cpu"


def test_precision_is_as_asked_or_as_the_hardware_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "multiplies_bf16", lambda device: True)
    assert choose_precision("auto", "cpu") == "bf16"
    assert choose_precision("fp32", "cpu") == "fp32"
    monkeypatch.setattr(module, "multiplies_bf16", lambda device: False)
    assert choose_precision("auto", "cpu") == "fp32"
    assert choose_precision("bf16", "cpu") == "bf16"


def test_other_processors_are_not_asked_for_what_only_x86_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert not module.multiplies_bf16("cpu")
    assert not module.multiplies_bf16("mps")


def test_the_accelerator_is_one_process_on_the_cpu() -> None:
    accelerator = make_accelerator("cpu", "fp32")
    assert (accelerator.device.type, accelerator.num_processes, accelerator.mixed_precision) == ("cpu", 1, "no")
