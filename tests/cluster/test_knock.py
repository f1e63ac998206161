"""A machine that asks whether it would be let in, against the real hub's process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowmem_seq.channel import Channel
from lowmem_seq.checkpoint.counters import Counters
from lowmem_seq.cluster.knock import knock
from lowmem_seq.cluster.membership import take_part
from lowmem_seq.cluster.token import TOKEN_VARIABLE, new_token
from lowmem_seq.data.pack import Pack
from lowmem_seq.errors import ClusterError, UsageError
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.session import open_training, read_plan, take_up_newest
from tests.builders import free_port, make_run, tiny_config
from tests.cluster.processes import fresh_hub


@pytest.fixture
def port(tmp_path: Path, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where the hub of a fresh run listens, before any machine has said hello to it."""
    monkeypatch.setenv(TOKEN_VARIABLE, new_token().code)
    with fresh_hub(tmp_path / "host", tiny_pack) as port:
        yield port


def member(folder: Path, pack: Pack, port: int, *assignments: str) -> RunFolder:
    run = make_run(folder, pack, tiny_config("steps=5", *assignments))
    take_part(run, "member", "127.0.0.1", port)
    return run


def test_one_that_would_train_the_same_is_let_in_and_counts_for_nothing(
    tmp_path: Path, tiny_pack: Pack, port: int
) -> None:
    run = member(tmp_path / "run", tiny_pack, port)
    for _ in range(2):
        welcome = knock(run, 10.0)
        assert (welcome.total, welcome.peers) == (5 * 32, ())
    run.data_file.unlink()  # as before it has packed its images
    assert knock(run, 10.0).total == 5 * 32


def test_another_experiment_is_refused(tmp_path: Path, tiny_pack: Pack, port: int) -> None:
    with pytest.raises(ClusterError, match="its experiment is") as caught:
        knock(member(tmp_path / "run", tiny_pack, port, "seed=3"), 10.0)
    assert "same preset and settings" in caught.value.hint


def test_other_images_are_refused(tmp_path: Path, tiny_pack: Pack, port: int) -> None:
    run = member(tmp_path / "run", tiny_pack, port)
    text = run.data_file.read_text(encoding="utf-8")
    run.data_file.write_text(text.replace(tiny_pack.fingerprint, "ab" * 32), encoding="utf-8")
    with pytest.raises(ClusterError, match="its data is") as caught:
        knock(run, 10.0)
    assert "same images" in caught.value.hint


def test_where_nobody_listens_that_is_said_in_time(
    tmp_path: Path, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, new_token().code)
    with pytest.raises(ClusterError, match=r"no hub answered at 127\.0\.0\.1:\d+ within 1 s"):
        knock(member(tmp_path / "run", tiny_pack, free_port()), 1.0)


def test_another_token_is_refused(
    tmp_path: Path, tiny_pack: Pack, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, new_token().code)
    with pytest.raises((ClusterError, UsageError), match="token"):
        knock(member(tmp_path / "run", tiny_pack, port), 20.0)


class Stopping(Channel):
    """A supervisor that asks for a stop after a moment."""

    def __init__(self, seconds: float) -> None:
        super().__init__(listen=False)
        self._until = time.monotonic() + seconds

    @property
    def stop_requested(self) -> bool:
        return time.monotonic() > self._until


def test_a_stop_while_it_waits_for_weights_leaves_nothing_that_looks_trained(
    tmp_path: Path, tiny_pack: Pack, port: int
) -> None:
    run = member(tmp_path / "run", tiny_pack, port)
    training = open_training(run, read_plan(run), Stopping(1.0))
    take_up_newest(training)
    assert not training.go()
    assert training.state.counters == Counters()
    assert not run.checkpoints.exists()
