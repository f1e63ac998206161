"""Compiles the cells of the LSTMs, lowmem_seq/models/native/cells.c, for a wheel or an editable installation.

Without a C compiler the package installs all the same, and works, only slower. LOWMEM_SEQ_COMPILE=1 makes that an
error; LOWMEM_SEQ_COMPILE=0 leaves the compiler alone. CC names another compiler than the system's.
"""

from __future__ import annotations

import os
import platform
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

FOLDER = Path(__file__).resolve().parent / "lowmem_seq" / "models" / "native"
LIBRARY = "cells.dll" if sys.platform == "win32" else "cells.so"
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
OPTIONS = ["-std=c11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-fPIC"]
SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}
"""Instruction sets by name, with the options of GCC and Clang; those beside the first are x86's."""
MSVC_OPTIONS = ["/std:c11", "/O2"]
MSVC_SETS = {"baseline": [], "avx2": ["/arch:AVX2"], "avx512": ["/arch:AVX512"]}


class CompilerError(Exception):
    """There is no compiler, or it failed."""


class CompileCells(BuildHookInterface[Any]):
    """Puts the library beside its source and into the wheel, which then is one for this system and processor."""

    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        """Compile before files are collected."""
        wish = os.environ.get("LOWMEM_SEQ_COMPILE", "auto")
        if wish == "0":
            return
        try:
            compile_cells(FOLDER / LIBRARY)
        except CompilerError as reason:
            if wish == "1":
                raise
            self.app.display_warning(f"The LSTMs' cells were not compiled, training will be slower: {reason}")
            return
        build_data["artifacts"].append(f"/{(FOLDER / LIBRARY).relative_to(self.root).as_posix()}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"


def compile_cells(library: Path) -> None:
    """Compile every instruction set that this processor's kind has into one library.

    Raises:
        CompilerError: there is no compiler, or it failed.
    """
    sets = [name for name in SETS if IS_X86 or name == "baseline"]
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as place:
        made = Path(place) / library.name
        command = compiler()
        if command is None:
            _compile_by_msvc(sets, made)
        else:
            objects = [Path(place) / f"{name}.o" for name in sets]
            for name, one in zip(sets, objects, strict=True):
                source = [f"-DSET={name}", "-c", str(FOLDER / "cells.c"), "-o", str(one)]
                _run([*command, *OPTIONS, *SETS[name], *source])
            _run([*command, "-shared", "-o", str(made), *map(str, objects)])
        made.replace(library)


def compiler() -> list[str] | None:
    """The command of a compiler whose options are those of GCC; None where it is to be Microsoft's.

    Raises:
        CompilerError: there is none.
    """
    if os.environ.get("CC"):
        found = shlex.split(os.environ["CC"])
    elif sys.platform == "win32":
        return None
    else:
        names = [name for name in ("cc", "gcc", "clang") if shutil.which(name)]
        if not names:
            raise CompilerError("there is no C compiler")
        found = names[:1]
    return [*found, "-arch", platform.machine()] if sys.platform == "darwin" else found


def platform_tag() -> str:
    """Of the wheel; a Mac's Python may be made for two processors, but the library is for this one."""
    if sys.platform == "darwin":
        return next(mac_platforms(arch=platform.machine()))
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except OSError as error:
        raise CompilerError(f"{command[0]} can't be started: {error}") from error
    if done.returncode:
        raise CompilerError(f"{shlex.join(command)} failed:\n{done.stderr}")


def _compile_by_msvc(sets: list[str], made: Path) -> None:
    """By setuptools, which knows where Visual Studio is."""
    from distutils.ccompiler import new_compiler
    from distutils.errors import CCompilerError, DistutilsError

    import setuptools  # noqa: F401, it brings distutils along

    try:
        msvc = new_compiler()
        objects = []
        for name in sets:  # each in a folder of its own, for it is called after its source
            options = [*MSVC_OPTIONS, *MSVC_SETS[name]]
            place = str(made.parent / name)
            source = str(FOLDER / "cells.c")
            objects += msvc.compile([source], output_dir=place, macros=[("SET", name)], extra_postargs=options)
        msvc.link_shared_object(objects, str(made))
    except (CCompilerError, DistutilsError) as error:
        raise CompilerError(str(error)) from error
