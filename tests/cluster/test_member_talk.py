from __future__ import annotations

import pytest
from msgspec.structs import replace

from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.member_talk import ledger_of
from lowmem_seq.cluster.messages import (
    Beat,
    DeltaPiece,
    Finished,
    GoAway,
    Hello,
    LedgerTold,
    Peers,
    Range,
    Refused,
    Settings,
    UploadPiece,
    UploadWanted,
    Want,
    WeightsWanted,
)
from lowmem_seq.cluster.split import absorb, fork
from lowmem_seq.errors import ClusterError
from tests.cluster.members import EPOCH, SETTINGS, TOTAL, Scene, base_of, delta_in
from tests.cluster.vectors import floats
from tests.cluster.wires import MACHINE, PEER


@pytest.fixture
def scene() -> Scene:
    """A member that has the common weights, and 80 samples."""
    made = Scene()
    made.begin()
    made.lease()
    return made


# Joining


def test_it_says_hello_and_nothing_else_until_it_is_welcome() -> None:
    scene = Scene()
    assert scene.listen() == []
    scene.talk.line_up()
    (said,) = scene.listen()
    assert isinstance(said, Hello)
    assert said.base is None
    assert scene.listen() == []
    scene.clock.go_on(5)
    assert scene.heard(Hello) == [said]


def test_it_asks_for_the_weights_until_they_come() -> None:
    scene = Scene()
    scene.talk.line_up()
    scene.listen()
    scene.welcome()
    scene.work.begin_anew()
    assert scene.heard(WeightsWanted) == [WeightsWanted(None, "weights", 0)]
    assert scene.heard(WeightsWanted) == []
    scene.clock.go_on(5)
    assert scene.heard(WeightsWanted) == [WeightsWanted(None, "weights", 0)]
    scene.weigh()
    assert scene.work.between(scene.tensors)
    assert scene.weights == [10, 20]
    scene.clock.go_on(5)
    assert scene.heard(WeightsWanted) == []


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Refused("data", "d0d0d0d0", "d1d1d1d1", "get it"), "its data is d1d1d1d1, the host's is d0d0d0d0"),
        (GoAway("full", "32"), "the cluster is full"),
        (GoAway("replaced", ""), "another process joined"),
        (GoAway("format", "what?"), "did not understand this machine: what?"),
    ],
)
def test_what_keeps_it_out_is_an_error_that_says_so(message: Refused | GoAway, words: str) -> None:
    scene = Scene()
    scene.talk.line_up()
    scene.tell(message)
    assert isinstance(scene.talk.trouble, ClusterError)
    assert words in scene.talk.trouble.message
    assert scene.talk.trouble.hint


# Samples


def test_it_asks_for_work_before_it_runs_out(scene: Scene) -> None:
    scene.train(8, 0, 0)  # at 80 samples/s, and wants work for 30 s
    (want,) = scene.heard(Want)
    assert want.seconds == SETTINGS.round_seconds
    assert isinstance(scene.said[0], Beat)
    scene.lease(30.0)
    assert scene.work.holdings.untrained == 2392
    assert scene.heard(Want) == []


def test_where_nothing_is_left_it_asks_again_when_it_was_told_to(scene: Scene) -> None:
    scene.ledger.lease("other", 8, 1e6, 100.0)
    scene.train(8, 0, 0)
    assert len(scene.heard(Want)) == 1
    scene.ledger.lease(MACHINE, 8, 80.0, 1.0)
    scene.lease()
    assert scene.talk.nothing_to_lease
    assert scene.heard(Want) == []
    scene.clock.go_on(2)
    assert len(scene.heard(Want)) == 1


def test_beats_tell_how_far_it_is(scene: Scene) -> None:
    scene.talk.state = "training"
    scene.train(8, 0, 0)
    scene.clock.go_on(1)
    beat = scene.heard(Beat)[-1]
    assert (beat.round, beat.state) == (0, "training")
    assert beat.samples_per_second == pytest.approx(80)
    assert [(one.lease, one.done) for one in beat.leases] == [(0, 8)]


# Rounds


