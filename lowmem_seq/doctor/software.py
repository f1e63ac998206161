"""Python, the packages, torch's build, and the compiled cells; nothing large is imported to look at them."""

from __future__ import annotations

import platform
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from lowmem_seq import compiled
from lowmem_seq.doctor.finding import Finding, fault, note, well
from lowmem_seq.runs.environment import installed_version
from lowmem_seq.units import format_bytes

OLDEST_PYTHON = (3, 10)
CUDA_HELD_BYTES = 300 * 10**6
"""What torch's CUDA build holds more than its CPU build once it is imported: 513 MB instead of 207 (torch 2.13)."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CHOOSE_BUILD = "https://pytorch.org/get-started/locally"
LIBRARIES = " triton $(pip freeze | grep -o '^nvidia[^=]*')"
"""In a shell, the packages that Linux' CUDA builds bring; elsewhere they are in torch's own."""
OF_CUDA = re.compile(r"^(nvidia-.+|triton|torch)$")
"""The packages that a CUDA build consists of."""
OF_TORCH = ("torch", "torchvision")
"""The packages that torch's own index has."""
COMPILERS = {"win32": "Visual Studio's C++ tools", "darwin": "Apple's compiler (xcode-select --install)"}
NOT_INSTALLED = "lowmem-seq is not installed, but run from its sources"


@dataclass(frozen=True)
class Interpreter:
    """The Python that runs."""

    version: tuple[int, int, int]
    bits: int
    platform: str
    machine: str
    translated: bool = False
    """Whether macOS translates it from Intel's instructions to Apple's."""


def this_python() -> Interpreter:
    """Return what is known of the Python that runs this."""
    bits, version = 8 * struct.calcsize("P"), sys.version_info[:3]
    return Interpreter(version, bits, sys.platform, platform.machine(), _is_translated(sys.platform))


def check_python(python: Interpreter) -> Iterator[Finding]:
    """Say whether torch has a build for this Python."""
    text = ".".join(map(str, python.version))
    told = f"{text}, {python.bits} bit, {python.machine}"
    figures = {"version": text, "bits": python.bits, "machine": python.machine}
    if python.version < OLDEST_PYTHON:
        yield fault("Python", f"{told}; lowmem-seq needs 3.10 or newer", "install one from python.org", **figures)
    elif python.bits != 64:
        yield fault("Python", f"{told}; torch needs 64", "install the 64-bit Python from python.org", **figures)
    elif python.translated:
        yield fault(
            "Python",
            f"{told}: made for Intel's processors, and translated by macOS",
            "install the arm64 Python from python.org, and make the environment with it",
            **figures,
        )
    elif python.platform == "darwin" and python.machine == "x86_64":
        yield fault(
            "Python",
            f"{told}: an Intel Mac, for which there is no torch since 2.2",
            "train on another machine; lowmem-seq needs torch 2.6",
            **figures,
        )
    else:
        yield well("Python", told, **figures)


def from_cpu_index(has_card: bool, platform: str = sys.platform) -> str:
    """Return the flag with which pip takes torch without CUDA, for a machine that has no use for it.

    On Linux the package index has torch with CUDA alone; elsewhere it has none with it.
    """
    return f" --index-url {CPU_INDEX}" if platform == "linux" and not has_card else ""


