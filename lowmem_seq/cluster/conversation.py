"""The thread in which a machine talks to the hub while another one trains, and the lock between the two.

Who trains holds `changed` while it looks at what both know (the work and the talk), and waits on it.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lowmem_seq.cluster.client_end import ClientEnd, Line
from lowmem_seq.cluster.frames import Received
from lowmem_seq.cluster.member_settings import MemberSettings
from lowmem_seq.cluster.member_talk import Talk
from lowmem_seq.cluster.member_work import Work
from lowmem_seq.cluster.messages import FromClient
from lowmem_seq.cluster.wire import Sent

LAST_WORDS_SECONDS = 5.0
"""For a leave to be said; it ends as soon as that is on its way."""
LOOK_SECONDS = 0.1
"""How often a thread that waits looks whether a stop is requested."""
Events = queue.SimpleQueue[dict[str, Any]]


class Conversation:
    """A machine's talk with the hub, once `dial` was called.

    Args:
        settings: where the hub is.
        talk: what is said and heard.
        work: what that is about.
        events: what happens, as the talk puts it there.
        tell: called with each event, from the thread that talks.
        say_state: has the talk know what the loop is at.
    """

    def __init__(
        self,
        settings: MemberSettings,
        talk: Talk,
        work: Work,
        events: Events,
        tell: Callable[[dict[str, Any]], None],
        say_state: Callable[[], None],
    ) -> None:
        self.changed = threading.Condition()
        """The lock; it is notified when something was heard."""
        self._settings, self._talk, self._work = settings, talk, work
        self._events, self._tell, self._say_state = events, tell, say_state
        self._end: ClientEnd | None = None
        self._thread = threading.Thread(target=self._run, name="member", daemon=True)
        self._ending = False
        self._last_words_until = 0.0

    @property
    def line_trouble(self) -> str:
        """Why there is no connection; empty where there is one."""
        return self._end.trouble if self._end is not None else ""

    @property
    def bytes_sent(self) -> int:
        """Of all messages, before encryption."""
        return self._end.bytes_sent if self._end is not None else 0

    @property
    def bytes_received(self) -> int:
        """Of all messages, after decryption."""
        return self._end.bytes_received if self._end is not None else 0

    def dial(self) -> None:
        """Begin, if that was not done yet."""
        if self._end is None:
            self._end = ClientEnd(self._settings.token, self._settings.address, self._settings.port)
            self._thread.start()

    def wake(self) -> None:
        """Have the thread see at once what has changed."""
        if self._end is not None:
            self._end.wake()

    def wait(self, ready: Callable[[], bool], timeout_seconds: float = math.inf) -> None:
        """Wait with the lock held until something is so, or the time is over.

        Raises:
            ClusterError: the hub refused this machine.
        """
        deadline = time.monotonic() + timeout_seconds
        while not ready() and (left := deadline - time.monotonic()) > 0:
            self.raise_trouble()
            self.changed.wait(min(left, LOOK_SECONDS))
        self.raise_trouble()

    def raise_trouble(self) -> None:
        """Raise what ended the talk, if anything did."""
        if self._talk.trouble is not None:
            raise self._talk.trouble

    def close(self) -> None:
        """End it, once the farewell is on its way, if there is one."""
        self._last_words_until = time.monotonic() + LAST_WORDS_SECONDS
        self._ending = True
        if self._thread.ident is not None:
            self.wake()
            self._thread.join()

    def _run(self) -> None:
        assert self._end is not None
        with self._end:
            try:
                self._converse(self._end)
            except Exception as error:
                with self.changed:
                    self._talk.trouble = error  # which the thread that trains raises
                    self.changed.notify_all()

    def _converse(self, end: ClientEnd) -> None:
        def post(message: FromClient, payloads: Sequence[bytes]) -> Sent:
            return end.send(message, payloads)

        wait_seconds = 0.0
        while True:
            heard = end.receive(wait_seconds)
            with self.changed:
                if heard is Line.UP:
                    self._talk.line_up()
                elif heard is Line.DOWN:
                    self._talk.line_down()
                elif isinstance(heard, Received):
                    self._talk.hear(heard.message, heard.payloads)
                update = self._talk.arrived()
            if update is not None:
                self._work.replica.receive(update.parcel, update.merged)  # without the lock: it takes a while
            with self.changed:
                if update is not None:
                    self._work.end_update(update)
                self._say_state()
                wait_seconds = self._talk.say(post)
                if heard is not None:
                    self.changed.notify_all()
                over = self._ending and (self._talk.farewell is None or time.monotonic() > self._last_words_until)
            while not self._events.empty():
                self._tell(self._events.get())
            if over:
                return