def test_a_round_hands_in_the_work_and_takes_the_others(scene: Scene) -> None:
    scene.train(8, 1, 2)
    piece, delta = scene.hand_in()
    assert (piece.round, piece.samples, piece.ranges) == (0, 8, (Range(0, 8),))
    assert delta == [1, 2]
    scene.train(8, 0.5, 0.25)
    assert scene.ledger.accept(MACHINE, [(0, 8)])
    scene.update(floats(4, 8), [piece.delta])
    assert scene.work.between(scene.tensors)
    assert scene.weights == [14.5, 28.25]
    assert scene.work.base == scene.base
    later, delta = scene.hand_in()
    assert (later.delta, later.round, later.ranges) == (piece.delta + 1, 1, (Range(8, 16),))
    assert delta == [0.5, 0.25]


def test_a_delta_that_is_late_waits_for_the_next_round(scene: Scene) -> None:
    scene.train(8, 1, 2)
    piece, _ = scene.hand_in()
    scene.update(floats(4, 8))
    assert scene.work.between(scene.tensors)
    assert scene.weights == [15, 30]
    scene.clock.go_on(60)
    scene.talk._heard = scene.clock()
    assert not scene.work.needs_tensors()
    assert scene.heard(DeltaPiece) == []
    scene.update(floats(1, 2), [piece.delta])
    scene.work.between(scene.tensors)
    assert scene.weights == [15, 30]
    assert scene.work.holdings.unmerged.size == 0


def test_the_first_rounds_go_without_compression_and_all_count_from_the_same_moment() -> None:
    scene = Scene(Settings(30.0, 1.0, 10.0, "int8", 1, "plain", 1.0, 0.0))
    scene.begin()
    scene.lease()
    scene.train(8, 1, 2)
    piece, _ = scene.hand_in()
    scene.clock.go_on(7)
    scene.update(floats(1, 2), [piece.delta])
    scene.work.between(scene.tensors)
    scene.train(8, 1, 2)
    scene.clock.go_on(29)
    assert not scene.work.needs_tensors()
    scene.clock.go_on(1)
    scene.talk._heard = scene.clock()
    scene.work.between(scene.tensors)
    (later,) = scene.heard(DeltaPiece)
    assert (piece.encoding, later.encoding) == ("fp32", "int8")


def test_who_is_about_to_hand_in_still_does_when_an_update_comes(scene: Scene) -> None:
    scene.train(8, 1, 2)
    scene.clock.go_on(30)
    scene.update(floats(1, 1))
    scene.work.between(scene.tensors)
    assert scene.work.delta is not None


def test_where_nothing_is_left_to_train_the_work_is_handed_in_at_once(scene: Scene) -> None:
    scene.train(80, 1, 2)
    assert not scene.work.needs_tensors()
    scene.work.idle = True
    assert scene.work.needs_tensors()
    scene.work.between(scene.tensors)
    assert len(scene.heard(DeltaPiece)) == 1


def test_an_update_that_was_missed_is_asked_for(scene: Scene) -> None:
    scene.tell(Peers(2, 16, (PEER,)))
    assert scene.heard(WeightsWanted) == []
    scene.clock.go_on(3)
    assert scene.heard(WeightsWanted) == [WeightsWanted(scene.base, "weights", 0)]


def test_an_update_that_does_not_follow_is_left_alone(scene: Scene) -> None:
    scene.round = 3
    scene.update(floats(4, 8))
    assert not scene.work.replica.needs_correction


def test_work_that_the_hub_could_not_take_is_dropped(scene: Scene) -> None:
    scene.train(8, 1, 2)
    scene.hand_in()
    scene.ledger.discard(MACHINE)
    scene.tell(GoAway("dropped", "its leases are gone"))
    (said,) = scene.listen()
    assert isinstance(said, Hello)
    assert scene.work.holdings.held == ()
    scene.train(8, 1, 1)
    scene.shared = floats(7, 7)
    scene.round = 4
    scene.welcome()
    assert scene.heard(WeightsWanted) == [WeightsWanted(None, "weights", 0)]
    scene.weigh()
    assert scene.work.between(scene.tensors)
    assert scene.weights == [7, 7]
    assert scene.work.base == scene.base


