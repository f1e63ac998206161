"""Python, packages, torch's build and the cells: each made to fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lowmem_seq.doctor.card import has_nvidia_card, nvidia_cards, shown_cards
from lowmem_seq.doctor.software import (
    CPU_INDEX,
    Build,
    Interpreter,
    build_of,
    check_cells,
    check_packages,
    check_python,
    check_torch_build,
    check_torchvision,
    from_cpu_index,
    read_build,
    requirements_of,
    this_python,
    torch_wanted_by,
)
from tests.doctor.builders import the_only

GOOD = Interpreter((3, 12, 1), 64, "linux", "x86_64")
ON_CPU = Build("2.13.0+cpu", None, 700_000_000)
FOR_CUDA = Build("2.13.0+cu130", "13.0", 5_500_000_000)


@pytest.mark.parametrize(
    ("python", "words"),
    [
        (replace(GOOD, version=(3, 9, 18)), "3.9.18, 64 bit, x86_64; lowmem-seq needs 3.10 or newer"),
        (replace(GOOD, bits=32, platform="win32"), "32 bit, x86_64; torch needs 64"),
        (replace(GOOD, platform="darwin", translated=True), "made for Intel's processors, and translated"),
        (replace(GOOD, platform="darwin"), "an Intel Mac"),
    ],
)
def test_a_python_that_torch_has_no_build_for_fails(python: Interpreter, words: str) -> None:
    finding = the_only(check_python(python))
    assert finding.verdict == "fail"
    assert words in finding.told


@pytest.mark.parametrize("python", [GOOD, replace(GOOD, platform="darwin", machine="arm64"), this_python()])
def test_a_python_that_torch_has_a_build_for_passes(python: Interpreter) -> None:
    assert the_only(check_python(python)).verdict == "pass"


WANTED = ["torch>=2.6", "typer<0.29,>=0.15", 'pytest>=8; extra == "dev"', 'winthing>=1; sys_platform == "nowhere"']


def test_packages_that_fit_pass_and_those_of_extras_and_other_systems_are_not_asked_for() -> None:
    versions = {"torch": "2.13.0+cpu", "typer": "0.28.0"}
    finding = the_only(check_packages(WANTED, versions.get))
    assert (finding.verdict, finding.figures["versions"]) == ("pass", versions)


def test_packages_that_are_missing_or_too_new_fail_with_what_mends_them() -> None:
    finding = the_only(check_packages(WANTED, {"typer": "0.29.0"}.get))
    assert finding.verdict == "fail"
    assert "torch is missing (>=2.6 is needed); typer 0.29.0 (<0.29,>=0.15 is needed)" in finding.told
    assert finding.fix == 'pip install --upgrade "torch>=2.6"\npip install --upgrade "typer<0.29,>=0.15"'


def test_torch_comes_from_its_own_index_and_the_rest_from_the_usual_one() -> None:
    index = from_cpu_index(has_card=False, platform="linux")
    finding = the_only(check_packages(WANTED, lambda _: None, index))
    assert finding.fix.splitlines() == [
        f'pip install --upgrade "torch>=2.6" --index-url {CPU_INDEX}',
        'pip install --upgrade "typer<0.29,>=0.15"',
    ]


@pytest.mark.parametrize(
    ("has_card", "platform", "is_needed"),
    [(False, "linux", True), (True, "linux", False), (False, "darwin", False)],
)
def test_only_linux_without_a_card_needs_torch_s_own_index(has_card: bool, platform: str, is_needed: bool) -> None:
    assert (CPU_INDEX in from_cpu_index(has_card, platform)) is is_needed
    assert (CPU_INDEX in the_only(check_torch_build(None, has_card, platform)).fix) is is_needed


@pytest.mark.parametrize("torchvision", [None, Build("0.21.0", None), Build("0.28.0+cu130", "13.0")])
def test_no_way_to_mend_torchvision_brings_cuda_where_torch_has_none(torchvision: Build | None) -> None:
    wanted = "==2.6.0" if torchvision == Build("0.21.0", None) else "==2.13.0"
    assert the_only(check_torchvision(ON_CPU, torchvision, wanted, "linux")).fix.endswith(
        f" --index-url {CPU_INDEX}"
    )
    beside_cuda = check_torchvision(FOR_CUDA, Build("0.21.0", None), "==2.6.0", "linux")
    assert "--index-url" not in the_only(beside_cuda).fix


def test_a_program_that_runs_from_its_sources_can_t_say_what_it_needs() -> None:
    assert the_only(check_packages(requirements_of("no-such-package-here"))).verdict == "note"


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", ("2.13.0+cpu", None)),
        ("__version__ = '2.6.0+cu124'\ncuda: Optional[str] = '12.4'\n", ("2.6.0+cu124", "12.4")),
        ("__version__ = '0.28.0+cu130'\nif check() > 0:\n    cuda = check()\n", ("0.28.0+cu130", "13.0")),
        ("__version__ = '0.28.0'\n", ("0.28.0", None)),
        ("", ("2.13.0", None)),
    ],
)
def test_a_build_is_read_from_version_py(text: str, build: tuple[str, str | None]) -> None:
    read = build_of(text, "2.13.0")
    assert (read.version, read.cuda) == build


def test_a_cuda_build_without_a_card_is_told_with_what_it_costs() -> None:
    finding = the_only(check_torch_build(FOR_CUDA, False, "linux"))
    assert finding.verdict == "note"
    assert "CUDA 13.0, and there is no NVIDIA card here: it takes 5.50 GB of the disk" in finding.told
    assert "300 MB more RAM" in finding.told
    first, second = finding.fix.splitlines()
    assert first.startswith("pip uninstall -y torch torchvision triton")
    assert second.endswith("/whl/cpu")
    (windows,) = check_torch_build(FOR_CUDA, False, "win32")
    assert windows.fix.splitlines() == ["pip uninstall -y torch torchvision", second]


def test_a_card_that_torch_s_build_can_t_use_is_told() -> None:
    finding = the_only(check_torch_build(ON_CPU, has_card=True))
    assert (finding.verdict, "can't use the NVIDIA card" in finding.told) == ("note", True)


def test_a_build_that_fits_the_machine_passes() -> None:
    assert (
        the_only(check_torch_build(ON_CPU, has_card=False)).told == "2.13.0+cpu, without CUDA, 700 MB on the disk"
    )
    assert the_only(check_torch_build(FOR_CUDA, has_card=True)).verdict == "pass"


def test_without_torch_nothing_is_said_of_torchvision() -> None:
    assert the_only(check_torch_build(None, has_card=True)).fix == "pip install torch torchvision"
    assert list(check_torchvision(None, ON_CPU, None)) == []


@pytest.mark.parametrize(
    ("torchvision", "wanted", "verdict", "words"),
    [
        (None, None, "fail", "not installed"),
        (Build("0.21.0", None), "==2.6.0", "fail", "was made for torch 2.6.0, and this is torch 2.13.0+cpu"),
        (Build("0.28.0+cu130", "13.0"), "==2.13.0", "note", "compiled part that can't be loaded"),
        (Build("0.28.0+cpu", None), "==2.13.0", "pass", "made for this torch"),
        (Build("0.28.0+cpu", None), None, "pass", "made for this torch"),
    ],
)
def test_torchvision_must_be_made_for_this_torch(
    torchvision: Build | None, wanted: str | None, verdict: str, words: str
) -> None:
    finding = the_only(check_torchvision(ON_CPU, torchvision, wanted))
    assert finding.verdict == verdict
    assert words in finding.told


def test_what_is_installed_here_can_be_read() -> None:
    build = read_build("torch")
    assert build is not None
    assert build.disk_bytes > 100_000_000
    assert build.version.startswith((torch_wanted_by("torchvision") or "").removeprefix("=="))
    assert read_build("no-such-package-here") is None


@pytest.mark.parametrize(("is_there", "words"), [(False, "are not there"), (True, "are of other sources")])
def test_missing_cells_are_told_with_what_they_would_bring(is_there: bool, words: str) -> None:
    finding = the_only(check_cells(None, is_there))
    assert finding.verdict == "note"
    assert words in finding.told
    assert "a tenth longer" in finding.told
    assert finding.fix.endswith("\npip install --force-reinstall --no-deps .")


def test_cells_that_are_there_pass() -> None:
    finding = the_only(check_cells("0123456789abcdef, GCC 12.2.0", is_there=True))
    assert (finding.verdict, finding.told) == ("pass", "made by GCC 12.2.0")


def pci_device(root: Path, vendor: str, kind: str) -> None:
    device = root / "sys/bus/pci/devices" / f"0000:{vendor[2:]}:{kind[2:]}"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")


def test_an_nvidia_card_is_found_among_the_devices_of_linux(tmp_path: Path) -> None:
    pci_device(tmp_path, "0x8086", "0x030000")  # Intel's graphics
    pci_device(tmp_path, "0x10de", "0x040300")  # NVIDIA's sound
    assert not has_nvidia_card("linux", tmp_path)
    pci_device(tmp_path, "0x10de", "0x030200")
    assert has_nvidia_card("linux", tmp_path)


def test_cards_are_counted_and_only_those_that_cuda_shows_count(tmp_path: Path) -> None:
    for number, kind in enumerate(("0x030200", "0x030200", "0x040300")):  # the last one is a card's sound
        device = tmp_path / f"sys/bus/pci/devices/{number}"
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n", encoding="ascii")
        (device / "class").write_text(f"{kind}\n", encoding="ascii")
    assert nvidia_cards("linux", tmp_path) == 2
    shown = {None: 2, "": 0, "-1": 0, "1": 1, "1, 0": 2, "0,-1,1": 1, "GPU-8932": 1}
    for text, count in shown.items():
        assert shown_cards({} if text is None else {"CUDA_VISIBLE_DEVICES": text}, 2) == count


def test_an_nvidia_card_is_found_by_its_driver_on_windows_and_under_wsl(tmp_path: Path) -> None:
    assert not has_nvidia_card("win32", tmp_path)
    (tmp_path / "System32").mkdir()
    (tmp_path / "System32" / "nvcuda.dll").touch()
    assert has_nvidia_card("win32", tmp_path)
    (tmp_path / "usr/lib/wsl/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/wsl/lib/libcuda.so.1").touch()
    assert has_nvidia_card("linux", tmp_path)
    assert not has_nvidia_card("darwin", tmp_path)