def check_packages(
    requirements: Iterable[str] | None,
    installed: Callable[[str], str | None] = installed_version,
    index: str = "",
) -> Iterator[Finding]:
    """Say which packages are missing, or of a version that lowmem-seq does not work with.

    Args:
        requirements: as the package's metadata has them; None: it is not installed.
        installed: returns a package's version.
        index: the flag with which torch is installed here.
    """
    if requirements is None:
        yield note("packages", f"{NOT_INSTALLED}, so what it needs is not known", "pip install .")
        return
    wanted = [one for one in map(Requirement, requirements) if one.marker is None or one.marker.evaluate()]
    versions = {one.name: installed(one.name) for one in wanted}
    misfits = [one for one in wanted if not one.specifier.contains(versions[one.name] or "0", prereleases=True)]
    if not misfits:
        yield well("packages", f"all {len(wanted)} that it needs, in versions that fit", versions=versions)
        return
    told = (f"{one.name} {versions[one.name] or 'is missing'} ({one.specifier} is needed)" for one in misfits)
    of_torch = [one for one in misfits if one.name in OF_TORCH]
    others = [one for one in misfits if one.name not in OF_TORCH]
    commands = [_upgrade(of_torch) + index] * bool(of_torch) + [_upgrade(others)] * bool(others)
    yield fault("packages", "; ".join(told), "\n".join(commands), versions=versions)


def _upgrade(misfits: Iterable[Requirement]) -> str:
    return " ".join(["pip install --upgrade", *(f'"{one.name}{one.specifier}"' for one in misfits)])


def requirements_of(package: str) -> list[str] | None:
    """Return what an installed package needs; None where it is not installed."""
    try:
        return metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Build:
    """How a package was built, read from its version.py without importing it."""

    version: str
    cuda: str | None
    """The CUDA that it was built for."""
    disk_bytes: int = 0
    """What it takes, with the libraries that come with CUDA."""


def read_build(package: str) -> Build | None:
    """Return the build of torch or torchvision; None where it is not installed."""
    told = _read_version(package)
    return None if told is None else build_of(*told, _cuda_bytes() if package == "torch" else 0)


def cuda_of(package: str) -> str | None:
    """Return the CUDA that torch or torchvision was built for; None: for none, or it is not installed."""
    told = _read_version(package)
    return None if told is None else build_of(*told).cuda


def _read_version(package: str) -> tuple[str, str] | None:
    """Return the text of a package's version.py and its version, None where it is not installed."""
    try:
        distribution = metadata.distribution(package)
        path = str(distribution.locate_file(f"{package}/version.py"))
        with open(path, encoding="utf-8") as file:  # noqa: PTH123  the file's path is a metadata's SimplePath
            return file.read(), distribution.version
    except (metadata.PackageNotFoundError, OSError):
        return None


def build_of(text: str, version: str, disk_bytes: int = 0) -> Build:
    """Return the build that a version.py tells; `+cu130` behind the version says it where no line does."""
    full = re.search(r"^__version__ = ['\"]([^'\"]+)", text, re.MULTILINE)
    line = re.search(r"^cuda\b.*= ['\"]([^'\"]+)", text, re.MULTILINE)
    told = full[1] if full else version
    tag = re.search(r"\+cu(\d+)(\d)\b", told)
    cuda = line[1] if line else f"{tag[1]}.{tag[2]}" if tag else None
    return Build(told, cuda, disk_bytes)


def check_torch_build(build: Build | None, has_card: bool, platform: str = sys.platform) -> Iterator[Finding]:
    """Say whether torch's build is for this machine.

    Args:
        build: torch's; None where it is not installed.
        has_card: whether there is an NVIDIA card.
        platform: as sys.platform says it.
    """
    if build is None:
        fix = f"pip install torch torchvision{from_cpu_index(has_card, platform)}"
        yield fault("torch build", "torch is not installed", fix)
        return
    figures = {
        "version": build.version,
        "cuda": build.cuda,
        "disk_bytes": build.disk_bytes,
        "nvidia_card": has_card,
    }
    if build.cuda and not has_card:
        yield note(
            "torch build",
            f"{build.version} is built for CUDA {build.cuda}, and there is no NVIDIA card here: it takes "
            f"{format_bytes(build.disk_bytes)} of the disk where 0.7 GB would do, and every process that trains "
            f"holds about {format_bytes(CUDA_HELD_BYTES)} more RAM",
            f"pip uninstall -y torch torchvision{LIBRARIES if platform == 'linux' else ''}\n"
            f"pip install torch torchvision --index-url {CPU_INDEX}",
            **figures,
        )
    elif has_card and not build.cuda:
        yield note(
            "torch build",
            f"{build.version} can't use the NVIDIA card of this machine",
            f"pip install --force-reinstall torch torchvision   as {CHOOSE_BUILD} has it for this system",
            **figures,
        )
    else:
        kind = f"for CUDA {build.cuda}" if build.cuda else "without CUDA"
        size = f", {format_bytes(build.disk_bytes)} on the disk" if build.disk_bytes else ""
        yield well("torch build", f"{build.version}, {kind}{size}", **figures)


