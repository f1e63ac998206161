"""A run's weights judged on pictures with classes: those of the run itself, or others that are named alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from torch import Tensor

from lowmem_seq.data.batches import evaluation_batches
from lowmem_seq.data.catalogue import CATALOGUE
from lowmem_seq.data.layout import PUT_ASIDE
from lowmem_seq.data.pack import Pack
from lowmem_seq.data.parts import Part, open_parts, parts_by_name
from lowmem_seq.errors import DataError, UsageError
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.evaluation import Evaluation, evaluate
from lowmem_seq.training.inference import Classifier


@dataclass(frozen=True)
class Subject:
    """The pictures that are looked at."""

    parts: tuple[Part, ...]
    source: str
    """A catalogue name, or a path."""
    what: str
    """Which of them: test, validation, train or all."""

    @property
    def size(self) -> int:
        """How many pictures there are."""
        return sum(part.size for part in self.parts)


def own_pack(run: RunFolder) -> Pack | None:
    """Return the pack that the run was trained on, if it is still where it was."""
    record = run.read_json(run.data_file) or {}
    try:
        pack = Pack.open(Path(str(record.get("pack"))))
    except DataError:
        return None
    return pack if pack.fingerprint == record.get("fingerprint") else None


def choose_subject(run: RunFolder, pack: Pack, source: str, classes: tuple[str, ...], what: str | None) -> Subject:
    """Return the part of a pack that is asked for.

    A run's own pictures are parted as its training has them. Of others, it is their test part where they have one
    of their own, and all of them where they haven't.

    Args:
        run: the run that is judged.
        pack: the pictures.
        source: what they were asked for by; the pack may have been made of an equal one.
        classes: what the model tells apart.
        what: test, validation, train or all; None: what suits the pictures.

    Raises:
        DataError: there are no such pictures, or they have classes that the model doesn't know.
        UsageError: a validation part of other pictures than the run's own.
    """
    record, data = run.read_json(run.data_file) or {}, run.config.data
    chosen: dict[str, tuple[Part, ...]]
    if pack.fingerprint == record.get("fingerprint"):
        own = open_parts(pack, data.classes, data.validation_fraction, run.config.seed)
        chosen = {"test": (own.test,), "validation": (own.validation,), "train": (own.train,)}
        chosen["all"] = (own.train, own.validation, own.test)
    elif what == "validation":
        raise UsageError(
            f"{source} has no validation part: that is cut from the pictures that a run was trained on.",
            "--part test, train or all",
        )
    else:
        others = parts_by_name(pack, classes)
        chosen = {"test": (others["test"],), "train": (others["train"],), "all": tuple(others.values())}
        if what is None and source not in CATALOGUE and pack.description.test_part == PUT_ASIDE:
            what = "all"
    what = what or "test"
    subject = Subject(chosen[what], source, what)
    if not subject.size:
        raise DataError(f"{source} has no pictures in its {what} part.", "--part all   looks at all of them")
    return subject


def judge(classifier: Classifier, subject: Subject, tell: Callable[[int], None] = lambda _done: None) -> Evaluation:
    """Return the figures of a trained model on a subject.

    Args:
        classifier: the model.
        subject: the pictures.
        tell: hears how many are done.
    """
    trained, done = classifier.trained, 0

    def count(logits: Tensor, _labels: Tensor) -> None:
        nonlocal done
        done += len(logits)
        tell(done)

    result = evaluate(
        classifier.model, _batches(classifier, subject), len(trained.classes), classifier.accelerator, observe=count
    )
    assert result is not None  # nobody asks it to stop
    return result


def _batches(classifier: Classifier, subject: Subject) -> Iterator[tuple[Tensor, Tensor]]:
    trained = classifier.trained
    for part in subject.parts:
        yield from evaluation_batches(part, trained.mean, trained.deviation, repeat(classifier.batch))
