"""Ranks of one world, each a trainer in a process of its own, on loopback."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lowmem_seq.channel import Channel
from lowmem_seq.cluster.pulse import Pulse
from lowmem_seq.cluster.rank import Rank, take_rank
from lowmem_seq.cluster.shares import part_of
from lowmem_seq.cluster.table import Table
from lowmem_seq.config import RunConfig
from lowmem_seq.data.pack import Pack
from lowmem_seq.errors import ClusterError
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.child import Child
from lowmem_seq.training import world
from lowmem_seq.training.__main__ import world_is_open
from lowmem_seq.training.session import open_training, read_plan
from lowmem_seq.training.watched import Watched
from lowmem_seq.training.world import digest_of
from tests.builders import free_port, make_run, tiny_config, train_here
from tests.sessions import events

STEPS = 25
LONG = 10**6
SECONDS_TO_NOTICE = 20.0
SETTINGS = (
    *("recipe.effective_batch=32", "recipe.ema_decay=0.9", "augmentation.mixup=0.3", "augmentation.colour=0.2"),
    *("checkpoint.every=1000000steps", "cluster.lost_after=20s", "cluster.form_within=60s"),
)
"""With every kind of random draw."""
FIGURES = {"step", "images_seen", "train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy"}
ROUNDING = 2e-5
"""What the order of sums changes in weights of about 1 over these steps."""


class Ranks:
    """Trainers that are under way."""

    def __init__(self, folder: Path, pack: Pack, configs: Sequence[RunConfig]) -> None:
        port, of = free_port(), len(configs)
        self.runs = [make_run(folder / f"{of}-{number}", pack, config) for number, config in enumerate(configs)]
        for number, run in enumerate(self.runs):
            take_rank(run, Rank(number, of, number, of, "127.0.0.1", port))
        self.children = [
            Child("lowmem_seq.training", str(run.path), environment={"OMP_NUM_THREADS": "1"}, log=run.log_file)
            for run in self.runs
        ]

    def until(self, event: str, then: Callable[[], object]) -> None:
        """Wait for a word of the first rank."""
        for message in self.children[0].messages(1.0):
            if message is not None and message["event"] == event:
                then()
                return
        raise AssertionError(self.runs[0].log_file.read_text(encoding="utf-8"))

    def ended(self, *numbers: int) -> tuple[list[int], list[str]]:
        """Return the codes that these ranks end with (none named: all), and the errors that they told."""
        children = [self.children[number] for number in numbers or range(len(self.children))]
        errors = [error for child in children for error in errors_of(child)]
        return [child.wait() for child in children], errors


def errors_of(child: Child) -> list[str]:
    """The errors that a child tells until it has ended."""
    said = [message for message in child.messages(1.0) if message is not None]
    return [str(message["message"]) for message in said if message["event"] == "error"]


def trained(folder: Path, pack: Pack, ranks: int) -> list[RunFolder]:
    together = Ranks(folder, pack, [tiny_config(*SETTINGS, f"steps={STEPS}")] * ranks)
    assert together.ended()[0] == [0] * ranks, [run.log_file.read_text() for run in together.runs]
    return together.runs


def test_one_two_and_three_ranks_come_to_the_same_weights(tmp_path: Path, tiny_pack: Pack) -> None:
    alone = make_run(tmp_path / "alone", tiny_pack, tiny_config(*SETTINGS, f"steps={STEPS}"))
    train_here(alone)
    wanted = load_file(alone.weights_file)
    for ranks in (2, 3):
        runs = trained(tmp_path, tiny_pack, ranks)
        assert len({events(run.path, "test")[0]["weights_sha256"] for run in runs}) == 1  # bit for bit
        got = load_file(runs[0].weights_file)
        assert max(float(np.abs(got[name] - value).max()) for name, value in wanted.items()) < ROUNDING
        for kind in ("train", "validation", "test"):
            for told, expected in zip(events(runs[0].path, kind), events(alone.path, kind), strict=True):
                for figure in FIGURES & expected.keys():
                    assert told[figure] == pytest.approx(expected[figure], rel=1e-4)
        (formed,) = events(runs[0].path, "world_formed")
        assert [rank["samples"] for rank in formed["ranks"]] == ([16, 16] if ranks == 2 else [10, 12, 10])
        assert (formed["backend"], formed["rank"]) == ("gloo", 0)
        assert not (runs[1].path / "checkpoints").exists()
        assert not runs[1].weights_file.exists()


def test_gradients_of_unequal_parts_add_up_to_those_of_the_step(tmp_path: Path, tiny_pack: Pack) -> None:
    run = make_run(tmp_path / "run", tiny_pack, tiny_config(*SETTINGS))
    training = open_training(run, read_plan(run), Channel(listen=False))
    training.samples = 32

    def gradients(start: int, end: int) -> tuple[float, torch.Tensor]:
        loss = training.compute(part_of([(0, 32)], start, end))
        assert loss is not None
        found = training.workers.all[0].gradients
        return loss, torch.cat([one.flatten() for one in found if one is not None])

    (whole_loss, whole), (most_loss, most), (least_loss, least) = (
        gradients(*part) for part in ((0, 32), (0, 24), (24, 32))
    )
    assert most_loss + least_loss == pytest.approx(whole_loss, rel=1e-6)
    assert float((most + least - whole).norm() / whole.norm()) <= 1e-6
    assert training.compute([]) == 0.0


def test_weights_that_differ_in_a_bit_have_another_digest() -> None:
    weights = {"a": torch.ones(3, 4), "b": torch.zeros(5)}
    before = digest_of(weights)
    assert digest_of({name: value.clone() for name, value in weights.items()}) == before
    weights["a"][1, 2] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert digest_of(weights) != before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("what", "lost_after_seconds", "words"),
    [("killed", 60, "is gone"), ("frozen", 3, "was not heard of for 3 s")],
    ids=["killed", "frozen"],
)
def test_a_rank_that_is_gone_ends_the_others_in_time_and_the_last_step_is_saved(
    tmp_path: Path, tiny_pack: Pack, what: str, lost_after_seconds: int, words: str
) -> None:
    config = tiny_config(*SETTINGS, f"steps={LONG}", f"cluster.lost_after={lost_after_seconds}s")
    together = Ranks(tmp_path, tiny_pack, [config] * 3)
    lost = together.children[1].process
    together.until("progress", lost.kill if what == "killed" else lost.suspend)
    began = time.monotonic()
    try:
        codes, errors = together.ended(0, 2)
    finally:
        together.children[1].kill()
        together.children[1].wait()
    assert codes == [7, 7]
    assert time.monotonic() - began < SECONDS_TO_NOTICE
    assert ["rank 1" in error and words in error for error in errors] == [True, True], errors
    (saved,) = events(together.runs[0].path, "checkpoint")
    assert saved["step"] > 0


def test_one_rank_s_stop_is_that_of_all_at_the_same_step(tmp_path: Path, tiny_pack: Pack) -> None:
    together = Ranks(tmp_path, tiny_pack, [tiny_config(*SETTINGS, f"steps={LONG}")] * 2)
    together.until("progress", lambda: together.children[1].tell("stop"))
    codes, _ = together.ended()
    assert codes == [4, 4]
    ends = [events(run.path, "session_ended")[0] for run in together.runs]
    assert ends[0]["step"] == ends[1]["step"] == events(together.runs[0].path, "checkpoint")[0]["step"]


def test_ranks_that_would_train_something_else_are_told_apart(tmp_path: Path, tiny_pack: Pack) -> None:
    configs = [tiny_config(*SETTINGS, *more) for more in ((), ("seed=5",))]
    codes, errors = Ranks(tmp_path, tiny_pack, configs).ended()
    assert codes == [7, 7]
    assert ["rank 1" in error and "another experiment" in error for error in errors] == [True, True]


def test_leaving_is_not_held_up_by_a_line_that_an_exchange_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Held(Table):
        def set(self, key: str, value: str) -> None:
            never.wait(SECONDS_TO_NOTICE)

    never = threading.Event()
    monkeypatch.setattr(world, "SECONDS_FOR_A_CAUSE", 0.1)
    began = time.monotonic()
    world.leave(Rank(1, 2, 1, 2, "127.0.0.1", 4000), Held(), "its disk is full")
    assert time.monotonic() - began < SECONDS_TO_NOTICE / 2
    never.set()


def test_ranks_that_meet_and_can_t_connect_to_each_other_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = threading.Event()
    monkeypatch.setattr(world, "prefixed", lambda _prefix, store: store)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: connected.wait(60.0))
    rank, table = Rank(0, 2, 0, 1, "10.0.0.7", 4000), Table()
    watched = Watched(Pulse(table, 0, ("rank 0 (hp)", "rank 1 (mac)"), 60.0))
    with pytest.raises(ClusterError, match=r"all 2 ranks have met at 10\.0\.0\.7:4000, but can't all") as told:
        world.connect(rank, watched, table, 0.1)
    assert "GLOO_SOCKET_IFNAME" in told.value.hint
    assert world_is_open()
    connected.set()
    watched.stop()
    assert not world_is_open()


def test_a_rank_that_does_not_come_is_told_within_the_time(tmp_path: Path, tiny_pack: Pack) -> None:
    config = tiny_config(*SETTINGS, "cluster.form_within=2s")
    run = make_run(tmp_path / "run", tiny_pack, config)
    take_rank(run, Rank(0, 2, 0, 1, "127.0.0.1", free_port()))
    child = Child("lowmem_seq.training", str(run.path), log=run.log_file)
    assert errors_of(child) == ["2 processes were asked for, and rank 1 did not come within 2 s."]
    assert child.wait() == 7
