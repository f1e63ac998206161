"""Whether what trains a model computes right here: torch, LSTMs by each path, bf16, oneDNN, GPUs.

Each is tried by a small computation in a process of its own (training/canaries.py), so that a library that crashes
is a finding, and not the end of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lowmem_seq.doctor.canaries import Outcome, try_out
from lowmem_seq.doctor.finding import Finding, fault, note, well
from lowmem_seq.doctor.software import CHOOSE_BUILD
from lowmem_seq.units import format_bytes

MODULE = "lowmem_seq.training.canaries"
TOLERANCE = 1e-4
"""Relative; in 32 bits it is about 1e-7."""
MOST_GROWTH_BYTES = 8 * 2**20
"""That an Apple GPU's driver may hold more after some steps: it takes memory in pieces of some MB."""
REINSTALL = "pip install --force-reinstall torch torchvision"
NAMES = ("torch", "lstm", "bf16", "onednn", "cuda", "mps")
LSTM_PATHS = {"torch": "nn.LSTM", "function": "our function", "native": "compiled cells"}


def check_computing(
    has_card: bool,
    try_all: Callable[..., Iterator[Outcome]] = try_out,
    module: str = MODULE,
    reinstall: str = REINSTALL,
) -> Iterator[Finding]:
    """Try all that there is; without torch, nothing else.

    Args:
        has_card: whether there is an NVIDIA card that torch's build is made for.
        try_all: tries canaries; a test gives another one.
        module: the program that has them.
        reinstall: the command that installs torch anew, of the build that is for this machine.
    """
    for outcome in try_all(module, NAMES):
        if outcome.trouble or outcome.facts.get("is_there", True) or outcome.name == "onednn":
            yield JUDGES[outcome.name](outcome, reinstall)
        elif outcome.name == "cuda" and has_card:
            yield fault(
                "NVIDIA card",
                "there is one, and torch can't use it: its driver is missing, or older than torch's CUDA",
                "update NVIDIA's driver, and start again; nvidia-smi says which one there is",
            )
        if outcome.name == "torch" and outcome.trouble:
            return


def judge_torch(outcome: Outcome, reinstall: str) -> Finding:
    """Say whether torch can be imported."""
    if outcome.trouble:
        return fault(
            "torch",
            f"importing it failed: {outcome.trouble}",
            f"{reinstall}\nOn Windows also Microsoft's Visual C++ Redistributable (x64)",
        )
    facts = outcome.facts
    told = f"imported in {facts['import_seconds']:.1f} s, holds {format_bytes(facts['held_bytes'])}"
    return well("torch", f"{told}; computes by {facts['instructions']}", **facts)


def judge_lstm(outcome: Outcome, reinstall: str) -> Finding:
    """Say whether LSTMs are right by each path."""
    if outcome.trouble:
        return fault(
            "LSTMs", f"computing one failed: {outcome.trouble}", f"--set machine.lstm_path=torch, or {reinstall}"
        )
    errors = outcome.facts["relative_errors"]
    wrong = [path for path, error in errors.items() if error is None or error > TOLERANCE]
    if not wrong:
        paths = ", ".join(LSTM_PATHS[path] for path in errors)
        return well("LSTMs", f"right by {paths} (to {max(errors.values()):.0e})", **outcome.facts)
    names = " and ".join(LSTM_PATHS[path] for path in wrong)
    fix = reinstall if "torch" in wrong else "lowmem-seq train small --set machine.lstm_path=torch"
    return fault("LSTMs", f"results or gradients by {names} are wrong on this CPU", fix, **outcome.facts)


def judge_bf16(outcome: Outcome) -> Finding:
    """Say which precision a plan takes on this CPU."""
    if outcome.trouble:
        return fault(
            "bf16", f"products in bf16 failed: {outcome.trouble}", "lowmem-seq train small --precision fp32"
        )
    if outcome.facts["pays"]:
        return well("bf16", "faster than fp32 here: precision auto takes it", **outcome.facts)
    return well("bf16", "not faster than fp32 here: precision auto takes fp32", **outcome.facts)


def judge_onednn(outcome: Outcome, reinstall: str) -> Finding:
    """Say whether oneDNN is there and right."""
    facts = outcome.facts
    error = facts.get("relative_error")
    if outcome.trouble or (facts["is_there"] and (error is None or error > TOLERANCE)):
        trouble = outcome.trouble or "its product is wrong"
        return fault("oneDNN", f"a product by it failed: {trouble}", reinstall, **facts)
    if facts["is_there"]:
        return well("oneDNN", "there, and right", **facts)
    if not facts["is_amd"]:
        return well("oneDNN", "this torch has none, which costs nothing in fp32 on this processor", **facts)
    cost = "linear layers in fp32 take up to twice as long on this AMD processor"
    return note("oneDNN", f"this torch has none, or it is switched off: {cost}", reinstall, **facts)


def judge_cuda(outcome: Outcome, reinstall: str) -> Finding:
    """Say whether the NVIDIA card computes right."""
    facts, use_cpu = outcome.facts, "lowmem-seq train small --device cpu"
    if outcome.trouble:
        return fault("NVIDIA card", f"computing on it failed: {outcome.trouble}", f"{use_cpu}, or {reinstall}")
    error = facts["relative_error"]
    if not facts["lstm_is_right"] or error is None or error > 1e-2:  # products may be in TF32
        return fault("NVIDIA card", f"{facts['name']} computes wrong with this torch", use_cpu, **facts)
    told = f"{facts['name']}, {format_bytes(facts['free_bytes'])} of {format_bytes(facts['total_bytes'])} free"
    return well("NVIDIA card", f"{told}; products and LSTMs are right", **facts)


def judge_mps(outcome: Outcome) -> Finding:
    """Say whether LSTMs on the Apple GPU are right and leave no memory behind."""
    facts, use_cpu = outcome.facts, "lowmem-seq train small --device cpu"
    if outcome.trouble:
        return fault("Apple GPU", f"computing on it failed: {outcome.trouble}", use_cpu)
    if not facts["lstm_is_right"]:
        return fault(
            "Apple GPU",
            "this torch computes LSTMs wrong on it; device auto takes the CPU",
            f"{use_cpu}, or another release of torch: {CHOOSE_BUILD}",
            **facts,
        )
    if facts["growth_bytes"] > MOST_GROWTH_BYTES:
        grown = f"{format_bytes(facts['growth_bytes'])} in {facts['steps']} steps"
        return fault("Apple GPU", f"LSTMs on it leave memory behind: {grown}", use_cpu, **facts)
    room = format_bytes(facts["recommended_bytes"])
    return well("Apple GPU", f"LSTMs are right, and leave no memory behind; it may take {room}", **facts)


JUDGES: dict[str, Callable[[Outcome, str], Finding]] = {
    "torch": judge_torch,
    "lstm": judge_lstm,
    "bf16": lambda outcome, _: judge_bf16(outcome),
    "onednn": judge_onednn,
    "cuda": judge_cuda,
    "mps": lambda outcome, _: judge_mps(outcome),
}