def test_work_of_which_it_knows_nothing_in_an_update_makes_it_begin_anew(scene: Scene) -> None:
    scene.train(8, 1, 2)
    scene.update(floats(4, 8), [77])
    assert scene.work.beginning
    assert scene.heard(WeightsWanted) == [WeightsWanted(None, "weights", 0)]


def test_at_the_end_the_weights_are_the_common_ones_bit_for_bit(scene: Scene) -> None:
    scene.train(8, 0.1, 0.2)
    piece, _ = scene.hand_in()
    scene.update(floats(0.3, 0.7), [piece.delta])
    scene.tell(Finished(scene.base))
    assert scene.work.finished
    assert scene.work.between(scene.tensors)
    assert scene.weights == [float(one) for one in scene.shared]
    assert not scene.work.needs_tensors()


# A connection that breaks


def test_a_delta_that_went_out_whole_goes_out_again_as_it_was(scene: Scene) -> None:
    scene.train(8, 1, 2)
    piece, _ = scene.hand_in()
    scene.talk.line_down()
    scene.train(8, 1, 2)
    scene.talk.line_up()
    (said,) = scene.listen()
    assert isinstance(said, Hello)
    assert said.base == scene.base
    scene.welcome()
    scene.payloads.clear()
    assert scene.heard(DeltaPiece) == [piece]
    assert delta_in(piece, scene.payloads) == [1, 2]


def test_a_delta_that_may_be_merged_already_waits_for_the_updates_that_were_missed(scene: Scene) -> None:
    scene.train(8, 1, 2)
    piece, _ = scene.hand_in()
    scene.talk.line_down()
    scene.talk.line_up()
    scene.listen()
    scene.welcome(replace(scene.base, round=1))
    assert scene.heard(DeltaPiece) == []
    scene.update(floats(1, 2), [piece.delta])
    assert scene.heard(DeltaPiece) == []
    assert scene.work.delta is None


def test_a_delta_that_went_out_in_part_is_replaced_by_a_newer_one(scene: Scene) -> None:
    scene.train(8, 1, 2)
    scene.clock.go_on(30)
    scene.full = True
    scene.work.between(scene.tensors)
    scene.listen()
    scene.talk.line_down()
    assert scene.work.delta is None
    scene.train(8, 1, 2)
    scene.full = False
    scene.talk.line_up()
    scene.listen()
    scene.welcome()
    piece, delta = scene.hand_in()
    assert (piece.ranges, delta) == ((Range(0, 16),), [2, 4])


def test_after_each_hello_it_asks_once_what_leads_on_from_its_weights(scene: Scene) -> None:
    scene.talk.line_down()
    scene.talk.line_up()
    scene.listen()
    scene.welcome()
    assert scene.heard(WeightsWanted) == [WeightsWanted(scene.base, "weights", 0)]
    scene.clock.go_on(5)
    assert scene.heard(WeightsWanted) == []


def test_weights_that_are_the_answer_make_it_begin_anew(scene: Scene) -> None:
    scene.train(8, 1, 2)
    scene.weigh(vector=floats(1, 1))  # not asked for
    assert not scene.work.beginning
    scene.talk.line_down()
    scene.talk.line_up()
    scene.listen()
    scene.welcome()
    scene.listen()
    scene.shared = floats(5, 6)
    scene.weigh()
    assert scene.work.between(scene.tensors)
    assert (scene.weights, scene.work.holdings.held) == ([5, 6], ())
    scene.weigh()  # once more
    assert not scene.work.beginning


# Alone


def go_alone(scene: Scene) -> None:
    scene.talk.line_down()
    scene.clock.go_on(SETTINGS.lost_after_seconds + 0.1)
    scene.listen()
    assert scene.work.lone is not None


def accept_alone(scene: Scene) -> None:
    scene.clock.go_on(30)
    scene.work.between(scene.tensors)


