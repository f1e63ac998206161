from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from lowmem_seq.cli.screen import SessionScreen
from lowmem_seq.runs.folder import RunFolder


def test_how_far_the_images_are_fetched_is_said_now_and_then(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=200)
    with SessionScreen(console, run, run.config, quiet=False) as screen:
        for second in range(12):
            now += 1.0
            done = 5_000_000 * second
            screen.show(
                {"event": "fetching", "done": done, "total": 184_000_000, "bytes_per_second": 5e6 * (second > 0)}
            )
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "fetching the host's images: 0 B of 184 MB, 0 B/s",
        "fetching the host's images: 50.0 MB of 184 MB, 5.00 MB/s, about 27 s left",
    ]
