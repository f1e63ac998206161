"""What the shell offers when Tab is pressed: presets, run folders, datasets and settings.

`lowmem-seq --install-completion` puts it into the user's shell. A shell asks by starting the program, so nothing
here may be slow, fail, or print.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lowmem_seq.config import RunConfig, preset_names
from lowmem_seq.data.catalogue import CATALOGUE
from lowmem_seq.sections import keys_of

Offer = tuple[str, str]
"""A word, and what it means; a shell that can shows both."""
RUNS = "runs"
YAML_ENDS = (".yaml", ".yml")
MOST_OFFERS = 200


def presets(incomplete: str) -> list[str]:
    """Return presets, and YAML files; the way to these through folders only where a path was begun."""
    begun = "/" in incomplete
    files = [path for path, is_folder in _paths(incomplete) if (is_folder and begun) or path.endswith(YAML_ENDS)]
    return [name for name in preset_names() if name.startswith(incomplete)] + files


def runs(incomplete: str) -> list[str]:
    """Return run folders: those under ./runs where nothing is typed yet, and folders on the way to others."""
    typed = incomplete or f"{RUNS}/"
    return [path if _is_run(path) else f"{path}/" for path, is_folder in _paths(typed) if is_folder]


def datasets(incomplete: str) -> list[Offer]:
    """Return names of the catalogue, folders and zips."""
    known = [(name, entry.description) for name, entry in CATALOGUE.items() if name.startswith(incomplete)]
    own = [(path, "") for path, is_folder in _paths(incomplete) if is_folder or path.endswith(".zip")]
    return known + own


def settings(incomplete: str) -> list[str]:
    """Return the keys that `--set` takes."""
    return [f"{key}=" for key in keys_of(RunConfig) if key.startswith(incomplete) and key != "format_version"]


def _is_run(path: str) -> bool:
    return (Path(path).expanduser() / "config.yaml").is_file()


def _paths(incomplete: str) -> list[tuple[str, bool]]:
    """Return what a path that is typed so far may become, as it would be typed, and whether that is a folder."""
    typed_folder = incomplete[: incomplete.rfind("/") + 1]
    beginning = incomplete[len(typed_folder) :]
    with suppress(OSError, RuntimeError):  # RuntimeError: ~somebody who is not known here
        entries = sorted(Path(typed_folder or ".").expanduser().iterdir())
        hidden = beginning.startswith(".")
        fitting = [
            entry
            for entry in entries
            if entry.name.startswith(beginning) and (hidden or not entry.name.startswith("."))
        ]
        return [(typed_folder + entry.name, entry.is_dir()) for entry in fitting[:MOST_OFFERS]]
    return []
