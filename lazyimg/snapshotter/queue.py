"""Which images are to be completed, and what must not be used: the SQL of `records`.

An image is completed in the background, after its first container: the queue has its lowest layers,
as many as are shown for that container. It leaves the queue with the last snapshot that shows them.

What a remote snapshot shows is quarantined when it is not what its image says. The snapshot stays,
and so does what runs on it; but nothing new may stand on it, and it says no more which chain it is:
the label `lifecycle.REF` goes, so that the next image with this chain does not find it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lazyimg.snapshotter.lifecycle import REF, Quarantined, RemoteLayer

if TYPE_CHECKING:
    import sqlite3

STEP: Final = """
CREATE TABLE completion (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- in the order of first containers
    reference TEXT NOT NULL,     -- of the image, with its manifest's digest
    platform TEXT NOT NULL,
    depth INTEGER NOT NULL,      -- how many of the image's layers
    done INTEGER NOT NULL DEFAULT 0,
    UNIQUE (reference, platform, depth)
) STRICT;
ALTER TABLE remote ADD COLUMN    -- why it must not be used
    problem TEXT NOT NULL DEFAULT '';
"""
"""What makes the tables."""


@dataclass(frozen=True, slots=True)
class Pending:
    """Layers that are to be completed: `RemoteLayer` without the chain, and its place."""

    number: int
    reference: str
    platform: str
    depth: int


def enqueue(db: sqlite3.Connection, remote: RemoteLayer) -> None:
    """Have layers completed, unless they are in the queue, or were."""
    db.execute(
        "INSERT INTO completion (reference, platform, depth) VALUES (?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        (remote.reference, remote.platform, remote.depth),
    )


def drop_unused(db: sqlite3.Connection, remote: RemoteLayer) -> None:
    """Forget layers that no snapshot shows any more."""
    db.execute(
        "DELETE FROM completion WHERE reference = ? AND platform = ? AND depth = ? AND NOT EXISTS"
        " (SELECT 1 FROM remote WHERE remote.reference = completion.reference"
        " AND remote.platform = completion.platform AND remote.depth = completion.depth)",
        (remote.reference, remote.platform, remote.depth),
    )


def list_pending(db: sqlite3.Connection) -> list[Pending]:
    """Give what is to be completed, in its order."""
    rows: list[tuple[Any, ...]] = db.execute(
        "SELECT number, reference, platform, depth FROM completion WHERE NOT done ORDER BY number"
    ).fetchall()
    return [Pending(*row) for row in rows]


def quarantine(db: sqlite3.Connection, image: Pending, depth: int, problem: str) -> list[str]:
    """Have nobody use what shows an image's layers from the `depth`th up; gives their chains."""
    rows = db.execute(
        "SELECT number, labels, chain FROM snapshot JOIN remote USING (number)"
        " WHERE reference = ? AND platform = ? AND depth >= ? ORDER BY depth",
        (image.reference, image.platform, depth),
    ).fetchall()
    for number, text, _ in rows:
        labels = json.loads(text)
        labels.pop(REF, None)
        db.execute(
            "UPDATE snapshot SET labels = ?, ref = NULL WHERE number = ?",
            (json.dumps(labels), number),
        )
        db.execute("UPDATE remote SET problem = ? WHERE number = ?", (problem, number))
    db.execute(
        "DELETE FROM completion WHERE reference = ? AND platform = ? AND depth >= ?",
        (image.reference, image.platform, depth),
    )
    return list(dict.fromkeys(chain for _, _, chain in rows))


def list_quarantined(db: sqlite3.Connection) -> list[Quarantined]:
    """Give what must not be used."""
    rows = db.execute(
        "SELECT chain, reference, platform, depth, problem FROM remote WHERE problem != ''"
        " ORDER BY number"
    ).fetchall()
    return [Quarantined(RemoteLayer(*remote), problem) for *remote, problem in rows]
