"""What is shipped: the wheel holds the package and its presets, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from lowmem_seq.config import preset_names

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_holds_the_package_and_every_preset(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"lowmem_seq/configs/{preset}.yaml" for preset in preset_names()} <= set(names)
    packaged = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lowmem_seq").rglob("*.py")}
    assert packaged <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lowmem_seq"}
