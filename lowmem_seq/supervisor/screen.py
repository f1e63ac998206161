"""What a session says to whoever shows it."""

from __future__ import annotations

from typing import Protocol

from lowmem_seq.supervisor.child import Message


class Screen(Protocol):
    """Where a session is shown."""

    def show(self, message: Message) -> None:
        """Show what a child said."""

    def show_memory(self, tree: int, peak: int, cap: int) -> None:
        """Show what the process tree holds, its peak, and its cap, all in bytes."""

    def show_stopping(self) -> None:
        """Show that the stop that was asked for is under way."""
