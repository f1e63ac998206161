"""The weights that `eval`, `predict`, `export` and `--init-from` mean, and the flags that say how to use them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, cast, get_args

import typer
from rich.text import Text

from lowmem_seq.cli.help import MACHINE
from lowmem_seq.cli.terminal import harmless, make_console
from lowmem_seq.config import RunConfig
from lowmem_seq.errors import NoCheckpointError, UsageError, nearest
from lowmem_seq.memory.environment import PASSIVE_WAITING
from lowmem_seq.report.summary import summarise
from lowmem_seq.runs.folder import RunFolder, open_run
from lowmem_seq.units import parse_bytes

if TYPE_CHECKING:  # numpy
    from lowmem_seq.checkpoint.weights import UsableWeights

DeviceWish: TypeAlias = Literal["auto", "cpu", "mps", "cuda"]
CapOption = Annotated[
    str | None,
    typer.Option(
        "--max-ram", metavar="SIZE", help="Cap on the memory of this command, as 2GB.", rich_help_panel=MACHINE
    ),
]


def choose_weights(run: RunFolder) -> UsableWeights:
    """Return the weights of a run that are to be used; what was passed over is said on standard error.

    Raises:
        NoCheckpointError: none verifies, or nothing was saved yet.
        UsageError: its events are not as they should be.
    """
    from lowmem_seq.checkpoint.weights import find_weights

    weights = find_weights(run, summarise(run)["weights_sha256"])
    for fault in weights.passed_over:
        make_console(sys.stderr, soft_wrap=True).print(Text(harmless(f"warning: {fault}"), style="bold yellow"))
    return weights


def find_initial(path: Path | None, config: RunConfig) -> Path | None:
    """Return the file of the weights that `--init-from` means, if it is given.

    That is a run's weights, as `choose_weights` has them, or a safetensors file, or the one in an exported folder.

    Raises:
        NoCheckpointError: no weights of that run verify.
        UsageError: there is nothing of the kind, or the settings are those of a run that began with such weights.
    """
    if path is None:
        if config.init_from is not None:
            raise UsageError(
                f"these settings are of a run that began with the weights of {config.init_from}.",
                "give them again: lowmem-seq train FILE --init-from PATH",
            )
        return None
    from lowmem_seq.checkpoint.header import read_shapes

    if (path / "config.yaml").is_file():
        return choose_weights(open_run(path)).path
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"there are no weights at {path}.", "--init-from RUN_DIR, or FILE.safetensors")
    try:
        read_shapes(file)
    except NoCheckpointError as error:
        raise UsageError(error.message, "--init-from RUN_DIR, or FILE.safetensors") from error
    return file


def read_cap(text: str | None) -> int | None:
    """Return the bytes of `--max-ram`."""
    return None if text is None else parse_bytes(text)


def read_device(text: str | None) -> DeviceWish:
    """Return the device that `--device` asks for.

    Raises:
        UsageError: there is none of that name.
    """
    require_one_of("--device", text or "auto", get_args(DeviceWish))
    return cast(DeviceWish, text or "auto")


def require_one_of(flag: str, given: str, known: tuple[str, ...]) -> None:
    """See that a flag has one of its values.

    Raises:
        UsageError: it hasn't.
    """
    if given not in known:
        hint = nearest(given, list(known)) or f"one of {', '.join(known)}"
        raise UsageError(f"{flag} {given!r} is not known.", hint)


def say_how_the_cap_is_kept(cap_bytes: int | None, enforced: bool) -> None:
    """Say on standard error that nothing keeps a cap that was given, where nothing does."""
    if cap_bytes is not None and not enforced:
        told = "note: nothing on this system enforces --max-ram for this command; few pictures are held at once"
        make_console(sys.stderr, soft_wrap=True).print(Text(told, style="yellow"))


def prepare_for_torch() -> None:
    """Set what torch's libraries look at when they are loaded, unless the user has: threads that wait sleep."""
    for name, value in PASSIVE_WAITING.items():
        os.environ.setdefault(name, value)