def test_a_machine_that_lost_the_hub_goes_on_alone(scene: Scene) -> None:
    scene.train(8, 1, 2)
    scene.talk.line_down()
    scene.clock.go_on(SETTINGS.lost_after_seconds - 0.1)
    scene.listen()
    assert not any(one["event"] == "member_alone" for one in scene.told)
    go_alone(scene)
    lone = scene.work.lone
    assert lone is not None
    accept_alone(scene)
    assert scene.work.base is not None
    assert (scene.work.base.accepted, scene.work.base.round) == (8, 1)
    assert scene.work.base.branch == lone.ledger.branch[0] != scene.ledger.branch[0]
    assert scene.weights == [11, 22]
    scene.train(80, 1, 1)
    lone.lease(scene.work.holdings, 8, 80.0, 1.0)
    assert scene.work.holdings.take(8) == [(80, 88)]
    assert lone.ledger.faults() == []


def test_a_machine_that_knows_no_ledger_waits_for_the_hub() -> None:
    scene = Scene()
    scene.talk.line_up()
    scene.welcome()
    scene.clock.go_on(100)
    scene.listen()
    assert scene.work.lone is None


def test_a_short_absence_leaves_no_trace(scene: Scene) -> None:
    scene.train(8, 1, 2)
    go_alone(scene)
    assert scene.work.lone is not None
    scene.work.lone.lease(scene.work.holdings, 8, 800.0, 1.0)
    scene.talk.line_up()
    (said,) = scene.listen()
    assert isinstance(said, Hello)
    assert said.base == scene.base
    scene.welcome()
    assert scene.work.base == scene.base
    assert scene.work.holdings.untaken == 72
    piece, delta = scene.hand_in()
    assert (piece.ranges, delta) == ((Range(0, 8),), [1, 2])


def test_an_absence_in_which_it_leased_to_itself_is_told(scene: Scene) -> None:
    scene.train(80, 1, 2)
    go_alone(scene)
    assert scene.work.lone is not None
    scene.work.lone.lease(scene.work.holdings, 8, 80.0, 1.0)
    assert scene.work.shown_base == scene.base
    scene.talk.line_up()
    scene.listen()
    scene.train(8, 1, 2)
    scene.welcome()
    (said,) = scene.heard(Hello)  # it has come further than it said when the connection stood
    assert said.base == scene.work.base != scene.base
    scene.welcome()
    assert len(scene.heard(LedgerTold)) == 1


def test_a_hub_that_froze_is_greeted_anew(scene: Scene) -> None:
    scene.clock.go_on(SETTINGS.lost_after_seconds + 1)
    assert scene.heard(Hello) == []
    assert scene.work.lone is not None
    scene.tell(Peers(0, 0, (PEER,)))
    assert len(scene.heard(Hello)) == 1
    scene.welcome()
    assert scene.work.lone is None


def meet_again(scene: Scene) -> Ledger:
    """Reconnect a lone machine; return the ledger that it tells."""
    scene.talk.line_up()
    scene.listen()
    scene.welcome()
    (told,) = scene.heard(LedgerTold)
    assert told.base == scene.work.base
    return ledger_of(told.ledger)


def test_the_side_that_has_come_less_far_takes_the_others_weights(scene: Scene) -> None:
    scene.train(8, 1, 2)
    go_alone(scene)
    accept_alone(scene)
    scene.ledger.lease("other", 8, 80.0, 1.0)
    scene.ledger.accept("other", [(80, 160)])
    scene.round, scene.shared = 5, floats(3, 4)
    absorb(scene.ledger, meet_again(scene))
    scene.tell_ledger()
    assert scene.told[-2:] == [
        {"event": "member_reunion", "winner": "hub", "discarded": 8},
        {"event": "member_begins_anew", "cause": "the other side had come further"},
    ]
    assert scene.heard(WeightsWanted) == [WeightsWanted(None, "weights", 0)]
    scene.weigh()
    assert scene.work.between(scene.tensors)
    assert (scene.weights, scene.work.base, scene.work.lone) == ([3, 4], scene.base, None)