def check_torchvision(
    torch: Build | None, torchvision: Build | None, wanted: str | None, platform: str = sys.platform
) -> Iterator[Finding]:
    """Say whether torchvision is the one that was made for this torch.

    Args:
        torch: torch's build.
        torchvision: its own; None where it is not installed.
        wanted: the version of torch that it asks for, such as "==2.13.0"; None: it does not say.
        platform: as sys.platform says it.
    """
    if torch is None:
        return
    index = from_cpu_index(torch.cuda is not None, platform)  # of another one it would replace torch, or not fit it
    if torchvision is None:
        yield fault("torchvision", "it is not installed", f"pip install torchvision{index}")
        return
    figures = {"version": torchvision.version, "torch_wanted": wanted}
    version = torch.version.partition("+")[0]
    if wanted is not None and not Requirement(f"torch{wanted}").specifier.contains(version, prereleases=True):
        yield fault(
            "torchvision",
            f"{torchvision.version} was made for torch {wanted.lstrip('=')}, and this is torch {torch.version}",
            f"pip install --upgrade torchvision torch=={version}{index}",
            **figures,
        )
    elif torchvision.cuda != torch.cuda and (torchvision.cuda is None or torch.cuda is None):
        yield note(
            "torchvision",
            f"{torchvision.version} has a compiled part that can't be loaded beside torch {torch.version}; "
            "lowmem-seq goes without that part, other programs break",
            f"pip install --force-reinstall --no-deps torchvision{index}",
            **figures,
        )
    else:
        yield well("torchvision", f"{torchvision.version}, made for this torch", **figures)


def torch_wanted_by(package: str) -> str | None:
    """Return the version of torch that a package asks for, as its metadata has it."""
    for text in requirements_of(package) or []:
        asked = Requirement(text)
        if asked.name == "torch":
            return str(asked.specifier) or None
    return None


def check_cells(found: str | None, is_there: bool, platform: str = sys.platform) -> Iterator[Finding]:
    """Say whether the LSTMs' compiled cells are there.

    Args:
        found: what they were made from and with; None where they can't be used.
        is_there: whether a file of them lies there.
        platform: as sys.platform says it.
    """
    if found is not None:
        yield well("compiled cells", f"made by {found.partition(', ')[2]}", made_of=found)
        return
    why = "are of other sources than those here, or can't be loaded" if is_there else "are not there"
    yield note(
        "compiled cells",
        f"they {why}: training learns the same, and takes about a tenth longer, with small micro-batches a third",
        f"install {COMPILERS.get(platform, 'a C compiler, such as gcc')}, and then, in lowmem-seq's own folder:\n"
        "pip install --force-reinstall --no-deps .",
        made_of=None,
    )


def describe_cells() -> tuple[str | None, bool]:
    """Return what the compiled cells are, and whether their file is there."""
    return compiled.description(), compiled.LIBRARY.exists()


def _cuda_bytes() -> int:
    """Return what torch and CUDA's libraries take on the disk, as their lists of files say."""
    packages = (one for one in metadata.distributions() if OF_CUDA.match(one.name or ""))
    return sum(file.size or 0 for package in packages for file in package.files or ())


def _is_translated(system: str) -> bool:
    if system != "darwin":
        return False
    words = ["sysctl", "-n", "sysctl.proc_translated"]
    try:
        told = subprocess.run(words, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return told.stdout.strip() == "1"
