from __future__ import annotations

import io
import os
import sys
import types

import pytest

from lowmem_seq.cli.keys import keyboard


def test_what_is_no_terminal_has_no_keys() -> None:
    with keyboard(io.StringIO("q")) as wait:
        assert wait is None


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
def test_a_key_is_heard_at_once_and_the_terminal_is_as_it_was_afterwards() -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with os.fdopen(theirs, "r") as stream:
        with keyboard(stream) as wait:
            assert wait is not None
            assert wait(0.01) == ""
            os.write(ours, b"q")
            assert wait(5.0) == "q"
        assert termios.tcgetattr(theirs) == before
    os.close(ours)


class TerminalOfWindows(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_windows_is_asked_for_keys_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def kbhit() -> bool:
        asked.append(True)
        return len(asked) == 3

    console = types.SimpleNamespace(kbhit=kbhit, getwch=lambda: "q")
    monkeypatch.setitem(sys.modules, "msvcrt", console)
    monkeypatch.setattr(sys, "platform", "win32")
    with keyboard(TerminalOfWindows()) as wait:
        assert wait is not None
        assert wait(5.0) == "q"
        assert len(asked) == 3
        assert wait(0.0) == ""
