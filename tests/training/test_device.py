from __future__ import annotations

import pytest
import torch

from lowmem_seq.errors import UsageError
from lowmem_seq.training import device as module
from lowmem_seq.training.device import choose_device, choose_precision, lstm_is_right_on, make_accelerator
from tests.memory.builders import FakeReader


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


def test_precision_is_as_asked_or_as_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "bf16_pays", lambda device: True)
    assert choose_precision("auto", "cpu") == "bf16"
    assert choose_precision("fp32", "cpu") == "fp32"
    monkeypatch.setattr(module, "bf16_pays", lambda device: False)
    assert choose_precision("auto", "cpu") == "fp32"
    assert choose_precision("bf16", "cpu") == "bf16"


@pytest.mark.parametrize(
    ("seconds_in_bf16", "pays"), [(0.5, True), (1 / 1.31, True), (1 / 1.29, False), (2.0, False)]
)
def test_bf16_pays_where_its_fastest_product_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, seconds_in_bf16: float, pays: bool
) -> None:
    threads: list[int] = []

    def seconds(dtype: torch.dtype) -> float:
        threads.append(torch.get_num_threads())
        disturbed = 10.0 if len(threads) in (1, 2, 5, 6) else 0.0
        return disturbed + (seconds_in_bf16 if dtype == torch.bfloat16 else 1.0)

    monkeypatch.setattr(module, "_product_seconds", seconds)
    before = torch.get_num_threads()
    assert module.bf16_pays("cpu") == pays
    assert set(threads) == {1}
    assert torch.get_num_threads() == before
    assert not module.bf16_pays("mps")


def test_products_are_timed_in_both_precisions() -> None:
    assert module._product_seconds(torch.bfloat16) > 0
    assert module._product_seconds(torch.float32) > 0


@pytest.mark.parametrize(("device", "emptied"), [("cpu", []), ("mps", ["mps"]), ("cuda", ["cuda"])])
def test_what_torch_keeps_on_a_gpu_is_given_back_too(
    monkeypatch: pytest.MonkeyPatch, device: module.Device, emptied: list[str]
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: seen.append("mps"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append("cuda"))
    monkeypatch.setattr(FakeReader, "release", lambda reader: seen.append("heap"))
    monkeypatch.setattr(module, "system_reader", FakeReader)
    module.give_back(device)
    assert seen == [*emptied, "heap"]


def test_the_accelerator_is_one_process_on_the_cpu() -> None:
    accelerator = make_accelerator("cpu", "fp32")
    assert (accelerator.device.type, accelerator.num_processes, accelerator.mixed_precision) == ("cpu", 1, "no")
