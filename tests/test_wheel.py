"""What is shipped: the wheel holds the package, its presets and its compiled part, and nothing else."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lowmem_seq import compiled
from lowmem_seq.config import preset_names

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = compiled.LIBRARY.relative_to(ROOT).as_posix()


def build(place: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    environment = {**os.environ, "LOWMEM_SEQ_COMPILE": "auto", **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, encoding="utf-8")


def hook(names: list[str]) -> dict[str, Any]:
    found = runpy.run_path(str(ROOT / "hatch_build.py"))
    return {name: found[name] for name in names}


@pytest.mark.parametrize("compile_it", ["0", "1"])
def test_the_wheel_holds_the_package_and_every_preset(tmp_path: Path, compile_it: str) -> None:
    if compile_it == "1" and compiled.library() is None:
        pytest.skip("the package was installed without a C compiler")
    done = build(tmp_path, LOWMEM_SEQ_COMPILE=compile_it)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"lowmem_seq/configs/{preset}.yaml" for preset in preset_names()} <= set(names)
    packaged = {
        path.relative_to(ROOT).as_posix()
        for ending in ("py", "html", "css", "js")  # the last three: the report's page
        for path in (ROOT / "lowmem_seq").rglob(f"*.{ending}")
    }
    assert packaged <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lowmem_seq"}
    assert (LIBRARY in names) == (compile_it == "1")
    assert wheel.name.endswith("-py3-none-any.whl") == (compile_it == "0")


@pytest.mark.parametrize(
    ("compiler", "words"), [("/no/such/compiler", "can't be started"), ("false", "false -std=c11")]
)
def test_without_a_compiler_that_works_the_package_is_built_all_the_same(
    tmp_path: Path, compiler: str, words: str
) -> None:
    done = build(tmp_path, CC=compiler)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert LIBRARY not in zipfile.ZipFile(wheel).namelist()
    told = " ".join((done.stdout + done.stderr).split())
    assert "were not compiled, training will be slower" in told
    assert words in told
    assert build(tmp_path, CC=compiler, LOWMEM_SEQ_COMPILE="1").returncode != 0


class Msvc:
    """What setuptools gives on Windows."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def compile(self, sources: list[str], **options: Any) -> list[str]:
        if self.error is not None:
            raise self.error
        self.asked.append((Path(sources[0]).name, dict(options["macros"]), options["extra_postargs"]))
        return [f"{options['output_dir']}/cells.obj"]

    def link_shared_object(self, objects: list[str], made: str) -> None:
        self.asked.append(("link", len(objects), Path(made).name))
        Path(made).write_bytes(b"a library")


@pytest.fixture(name="msvc")
def _msvc(monkeypatch: pytest.MonkeyPatch) -> Msvc:
    """This machine as a Windows machine."""
    made = Msvc()
    modules = {
        "setuptools": SimpleNamespace(),
        "distutils": SimpleNamespace(),
        "distutils.ccompiler": SimpleNamespace(new_compiler=lambda: made),
        "distutils.errors": SimpleNamespace(CCompilerError=KeyError, DistutilsError=ValueError),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    monkeypatch.setattr("sysconfig.get_platform", lambda: "win-amd64")
    return made


def test_on_windows_the_compiler_is_microsofts(tmp_path: Path, msvc: Msvc) -> None:
    found = hook(["compile_cells", "platform_tag"])
    found["compile_cells"](tmp_path / "cells.dll")
    assert (tmp_path / "cells.dll").read_bytes() == b"a library"
    assert found["platform_tag"]() == "win_amd64"
    options = {"baseline": [], "avx2": ["/arch:AVX2"], "avx512": ["/arch:AVX512"]}
    fingerprint = f"0x{compiled.fingerprint():016x}ULL"
    expected = [
        ("cells.c", {"SET": name, "FINGERPRINT": fingerprint}, ["/std:c11", "/O2", *more])
        for name, more in options.items()
    ]
    assert msvc.asked == [*expected, ("link", 3, "cells.dll")]


@pytest.mark.parametrize("error", [ValueError("Visual C++ 14.0 or greater is required"), KeyError("C2143")])
def test_on_windows_a_compiler_that_is_missing_or_fails_is_told(
    tmp_path: Path, msvc: Msvc, error: Exception
) -> None:
    msvc.error = error
    found = hook(["compile_cells", "CompilerError"])
    with pytest.raises(found["CompilerError"], match=re.escape(str(error))):
        found["compile_cells"](tmp_path / "cells.dll")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("msvc")
def test_on_windows_without_setuptools_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "setuptools", None)
    found = hook(["compile_cells", "CompilerError"])
    with pytest.raises(found["CompilerError"], match="setuptools"):
        found["compile_cells"](tmp_path / "cells.dll")


@pytest.mark.usefixtures("msvc")
@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("", None),
        ("cl", None),
        (r"C:\Program Files\LLVM\bin\clang-cl.exe", None),
        (r"C:\gcc 12\gcc.exe", [r"C:\gcc 12\gcc.exe"]),
    ],
)
def test_on_windows_another_compiler_can_be_named(
    monkeypatch: pytest.MonkeyPatch, given: str, taken: list[str] | None
) -> None:
    monkeypatch.setenv("CC", given.replace("\\", "/") if taken is None else given)
    assert hook(["compiler"])["compiler"]() == taken


def test_a_folder_that_may_not_be_written_to_is_told(tmp_path: Path) -> None:
    found = hook(["compile_cells", "CompilerError"])
    with pytest.raises(found["CompilerError"], match="No such file or directory"):
        found["compile_cells"](tmp_path / "missing" / "cells.so")


def test_on_a_mac_it_is_compiled_for_this_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("platform.mac_ver", lambda: ("14.5", ("", "", ""), "arm64"))
    monkeypatch.setenv("CC", "clang -O1")
    found = hook(["compiler", "platform_tag", "IS_X86"])
    assert found["compiler"]() == ["clang", "-O1", "-arch", "arm64"]
    assert found["platform_tag"]() == "macosx_14_0_arm64"
    assert not found["IS_X86"]
