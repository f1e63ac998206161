from __future__ import annotations

from typing import get_args

import pytest
from msgspec import structs

from lowmem_seq.config import MachineConfig
from lowmem_seq.errors import UsageError
from lowmem_seq.runs import trackers
from lowmem_seq.runs.trackers import NO_TRACKER, PACKAGES, require_tracker


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The packages that are there."""
    names: set[str] = set()
    monkeypatch.setattr(trackers, "find_spec", lambda name: name if name in names else None)
    return names


@pytest.mark.parametrize("name", [None, NO_TRACKER])
def test_no_tracker_needs_nothing(installed: set[str], name: str | None) -> None:
    require_tracker(name)


@pytest.mark.parametrize("package", ["tensorboard", "tensorboardX"])
def test_a_tracker_that_is_installed_will_do(installed: set[str], package: str) -> None:
    installed.add(package)
    require_tracker("tensorboard")


@pytest.mark.parametrize("name", PACKAGES)
def test_one_that_is_not_is_refused_with_the_command_that_installs_it(installed: set[str], name: str) -> None:
    with pytest.raises(UsageError, match=f"--log-with {name} needs the package") as caught:
        require_tracker(name)
    assert caught.value.hint == f"pip install {PACKAGES[name][0]}"


def test_one_that_does_not_exist_is_refused_with_the_nearest(installed: set[str]) -> None:
    with pytest.raises(UsageError, match="there is no tracker 'tensorbord'") as caught:
        require_tracker("tensorbord")
    assert caught.value.hint == "did you mean 'tensorboard'?"
    with pytest.raises(UsageError) as caught:
        require_tracker("xyz")
    assert caught.value.hint.startswith("known are tensorboard, wandb")


def test_the_setting_takes_the_same_names() -> None:
    (field,) = (one for one in structs.fields(MachineConfig) if one.name == "log_with")
    assert set(get_args(field.type)) == {NO_TRACKER, *PACKAGES}


def test_accelerate_knows_them_all() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert set(PACKAGES) <= set(LOGGER_TYPE_TO_CLASS)
