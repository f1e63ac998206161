from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lowmem_seq.cluster.identity import Identity
from lowmem_seq.cluster.messages import Refused
from tests.cluster.hubs import serving
from tests.cluster.wires import BASE, hello

OURS = Identity.of(serving(), BASE.cluster)


def test_a_machine_that_would_train_the_same_is_let_in() -> None:
    assert OURS.refusal(hello()) is None
    for other in ({"torch": "2.6.0"}, {"device": "cuda"}, {"effective_batch": 1}, {"base": None}, {"data": None}):
        assert OURS.refusal(msgspec.structs.replace(hello(), **other)) is None


@pytest.mark.parametrize(
    ("field", "ours", "theirs", "hint"),
    [
        ("program", "0.1.0", "0.2.0", "install the same version"),
        ("experiment", "e0e0e0e0e0e0e0e0", "e1e1e1e1", "start every machine with the same preset"),
        ("data", "d0d0d0d0d0d0d0d0", "d1d1d1d1", "every machine needs the same images"),
        ("layout", "10a70a70", "ffffffff", "the model has other tensors"),
    ],
)
def test_what_differs_is_named(field: str, ours: str, theirs: str, hint: str) -> None:
    known = Identity(OURS.program, OURS.experiment, OURS.data, OURS.cluster, layout="10a70a70")
    same: dict[str, Any] = {"layout": "10a70a70"}
    refused = known.refusal(msgspec.structs.replace(hello(), **{**same, field: theirs}))
    assert isinstance(refused, Refused)
    assert (refused.field, refused.ours, refused.theirs) == (field, ours, theirs)
    assert refused.hint.startswith(hint)


def test_a_run_of_another_cluster_is_refused() -> None:
    refused = OURS.refusal(msgspec.structs.replace(hello(), base=msgspec.structs.replace(BASE, cluster="ffffffff")))
    assert refused is not None
    assert (refused.field, refused.ours, refused.theirs) == ("cluster", BASE.cluster, "ffffffff")
    nothing = msgspec.structs.replace(BASE, cluster="ffffffff", accepted=0)  # that could get lost
    assert OURS.refusal(msgspec.structs.replace(hello(), base=nothing)) is None


def test_the_version_is_named_before_what_follows_from_it() -> None:
    refused = OURS.refusal(msgspec.structs.replace(hello(), program="9", experiment="ffffffff", data="ffffffff"))
    assert refused is not None
    assert refused.field == "program"


def test_as_long_as_the_layout_is_not_known_any_is_let_in() -> None:
    assert OURS.refusal(msgspec.structs.replace(hello(), layout="ffffffff")) is None
