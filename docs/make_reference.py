"""Write docs/reference/ from the code: `python docs/make_reference.py`. A test holds the pages against the code."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from msgspec import NODEFAULT, structs

from lowmem_seq import config, errors
from lowmem_seq.sections import Section

FOLDER = Path(__file__).resolve().parent / "reference"
SECTIONS: tuple[tuple[str, type[Section]], ...] = (
    ("", config.RunConfig),
    ("model", config.Sequencer2DConfig),
    ("model", config.VanillaBiLSTMConfig),
    ("data", config.DataConfig),
    ("augmentation", config.AugmentationConfig),
    ("recipe", config.RecipeConfig),
    ("checkpoint", config.CheckpointConfig),
    ("machine", config.MachineConfig),
    ("cluster", config.ClusterConfig),
)


def field_sentences(section: type[Section]) -> dict[str, str]:
    """Return the sentence that stands under each field of a section."""
    (definition,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(definition, ast.ClassDef)
    sentences = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            sentences[field.target.id] = " ".join(str(below.value.value).split())
    return sentences


def config_page() -> str:
    """Return docs/reference/config.md."""
    lines = [
        "# Settings",
        "",
        "Made from lowmem_seq/config.py by `python docs/make_reference.py`.",
        "",
        "A preset in configs/ sets some of these, the rest have the defaults given here. Any of them can be set on",
        "the command line: `lowmem-seq train small --set recipe.epochs=10`. A run folder's config.yaml has all.",
    ]
    for prefix, section in SECTIONS:
        sentences = field_sentences(section)
        lines += ["", f"## {prefix or 'the run'}: {(section.__doc__ or '').strip().splitlines()[0]}", ""]
        lines += ["| key | default | what it is |", "|---|---|---|"]
        for field in structs.fields(section):
            name = field.name
            if name not in sentences:
                continue
            default = "required" if field.default is NODEFAULT else f"`{field.default!r}`"
            key = f"{prefix}.{name}" if prefix else name
            lines.append(f"| `{key}` | {default} | {sentences[name]} |")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """Return docs/reference/exit-codes.md."""
    lines = [
        "# Exit codes",
        "",
        "Made from lowmem_seq/errors.py by `python docs/make_reference.py`.",
        "",
        "| code | error | when |",
        "|---:|---|---|",
        "| 0 | | done |",
        "| 1 | `LowmemSeqError` | a defect, or a trainer that died while it was being stopped |",
    ]
    for code, kind in sorted(errors.ERRORS_BY_EXIT_CODE.items()):
        lines.append(f"| {code} | `{kind.__name__}` | {(kind.__doc__ or '').strip()} |")
    lines.append("| 130 | | Left at once: on a second signal, or in a command that has nothing to save. |")
    return "\n".join(lines) + "\n"


PAGES = {"config.md": config_page, "exit-codes.md": errors_page}


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
