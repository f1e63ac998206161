from __future__ import annotations

import subprocess
import sys

from lowmem_seq.memory.plan import Measurement
from lowmem_seq.training.probe import fastest_few

MEASURED = [
    Measurement(micro_batch=8, workers=2, peak_bytes=100, images_per_second=10.0),
    Measurement(micro_batch=16, workers=2, peak_bytes=200, images_per_second=40.0),
    Measurement(micro_batch=32, workers=2, peak_bytes=300, images_per_second=30.0),
    Measurement(micro_batch=64, workers=2, peak_bytes=900, images_per_second=99.0),
    Measurement(micro_batch=64, workers=1, peak_bytes=400, images_per_second=20.0),
]


def test_the_fastest_that_fit_are_measured_again() -> None:
    again = fastest_few(MEASURED, budget_bytes=500)
    assert [(point.micro_batch, point.workers) for point in again] == [(16, 2), (32, 2), (64, 1)]


def test_nothing_is_measured_again_where_nothing_fits() -> None:
    assert fastest_few(MEASURED, budget_bytes=50) == []


PEAKS = """
from lowmem_seq.training.probe import PeakSampler
with PeakSampler() as first:
    held = b"x" * 200_000_000
del held
with PeakSampler() as second:
    pass
print(first.peak_bytes - second.peak_bytes)
"""


def test_the_peak_of_a_block_is_what_was_held_in_it() -> None:
    """In a process of its own: another test's heap may hold what this one takes."""
    told = subprocess.run([sys.executable, "-c", PEAKS], check=True, capture_output=True, encoding="utf-8")
    assert int(told.stdout) > 150_000_000
