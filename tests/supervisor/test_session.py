"""The order in which a session begins."""

from __future__ import annotations

import pytest

from lowmem_seq.errors import ClusterError
from lowmem_seq.memory.plan import Plan
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor import session
from tests.builders import tiny_plan
from tests.supervisor.lives import Screen, Stops


class Others:
    """Notes what is asked of it; says that nobody came, where a test wants that."""

    def __init__(self, done: list[str], come: bool) -> None:
        self._done, self._come = done, come

    def knock(self) -> None:
        self._done.append("knock")
        if not self._come:
            raise ClusterError("nobody came", "wait")

    def open(self) -> None:
        self._done.append("open")

    def wait(self) -> None:
        self._done.append("wait")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done, in its order; packing and measuring take no time."""
    done: list[str] = []
    monkeypatch.setattr(session, "prepare_data", lambda *_: done.append("data"))

    def plan(*_: object) -> Plan:
        done.append("plan")
        return tiny_plan()

    monkeypatch.setattr(session, "read_or_make_plan", plan)
    return done


def test_the_others_are_there_before_anything_takes_time_and_are_waited_for_at_the_end(
    run: RunFolder, done: list[str]
) -> None:
    def take_up() -> None:
        done.append("take up")

    plan = session.prepare(run, run.config, Screen(), Stops(), False, Others(done, come=True), take_up)
    assert plan == tiny_plan()
    assert done == ["knock", "take up", "data", "open", "plan", "wait"]


def test_where_the_others_do_not_come_nothing_is_done_and_the_events_say_why(
    run: RunFolder, done: list[str]
) -> None:
    with pytest.raises(ClusterError, match="nobody came"):
        session.prepare(run, run.config, Screen(), Stops(), False, Others(done, come=False))
    assert done == ["knock"]
    assert [event["cause"] for event in run.events if event["event"] == "session_ended"] == ["nobody came"]