def test_the_side_that_has_come_further_brings_its_weights_and_goes_on(scene: Scene) -> None:
    scene.train(8, 1, 2)
    go_alone(scene)
    accept_alone(scene)
    theirs, scene.ledger = scene.ledger, meet_again(scene)
    scene.train(8, 0.5, 0.5)
    assert scene.work.base is not None
    scene.tell(UploadWanted(scene.work.base))
    assert scene.work.needs_tensors()
    scene.work.between(scene.tensors)
    scene.payloads.clear()
    told, piece = [one for one in scene.listen() if isinstance(one, LedgerTold | UploadPiece)]
    assert isinstance(piece, UploadPiece)
    assert isinstance(told, LedgerTold)
    assert (told.base, told.base.accepted) == (piece.base, 16)
    assert delta_in(piece, scene.payloads) == [11.5, 22.5]
    scene.train(8, 1, 1)  # goes on meanwhile
    scene.ledger = ledger_of(told.ledger)
    absorb(scene.ledger, theirs)
    scene.ledger = fork(scene.ledger)
    scene.round = told.base.round
    scene.tell_ledger()
    assert (scene.work.lone, scene.work.base) == (None, scene.base)
    assert scene.weights == [12.5, 23.5]
    later, delta = scene.hand_in()
    assert (later.ranges, delta) == ((Range(16, 24),), [1, 1])
    assert scene.ledger.takes(MACHINE, [(16, 24)])


def test_a_hub_that_forgot_rounds_is_brought_up_to_date(scene: Scene) -> None:
    old = scene.ledger.copy()
    scene.train(8, 1, 2)
    piece, _ = scene.hand_in()
    scene.ledger.accept(MACHINE, [(0, 8)])
    scene.update(floats(1, 2), [piece.delta])
    scene.work.between(scene.tensors)
    scene.talk.line_down()
    scene.ledger, scene.round = fork(old), 0
    assert meet_again(scene).accepted == 8


def test_a_machine_of_another_cluster_begins_anew(scene: Scene) -> None:
    scene.talk.line_down()
    scene.talk.line_up()
    scene.listen()
    other = base_of(Ledger(TOTAL, EPOCH), 0)
    scene.welcome(type(other)("ffffffff", other.branch, 0, 0))
    assert scene.work.beginning


def test_a_machine_whose_work_was_refused_and_whose_hub_is_gone_goes_back_to_what_it_had(scene: Scene) -> None:
    scene.train(8, 1, 2)
    scene.tell(GoAway("dropped", ""))
    go_alone(scene)
    assert scene.work.between(scene.tensors)
    assert scene.weights == [10, 20]
    assert scene.work.holdings.untaken == 0
    assert scene.work.lone is not None
    scene.work.lone.lease(scene.work.holdings, 8, 80.0, 1.0)
    assert scene.work.holdings.take(8) == [(0, 8)]


def test_a_machine_that_was_in_goes_on_alone_where_another_run_s_hub_refuses_it(scene: Scene) -> None:
    scene.train(8, 1, 2)
    scene.tell(Refused("experiment", "aa", "bb", "the same preset"))
    assert scene.talk.trouble is None
    assert scene.work.lone is not None
    assert scene.told[-1]["event"] == "member_refused"


# Checkpoints


def test_a_checkpoint_fits_the_weights_that_are_not_corrected_yet(scene: Scene) -> None:
    scene.train(8, 1, 2)
    piece, _ = scene.hand_in()
    before = scene.base
    scene.ledger.accept(MACHINE, [(0, 8)])
    scene.update(floats(1, 2), [piece.delta])
    saved = scene.work.saved()
    assert (saved.base, saved.unmerged) == (before, ((0, 8),))
    scene.work.between(scene.tensors)
    saved = scene.work.saved()
    assert (saved.base, saved.unmerged) == (scene.base, ())


def test_a_machine_goes_on_from_its_checkpoint_without_the_hub(scene: Scene) -> None:
    scene.train(8, 1, 2)
    saved = scene.work.saved()
    other = Scene()
    other.tensors["weight"][:] = scene.tensors["weight"]
    other.work.resume_alone(saved, other.tensors)
    lone = other.work.lone
    assert lone is not None
    assert lone.ledger.accepted == 8
    assert other.work.holdings.untaken == 72
    assert other.work.base is not None
    assert (other.work.base.accepted, other.work.base.branch) == (8, lone.ledger.branch[0])
    again = Scene()
    other.train(72, 1, 1)
    again.tensors["weight"][:] = other.tensors["weight"]
    again.work.resume_alone(other.work.saved(), again.tensors)
    assert again.work.lone is not None
    assert again.work.lone.ledger.accepted == 80
    assert again.work.lone.ledger.faults() == []
