"""What ranks share, as a table in memory; torch's TCPStore in its place."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class Table:
    """A store that can be gone."""

    texts: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    is_gone: bool = False
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def _require(self) -> None:
        if self.is_gone:
            raise RuntimeError("Connection reset by peer")

    def set(self, key: str, value: str) -> None:
        self._require()
        self.texts[key] = value

    def get(self, key: str) -> bytes:
        self._require()
        return self.texts[key].encode()

    def add(self, key: str, amount: int) -> int:
        self._require()
        with self.mutex:
            self.counts[key] = self.counts.get(key, 0) + amount
            return self.counts[key]

    def check(self, keys: list[str]) -> bool:
        self._require()
        return all(key in self.texts or key in self.counts for key in keys)
