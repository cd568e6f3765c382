"""What other processes touched: rows that a client leaves and the engine's watcher reads."""

from __future__ import annotations

from durable.store.tx import Tx


def after(tx: Tx, seq: int) -> tuple[int, list[str]]:
    """The keys touched since row `seq`, and the last row's number."""
    rows = tx.rows(
        "SELECT seq, key FROM durable_signal WHERE seq > :seq ORDER BY seq", {"seq": seq}
    )
    return (rows[-1]["seq"] if rows else seq), [row["key"] for row in rows]


def forget(tx: Tx, seq: int) -> None:
    """Drop the rows up to `seq`: the engine has seen them."""
    tx.execute("DELETE FROM durable_signal WHERE seq <= :seq", {"seq": seq})


def last(tx: Tx) -> int:
    """The number of the newest row; 0 where there is none."""
    row = tx.row("SELECT coalesce(max(seq), 0) AS last FROM durable_signal", {})
    assert row is not None
    return int(row["last"])
