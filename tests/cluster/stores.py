"""What ranks share, as a table in memory that can be gone."""

from __future__ import annotations

from lowmem_seq.cluster.table import Table, TableGone


class LosableTable(Table):
    """Answers until it is gone."""

    is_gone = False

    def _require(self) -> None:
        if self.is_gone:
            raise TableGone("Connection reset by peer")

    def set(self, key: str, value: str) -> None:
        self._require()
        super().set(key, value)

    def add(self, key: str, amount: int) -> int:
        self._require()
        return super().add(key, amount)
