"""What is said of each canary's facts, each made to fail; tests/cli/test_doctor.py has the real ones pass."""

from __future__ import annotations

from typing import Any

import pytest

from lowmem_seq.doctor.canaries import Outcome
from lowmem_seq.doctor.computing import JUDGES, MOST_GROWTH_BYTES, NAMES, REINSTALL, check_computing
from lowmem_seq.training.canaries import CANARIES
from tests.doctor.builders import the_only, tried, verdicts

TORCH = Outcome(
    "torch",
    {"version": "2.13.0+cpu", "import_seconds": 1.0, "held_bytes": 200_000_000, "instructions": "AVX512"},
)
RIGHT = {"torch": 2e-7, "function": 3e-7, "native": 3e-7}
CUDA: dict[str, Any] = {
    "is_there": True,
    "name": "RTX",
    "free_bytes": 7 * 10**9,
    "total_bytes": 8 * 10**9,
    "relative_error": 1e-4,
    "lstm_is_right": True,
    "bf16_pays": True,
}
MPS = {"is_there": True, "lstm_is_right": True, "growth_bytes": 0, "steps": 30, "recommended_bytes": 10**10}
ABSENT = [Outcome("cuda", {"is_there": False}), Outcome("mps", {"is_there": False})]


def judged(name: str, /, **facts: Any) -> tuple[str, str]:
    finding = the_only([JUDGES[name](Outcome(name, facts), REINSTALL)])
    return finding.verdict, f"{finding.told} {finding.fix}"


def test_every_canary_that_is_asked_for_is_there_and_judged() -> None:
    assert tuple(CANARIES) == NAMES == tuple(JUDGES)


@pytest.mark.parametrize("name", NAMES)
def test_a_crash_of_any_canary_fails_and_says_what_ended_it(name: str) -> None:
    finding = the_only([JUDGES[name](Outcome(name, trouble="its process was ended by SIGILL"), REINSTALL)])
    assert finding.verdict == "fail"
    assert "SIGILL" in finding.told


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"native": 0.5}, "by compiled cells are wrong on this CPU lowmem-seq train small --set machine.lstm_path"),
        ({"native": None}, "by compiled cells are wrong"),
        ({"function": 0.5, "native": 0.5}, "by our function and compiled cells are wrong"),
        ({"torch": 0.5}, "by nn.LSTM are wrong on this CPU pip install --force-reinstall"),
    ],
)
def test_an_lstm_that_is_wrong_by_one_path_fails(changed: dict[str, float | None], words: str) -> None:
    verdict, told = judged("lstm", relative_errors={**RIGHT, **changed})
    assert verdict == "fail"
    assert words in told


def test_lstms_that_are_right_pass() -> None:
    assert judged("lstm", relative_errors=RIGHT) == (
        "pass",
        "right by nn.LSTM, our function, compiled cells (to 3e-07) ",
    )


def test_bf16_is_no_fault_either_way() -> None:
    assert judged("bf16", pays=True)[0] == judged("bf16", pays=False)[0] == "pass"


@pytest.mark.parametrize(
    ("is_there", "is_amd", "error", "verdict"),
    [
        (True, True, 1e-7, "pass"),
        (True, False, 0.3, "fail"),
        (True, False, None, "fail"),
        (False, True, None, "note"),
        (False, False, None, "pass"),
    ],
)
def test_onednn_matters_on_amd_and_must_be_right(
    is_there: bool, is_amd: bool, error: float | None, verdict: str
) -> None:
    assert judged("onednn", is_there=is_there, is_amd=is_amd, relative_error=error)[0] == verdict


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "pass"),
        ({"lstm_is_right": False}, "fail"),
        ({"relative_error": 0.2}, "fail"),
        ({"relative_error": None}, "fail"),
    ],
)
def test_a_card_that_computes_wrong_fails(changed: dict[str, Any], verdict: str) -> None:
    assert judged("cuda", **{**CUDA, **changed})[0] == verdict


@pytest.mark.parametrize(
    ("changed", "verdict", "words"),
    [
        ({}, "pass", "leave no memory behind"),
        ({"lstm_is_right": False}, "fail", "computes LSTMs wrong"),
        (
            {"growth_bytes": MOST_GROWTH_BYTES + 1},
            "fail",
            "8.39 MB in 30 steps lowmem-seq train small --device cpu",
        ),
    ],
)
def test_an_apple_gpu_that_is_wrong_or_leaks_fails(changed: dict[str, Any], verdict: str, words: str) -> None:
    found, told = judged("mps", **{**MPS, **changed})
    assert found == verdict
    assert words in told


def test_without_torch_nothing_else_is_said() -> None:
    broken = Outcome("torch", trouble="ImportError: libtorch_cpu.so")
    finding = the_only(check_computing(False, tried(broken, Outcome("lstm", trouble="ImportError"))))
    assert (finding.check, finding.verdict) == ("torch", "fail")
    assert "importing it failed: ImportError: libtorch_cpu.so" in finding.told


def test_torch_is_installed_anew_as_it_is_installed_here() -> None:
    broken = tried(Outcome("torch", trouble="ImportError"))
    finding = the_only(check_computing(False, broken, reinstall="pip install it --index-url HERE"))
    assert finding.fix.startswith("pip install it --index-url HERE\n")


def test_gpus_that_are_not_there_are_not_spoken_of() -> None:
    assert verdicts(check_computing(False, tried(TORCH, *ABSENT))) == [("torch", "pass")]


def test_a_card_that_torch_is_built_for_and_can_t_use_fails() -> None:
    found = list(check_computing(True, tried(TORCH, *ABSENT)))
    assert verdicts(found) == [("torch", "pass"), ("NVIDIA card", "fail")]
    assert "driver" in found[1].told
