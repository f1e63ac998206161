from __future__ import annotations

from pathlib import Path

import pytest

from lowmem_seq.channel import Channel
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.member_checkpoint import Saved, from_json, to_json
from lowmem_seq.cluster.membership import machine_of, take_no_part, take_part
from lowmem_seq.cluster.messages import Base
from lowmem_seq.cluster.opening import STANDING
from lowmem_seq.data.pack import Pack
from lowmem_seq.files import read_json, write_json
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.session import open_training, read_plan, take_up_newest
from lowmem_seq.training.workers import Range
from tests.builders import make_run, tiny_config

STEPS, BATCH = 6, 32
OTHER = "00112233445566ff"


@pytest.fixture
def run(tmp_path: Path, tiny_pack: Pack) -> RunFolder:
    run = make_run(tmp_path / "run", tiny_pack, tiny_config(f"steps={STEPS}", f"recipe.effective_batch={BATCH}"))
    take_part(run, "host", "127.0.0.1", 4000)
    take_no_part(run)
    return run


def standing(machine: str) -> Saved:
    """Of a cluster in which another machine has done the second step, and this one the first, not yet merged."""
    ledger = Ledger(STEPS * BATCH, 100)
    ledger.grant(OTHER, BATCH, 2 * BATCH, BATCH)
    ledger.accept(OTHER, [(BATCH, 2 * BATCH)])
    lease = ledger.grant(machine, 0, BATCH, 0)
    ledger.grant(OTHER, 3 * BATCH, 4 * BATCH, 3 * BATCH)
    return Saved(
        format_version=1,
        settings=None,
        base=Base(ledger.history.branches[0].name, ledger.branch[0], 1, ledger.accepted),
        alone=False,
        ledger=ledger.to_json(),
        machines=(machine, OTHER),
        leases=((lease.id, 0, BATCH, BATCH),),
        deltas=1,
        unmerged=((0, BATCH),),
    )


def resumed(run: RunFolder, until: int = STEPS) -> list[Range]:
    """Train on alone from the newest checkpoint; return the positions that steps were made of."""
    training = open_training(run, read_plan(run), Channel(listen=False))
    take_up_newest(training)
    taken: list[Range] = []
    taking = training.source.take

    def take(samples: int) -> list[Range]:
        ranges = taking(samples) if len(taken) < until else []
        taken.extend(ranges)
        return ranges

    training.source.take = take  # type: ignore[method-assign]
    while len(taken) < until and not training.source.is_over:
        assert training.train_step()
        training.source.before_step()
    training.saver.save()
    return taken


def begin(run: RunFolder) -> None:
    """Leave a checkpoint as a member of a cluster does."""
    training = open_training(run, read_plan(run), Channel(listen=False))
    machine = machine_of(run)
    assert machine is not None
    told = to_json(standing(machine))
    training.source.writers = lambda: {STANDING: lambda path: write_json(path, told)}  # type: ignore[method-assign]
    training.state.counters.step = 2
    training.saver.save()


def test_what_nobody_s_work_in_the_weights_has_is_trained_once(run: RunFolder) -> None:
    begin(run)
    assert resumed(run) == [(start, start + BATCH) for start in range(2 * BATCH, STEPS * BATCH, BATCH)]


def test_it_can_be_stopped_and_resumed(run: RunFolder) -> None:
    begin(run)
    first, then = resumed(run, until=2), resumed(run)
    assert first == [(2 * BATCH, 3 * BATCH), (3 * BATCH, 4 * BATCH)]
    assert then == [(4 * BATCH, 5 * BATCH), (5 * BATCH, 6 * BATCH)]
    newest = max((run.path / "checkpoints").iterdir())
    saved = from_json(read_json(newest / STANDING))
    assert saved.alone
    assert saved.base is not None
    assert saved.base.accepted == STEPS * BATCH


def test_it_can_be_made_longer(run: RunFolder) -> None:
    begin(run)
    run.write_config(tiny_config(f"steps={STEPS + 2}", f"recipe.effective_batch={BATCH}"))
    assert resumed(run, until=STEPS + 2)[-1] == ((STEPS + 1) * BATCH, (STEPS + 2) * BATCH)


def test_a_checkpoint_of_one_machine_is_gone_on_from_as_ever(run: RunFolder) -> None:
    training = open_training(run, read_plan(run), Channel(listen=False))
    assert training.train_step()
    training.saver.save()
    assert resumed(run, until=2) == [(BATCH, 2 * BATCH), (2 * BATCH, 3 * BATCH)]


def test_a_run_that_was_in_a_cluster_and_saved_nothing_begins_as_ever(run: RunFolder) -> None:
    assert resumed(run, until=1) == [(0, BATCH)]


def test_how_far_it_is_counts_what_others_did(run: RunFolder) -> None:
    begin(run)
    training = open_training(run, read_plan(run), Channel(listen=False))
    take_up_newest(training)
    assert training.train_step()
    assert training.source.samples_done == 3 * BATCH
    assert training.state.counters.step == 3
