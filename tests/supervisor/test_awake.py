from __future__ import annotations

import sys

import pytest

from lowmem_seq.supervisor.awake import SESSION_BUS, SystemWakefulness, why_not


@pytest.fixture
def desktop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A desktop that takes the wish: wakepy's own pretence, for tests of programs that use it."""
    monkeypatch.setenv(SESSION_BUS, "unix:path=/nowhere")
    monkeypatch.setenv("WAKEPY_FAKE_SUCCESS", "1")


@pytest.mark.usefixtures("desktop")
def test_the_system_is_asked_and_asked_no_more() -> None:
    from wakepy import global_modes

    wakefulness = SystemWakefulness()
    assert wakefulness.hold() == "WakepyFakeSuccess"
    assert wakefulness.hold() == "WakepyFakeSuccess"
    assert len(global_modes()) == 1
    wakefulness.let_go()
    wakefulness.let_go()
    assert global_modes() == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no desktop's session is needed")
@pytest.mark.parametrize("bus", [None, "unix:path=/nowhere"])
def test_without_a_desktop_s_session_a_machine_can_t_be_kept_awake(
    monkeypatch: pytest.MonkeyPatch, bus: str | None
) -> None:
    monkeypatch.delenv("WAKEPY_FAKE_SUCCESS", raising=False)
    monkeypatch.delenv(SESSION_BUS, raising=False)
    if bus is not None:
        monkeypatch.setenv(SESSION_BUS, bus)
    assert SystemWakefulness().hold() is None


@pytest.mark.parametrize(
    ("platform", "words"),
    [("linux", "D-Bus"), ("darwin", "caffeinate"), ("win32", "SetThread"), ("plan9", "not known")],
)
def test_why_it_can_t_is_told_for_each_system(platform: str, words: str) -> None:
    assert words in why_not(platform)
