"""Compiles the cells of the LSTMs, lowmem_seq/models/native/cells.c, for a wheel or an editable installation.

Without a C compiler the package installs all the same, and works, only slower. LOWMEM_SEQ_COMPILE=1 makes that an
error; LOWMEM_SEQ_COMPILE=0 leaves the compiler alone. CC names another compiler than the system's.
"""

from __future__ import annotations

import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import mac_platforms

COMPILED = runpy.run_path(str(Path(__file__).resolve().parent / "lowmem_seq" / "compiled.py"))
SOURCE = COMPILED["FOLDER"] / "cells.c"
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
OPTIONS = ["-std=c11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
OPTIONS += ["-fvisibility=hidden", "-fPIC"]
SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}
"""Instruction sets by name, with the options of GCC and Clang; those beside the first are x86's."""
MSVC_OPTIONS = ["/std:c11", "/O2"]
MSVC_SETS = {"baseline": [], "avx2": ["/arch:AVX2"], "avx512": ["/arch:AVX512"]}


class CompilerError(Exception):
    """There is no compiler, or it failed, or the library can't be put into its place."""


class CompileCells(BuildHookInterface[Any]):
    """Puts the library beside its source and into the wheel, which then is one for this system and processor."""

    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        """Compile before files are collected."""
        wish = os.environ.get("LOWMEM_SEQ_COMPILE", "auto")
        if wish == "0":
            return
        library: Path = COMPILED["LIBRARY"]
        try:
            compile_cells(library)
        except CompilerError as reason:
            if wish == "1":
                raise
            self.app.display_warning(f"The LSTMs' cells were not compiled, training will be slower: {reason}")
            return
        build_data["artifacts"].append(f"/{library.relative_to(self.root).as_posix()}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"


def compile_cells(library: Path) -> None:
    """Compile every instruction set that this processor's kind has into one library.

    Raises:
        CompilerError: that did not work.
    """
    sets = [name for name in SETS if IS_X86 or name == "baseline"]
    try:
        with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as place:
            made = Path(place) / library.name
            command = compiler()
            if command is None:
                _compile_by_msvc(sets, made)
            else:
                _compile(command, sets, made)
            made.replace(library)
    except OSError as error:  # a folder that may not be written to, or on Windows a library in use
        raise CompilerError(str(error)) from error


def compiler() -> list[str] | None:
    """The command of a compiler whose options are those of GCC; None where it is to be Microsoft's.

    Raises:
        CompilerError: there is none.
    """
    is_windows = sys.platform == "win32"
    if os.environ.get("CC"):
        found = [os.environ["CC"]] if is_windows else shlex.split(os.environ["CC"])  # paths with \\ and blanks
    else:
        found = [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]
    if is_windows and (not os.environ.get("CC") or Path(found[0]).stem.lower() in ("cl", "clang-cl")):
        return None
    if not found:
        raise CompilerError("there is no C compiler")
    return [*found, "-arch", platform.machine()] if sys.platform == "darwin" else found


def platform_tag() -> str:
    """Of the wheel; a Mac's Python may be made for two processors, but the library is for this one."""
    if sys.platform == "darwin":
        return next(mac_platforms(arch=platform.machine()))
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def _fingerprint() -> str:
    return f"0x{COMPILED['fingerprint']():016x}ULL"


def _compile(command: list[str], sets: list[str], made: Path) -> None:
    objects = [made.parent / f"{name}.o" for name in sets]
    for name, one in zip(sets, objects, strict=True):
        macros = [f"-DSET={name}", f"-DFINGERPRINT={_fingerprint()}"]
        _run([*command, *OPTIONS, *SETS[name], *macros, "-c", str(SOURCE), "-o", str(one)])
    _run([*command, "-shared", "-o", str(made), *map(str, objects)])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except OSError as error:
        raise CompilerError(f"{command[0]} can't be started: {error}") from error
    if done.returncode:
        raise CompilerError(f"{shlex.join(command)} failed:\n{done.stderr}")


def _compile_by_msvc(sets: list[str], made: Path) -> None:
    """By setuptools, which knows where Visual Studio is."""
    try:
        import setuptools  # first: it brings its own distutils along  # noqa: F401, I001
        from distutils.ccompiler import new_compiler
        from distutils.errors import CCompilerError, DistutilsError
    except ImportError as error:
        raise CompilerError(str(error)) from error
    try:
        msvc = new_compiler()
        objects: list[str] = []
        for name in sets:  # each in a folder of its own, for it is called after its source
            options = [*MSVC_OPTIONS, *MSVC_SETS[name]]
            macros: list[Any] = [("SET", name), ("FINGERPRINT", _fingerprint())]
            place = str(made.parent / name)
            objects += msvc.compile([str(SOURCE)], output_dir=place, macros=macros, extra_postargs=options)
        msvc.link_shared_object(objects, str(made))
    except (CCompilerError, DistutilsError) as error:
        raise CompilerError(str(error)) from error
