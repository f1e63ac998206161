from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from lowmem_seq import __version__
from lowmem_seq.channel import Channel
from lowmem_seq.cluster import opening
from lowmem_seq.cluster.hub_store import HubStore
from lowmem_seq.cluster.hub_store import Saved as SavedRound
from lowmem_seq.cluster.layout import Layout
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.member_checkpoint import Saved, to_json
from lowmem_seq.cluster.membership import take_part
from lowmem_seq.cluster.messages import Base
from lowmem_seq.cluster.serving import read_serving, read_start
from lowmem_seq.data.pack import Pack
from lowmem_seq.errors import NoCheckpointError
from lowmem_seq.files import write_json
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.session import open_training, read_plan
from tests.builders import make_run, tiny_config, train_here

STEPS, BATCH = 4, 32
OTHER = "00112233445566ff"


@pytest.fixture
def run(tmp_path: Path, tiny_pack: Pack) -> RunFolder:
    config = tiny_config(f"steps={STEPS}", f"recipe.effective_batch={BATCH}", "cluster.round=5s")
    run = make_run(tmp_path / "run", tiny_pack, config)
    take_part(run, "host", "127.0.0.1", 4000)
    return run


@pytest.fixture
def trained(run: RunFolder) -> RunFolder:
    """The same run, with all of its steps done alone, and then made longer."""
    train_here(run)
    run.write_config(tiny_config(f"steps={2 * STEPS}", f"recipe.effective_batch={BATCH}"))
    return run


def test_a_fresh_run_is_served_from_its_first_sample_on(run: RunFolder, tiny_pack: Pack) -> None:
    opening.write(run)
    serving = read_serving(run.path)
    assert serving.total == STEPS * BATCH
    assert serving.port == 4000
    assert serving.program == __version__
    assert serving.data == tiny_pack.fingerprint
    assert serving.experiment == run.config.experiment_hash()
    assert serving.settings.round_seconds == 5.0
    assert serving.settings.beat_seconds <= serving.settings.lost_after_seconds / 4
    assert read_start(run.path) is None


def test_of_a_run_that_was_begun_alone_all_up_to_its_checkpoint_is_done(trained: RunFolder) -> None:
    opening.write(trained)
    start = read_start(trained.path)
    assert start is not None
    ledger = Ledger.from_json(start.ledger)
    assert (ledger.accepted, ledger.total) == (STEPS * BATCH, 2 * STEPS * BATCH)
    assert list(ledger.positions.free) == [(STEPS * BATCH, 2 * STEPS * BATCH)]
    assert read_serving(trained.path).total == ledger.total


def save_as_a_member(run: RunFolder, machine: str, damaged: bool = False) -> None:
    """Save a checkpoint of a cluster, in which another machine has done the second step, and this one the first."""
    ledger = Ledger(2 * STEPS * BATCH, 100)
    ledger.grant(OTHER, BATCH, 2 * BATCH, BATCH)
    ledger.accept(OTHER, [(BATCH, 2 * BATCH)])
    lease = ledger.grant(machine, 0, BATCH, 0)
    saved = Saved(
        format_version=1,
        settings=None,
        base=Base(ledger.history.branches[0].name, ledger.branch[0], 3, ledger.accepted),
        alone=False,
        ledger=ledger.to_json(),
        machines=(machine, OTHER),
        leases=((lease.id, 0, BATCH, BATCH),),
        deltas=3,
        unmerged=((0, BATCH),),
    )
    told = {} if damaged else to_json(saved)
    training = open_training(run, read_plan(run), Channel(listen=False))
    training.source.writers = lambda: {opening.STANDING: lambda path: write_json(path, told)}  # type: ignore[method-assign]
    training.state.counters.step = STEPS + 1
    training.saver.save()


def identity_of(run: RunFolder, pack: Pack) -> dict[str, str]:
    return {"experiment_sha256": run.config.experiment_hash(), "data_fingerprint": pack.fingerprint}


def test_of_a_cluster_s_checkpoint_what_its_weights_hold_is_done(trained: RunFolder) -> None:
    machine = take_part(trained, "host", "127.0.0.1", 4000).machine
    save_as_a_member(trained, machine)
    opening.write(trained)
    start = read_start(trained.path)
    assert start is not None
    ledger = Ledger.from_json(start.ledger)
    assert list(ledger.positions.accepted) == [
        (0, 2 * BATCH)
    ]  # the merged step of the other, and the own unmerged one
    assert start.round == 4


@pytest.mark.parametrize("accepted_steps", [1, 3], ids=["behind the checkpoint", "ahead of it"])
def test_a_saved_round_that_holds_as_much_is_gone_on_from(
    trained: RunFolder, tiny_pack: Pack, accepted_steps: int
) -> None:
    machine = take_part(trained, "host", "127.0.0.1", 4000).machine
    save_as_a_member(trained, machine)
    ledger = Ledger(2 * STEPS * BATCH, 100)
    ledger.grant(machine, 0, accepted_steps * BATCH, 0)
    ledger.accept(machine, [(0, accepted_steps * BATCH)])
    layout = Layout.of_shapes({"weight": (3,)})
    saved = SavedRound(2, layout, {"base": np.zeros(3, np.float32)}, ledger.to_json())
    HubStore(trained.path, identity_of(trained, tiny_pack)).save(saved)
    opening.write(trained)
    assert (trained.path / "cluster" / "rounds").exists() == (accepted_steps == 3)
    assert (read_start(trained.path) is None) == (accepted_steps == 3)


def test_a_damaged_state_of_a_cluster_is_told(trained: RunFolder) -> None:
    save_as_a_member(trained, OTHER, damaged=True)
    with pytest.raises(NoCheckpointError, match="holds no state of a cluster"):
        opening.write(trained)


def test_the_settings_of_all_are_the_config_s() -> None:
    config = tiny_config(
        *("cluster.encoding=bf16", "cluster.dense_rounds=3", "cluster.outer=momentum", "cluster.outer_rate=0.7"),
        *("cluster.outer_momentum=0.9", "cluster.lost_after=4s"),
    )
    told = msgspec.to_builtins(opening.settings_of(config.cluster))
    assert told == {
        "round_seconds": 60.0,
        "beat_seconds": 1.0,
        "lost_after_seconds": 4.0,
        "encoding": "bf16",
        "dense_rounds": 3,
        "outer": "momentum",
        "outer_rate": 0.7,
        "outer_momentum": 0.9,
    }
