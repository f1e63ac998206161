"""Folders that a program copies to a cloud: they upload each checkpoint, and lock files that a run is writing."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

BY_VARIABLE = {"OneDrive": "OneDrive", "OneDriveConsumer": "OneDrive", "OneDriveCommercial": "OneDrive"}
"""Where OneDrive tells programs of its folders."""
BY_NAME = {
    "onedrive": "OneDrive",
    "dropbox": "Dropbox",
    "icloud": "iCloud Drive",
    "google drive": "Google Drive",
    "my drive": "Google Drive",
    "nextcloud": "Nextcloud",
    "mega": "MEGA",
    "pcloud": "pCloud",
}
"""How such a folder's name begins, and whose it is; "OneDrive - School" is one, too."""
MAC_ICLOUD, MAC_OTHERS = Path("Library/Mobile Documents"), Path("Library/CloudStorage")
MAC_SHARED = ("Desktop", "Documents")
"""Folders that iCloud copies where its user has ticked that; then they lie in its own folder, too."""


def synced_by(
    path: Path,
    home: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    platform: str = sys.platform,
) -> str | None:
    """Return what copies a folder to a cloud, as far as its place tells; None where nothing seems to.

    Args:
        path: the folder, which need not be there.
        home: the user's.
        environment: this process's.
        platform: as sys.platform says it.
    """
    home = home or Path.home()
    path = path.resolve()
    for top, name in _tops(home, environment, platform):
        if path.is_relative_to(top.resolve()):
            return name
    if not path.is_relative_to(home.resolve()):
        return None
    for part in path.relative_to(home.resolve()).parts:
        for beginning, name in BY_NAME.items():
            rest = part.lower().removeprefix(beginning)
            if rest != part.lower() and (not rest or not rest[0].isalnum() or beginning == "icloud"):
                return name
    return None


def _tops(home: Path, environment: Mapping[str, str], platform: str) -> Iterator[tuple[Path, str]]:
    """Yield the folders that are known to be copied, and by what."""
    yield from ((Path(environment[key]), name) for key, name in BY_VARIABLE.items() if environment.get(key))
    with contextlib.suppress(OSError, ValueError, AttributeError):
        told = json.loads((home / ".dropbox" / "info.json").read_text(encoding="utf-8"))
        yield from ((Path(one["path"]), "Dropbox") for one in told.values() if isinstance(one.get("path"), str))
    if platform == "darwin":
        yield home / MAC_ICLOUD, "iCloud Drive"
        yield home / MAC_OTHERS, "a cloud's program"
        for name in MAC_SHARED:
            if (home / MAC_ICLOUD / "com~apple~CloudDocs" / name).exists():
                yield home / name, "iCloud Drive"
