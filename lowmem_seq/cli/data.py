"""`lowmem-seq data ...`: what can be trained on, packing it ahead of a run, and a look into a pack."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from lowmem_seq.cli import completion
from lowmem_seq.cli.help import Command, Group
from lowmem_seq.cli.progress import progress_bar
from lowmem_seq.cli.settings import JsonOption
from lowmem_seq.cli.terminal import harmless, make_console, print_json
from lowmem_seq.errors import DataError, UsageError
from lowmem_seq.units import format_bytes

if TYPE_CHECKING:  # numpy and Pillow would slow `--help` down
    from rich.console import Console

    from lowmem_seq.data.pack import Pack

DEFAULT_IMAGE_SIZE = 32
IMAGE_SIZES = (8, 1024)

ImageSizeOption = Annotated[int, typer.Option(metavar="N", help="Side that images are brought to, in pixels.")]

data_app = typer.Typer(
    name="data",
    cls=Group,
    help="List datasets, pack one ahead of a run, look into a pack.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _checked_image_size(image_size: int) -> int:
    if not IMAGE_SIZES[0] <= image_size <= IMAGE_SIZES[1]:
        raise UsageError(
            f"--image-size {image_size} is not from {IMAGE_SIZES[0]} to {IMAGE_SIZES[1]}.", "--image-size 32"
        )
    return image_size


def _pack_bytes(pack: Pack) -> int:
    return sum(file.bytes for file in pack.description.files.values())


def _summary(pack: Pack) -> dict[str, Any]:
    """A pack in a list: its keys are the same in `list`, `add` and `show`."""
    return {
        "name": pack.description.name,
        "source": pack.description.source,
        "path": str(pack.folder),
        "image_size": pack.image_size,
        "classes": len(pack.classes),
        "train_images": pack.size("train"),
        "test_images": pack.size("test"),
        "pack_bytes": _pack_bytes(pack),
        "fingerprint": pack.fingerprint,
    }


@data_app.command("list", cls=Command)
def list_(as_json: JsonOption = False) -> None:
    """List the datasets known by name, and the other packs in the cache.

    Examples:
        lowmem-seq data list
    """
    from lowmem_seq.data.catalogue import CATALOGUE
    from lowmem_seq.data.prepare import packs

    packed = packs()
    others = [pack for pack in packed if pack.description.source not in CATALOGUE]
    sizes = {
        name: sorted(pack.image_size for pack in packed if pack.description.source == name) for name in CATALOGUE
    }
    if as_json:
        entries = [
            {
                "name": entry.name,
                "description": entry.description,
                "classes": entry.class_count,
                "train_images": entry.train_count,
                "test_images": entry.test_count,
                "native_image_size": entry.native_size,
                "flip_makes_sense": entry.flip_makes_sense,
                "download_bytes": entry.download_bytes,
                "packed_image_sizes": sizes[entry.name],
            }
            for entry in CATALOGUE.values()
        ]
        print_json({"catalogue": entries, "other_packs": [_summary(pack) for pack in others]})
        return
    console = make_console(sys.stdout)
    table = Table("name", "what", box=None, header_style="bold", pad_edge=False)
    for heading in ("classes", "images", "size", "download"):
        table.add_column(heading, justify="right")
    table.add_column("packed")
    for entry in CATALOGUE.values():
        table.add_row(
            entry.name,
            entry.description,
            f"{entry.class_count:,}",
            f"{entry.train_count + entry.test_count:,}",
            f"{entry.native_size} px",
            format_bytes(entry.download_bytes) if entry.download_bytes else "none",
            ", ".join(f"{size} px" for size in sizes[entry.name]) or "no",
        )
    console.print(table)
    if others:
        console.print()
        _print_packs(console, others)
    console.print("\nuse one with --data NAME, or your own images with --data FOLDER or --data ZIP", soft_wrap=True)


def _print_packs(console: Console, packs: list[Pack]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("other packs", overflow="fold")
    for heading in ("classes", "images", "size", "on disk"):
        table.add_column(heading, justify="right")
    table.add_column("made from", overflow="fold")
    for pack in packs:
        table.add_row(
            Text(pack.folder.name),
            f"{len(pack.classes):,}",
            f"{pack.size('train') + pack.size('test'):,}",
            f"{pack.image_size} px",
            format_bytes(_pack_bytes(pack)),
            Text(harmless(pack.description.source)),
        )
    console.print(table)


@data_app.command("add", cls=Command)
def add(
    source: str = typer.Argument(
        metavar="NAME|FOLDER|ZIP", help="A dataset, or your own images.", autocompletion=completion.datasets
    ),
    image_size: ImageSizeOption = DEFAULT_IMAGE_SIZE,
    as_json: JsonOption = False,
) -> None:
    """Pack a dataset now, so that a run finds it ready.

    Examples:
        lowmem-seq data add photos
        lowmem-seq data add cifar10 --image-size 64
    """
    from lowmem_seq.data.prepare import prepare

    with progress_bar() as progress:
        pack = prepare(source, _checked_image_size(image_size), progress)
    if as_json:
        print_json(_summary(pack))
        return
    console = make_console(sys.stdout)
    skipped = pack.description.skipped
    console.print(
        Text(
            f"{pack.size('train'):,} train and {pack.size('test'):,} test images of {len(pack.classes)} classes, "
            f"{pack.image_size} px, {format_bytes(_pack_bytes(pack))}\n{pack.folder}"
        ),
        soft_wrap=True,
    )
    for reason, count in skipped.reasons.items():
        console.print(Text(f"left out: {count:,} ({reason})"), soft_wrap=True)


def _named_pack(name: str, image_size: int) -> Pack:
    """The pack that a path, a pack's folder name in the cache, or a source means.

    Raises:
        UsageError: an unknown name.
        DataError: not packed yet, or damaged.
    """
    from lowmem_seq.data.cache import packs_folder
    from lowmem_seq.data.pack import DESCRIPTION, Pack
    from lowmem_seq.data.prepare import find_pack

    for folder in (Path(name).expanduser().absolute(), packs_folder() / name):
        if (folder / DESCRIPTION).is_file():
            return Pack.open(folder)
    pack = find_pack(name, image_size)
    if pack is None:
        size = "" if image_size == DEFAULT_IMAGE_SIZE else f" --image-size {image_size}"
        raise DataError(
            f"{name} is not packed at {image_size} px, or has changed since.", f"lowmem-seq data add {name}{size}"
        )
    return pack


@data_app.command("show", cls=Command)
def show(
    name: str = typer.Argument(
        metavar="SOURCE|PACK",
        help="A source, a pack's folder, or its name in the cache.",
        autocompletion=completion.datasets,
    ),
    image_size: ImageSizeOption = DEFAULT_IMAGE_SIZE,
    as_json: JsonOption = False,
) -> None:
    """Show a pack's classes, counts, colours and skipped files, and verify it.

    Examples:
        lowmem-seq data show photos
    """
    pack = _named_pack(name, _checked_image_size(image_size))
    pack.verify()
    if as_json:
        print_json({"path": str(pack.folder), "verified": True, **msgspec.to_builtins(pack.description)})
        return
    about = pack.description
    console = make_console(sys.stdout)
    facts = Table.grid(padding=(0, 2))
    colours = ("red", "green", "blue")
    for key, value in (
        ("pack", str(pack.folder)),
        ("made from", harmless(about.source)),
        ("fingerprint", about.fingerprint),
        ("images", f"{pack.size('train'):,} train, {pack.size('test'):,} test, {about.image_size} px"),
        ("test part", about.test_part),
        ("mean", ", ".join(f"{colour} {value:.4f}" for colour, value in zip(colours, about.mean, strict=True))),
        (
            "deviation",
            ", ".join(f"{colour} {value:.4f}" for colour, value in zip(colours, about.deviation, strict=True)),
        ),
        ("on disk", f"{format_bytes(_pack_bytes(pack))}, all hashes verified"),
        ("left out", f"{about.skipped.total:,} files"),
    ):
        facts.add_row(key, Text(value, overflow="fold"))
    console.print(facts)
    table = Table("class", box=None, header_style="bold", pad_edge=False)
    for part in about.parts:
        table.add_column(part, justify="right")
    for label, class_name in enumerate(about.classes):
        table.add_row(
            Text(harmless(class_name)), *(f"{counts.by_class[label]:,}" for counts in about.parts.values())
        )
    console.print()
    console.print(table)
    for file_name, reason in about.skipped.listed:
        console.print(Text(harmless(f"left out: {file_name} ({reason})")), soft_wrap=True)
