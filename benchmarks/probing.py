"""One setting of one config, measured by the planner's own probe in a process of its own."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lowmem_seq.config import RunConfig, load_preset, override, validate
from lowmem_seq.data.cache import cache_folder
from lowmem_seq.data.pack import Pack
from lowmem_seq.files import TEMPORARY_MARK, make_folder, write_json
from lowmem_seq.memory.cores import usable_cores
from lowmem_seq.memory.environment import training_environment
from lowmem_seq.memory.plan import Means, Measurement, Setting
from lowmem_seq.memory.remembered import Knowledge, Request
from lowmem_seq.runs.folder import create_run
from lowmem_seq.supervisor.child import Child

MOST_BYTES = 8 * 10**9
"""What a probing process may hold here; a size that needs more is left out."""
MOST_SECONDS = 600.0


def make_config(preset: str, *assignments: str) -> RunConfig:
    """Return a preset on the embedded shapes, with assignments laid over it."""
    settings = load_preset(preset)
    for assignment in ("data.source=shapes", *assignments):
        override(settings, assignment)
    return validate(settings)


def probe(config: RunConfig, pack: Pack, setting: Setting, means: Means) -> dict[str, Any] | None:
    """Return the facts of the run and what was measured; None where it takes more than it may."""
    make_folder(cache_folder())
    with tempfile.TemporaryDirectory(prefix=f"probe{TEMPORARY_MARK}", dir=cache_folder()) as place:
        run = create_run(Path(place) / "run", config)
        record = {"format_version": 1, "source": config.data.source, "pack": str(pack.folder)}
        write_json(run.data_file, {**record, "fingerprint": pack.fingerprint})
        request = Request(
            MOST_BYTES, (means.allocator,), means.allocator, MOST_SECONDS, means.lstm_path, only=setting
        )
        child = Child(
            "lowmem_seq.training.probe",
            str(run.path),
            *(json.dumps(asdict(request)), json.dumps(Knowledge().to_json())),
            environment=training_environment(usable_cores(config.machine.threads), means.allocator),
        )
        said = [message for message in child.messages(1.0) if message is not None]
        if child.wait() != 0:
            return None
    told = {one["event"]: {key: value for key, value in one.items() if key != "event"} for one in said}
    return {
        "facts": told["facts"],
        "measured": {one.name: told["measured"][one.name] for one in fields(Measurement)},
    }
