"""What one of several users of something limited may hold: never all of it.

Who asks a host that hangs holds what it has for long, and would soon have everything. So a user may
hold three quarters of what others leave: the next one finds a quarter, and the one after that a
quarter of it. Whoever holds nothing may always take what is free.
"""

from __future__ import annotations


def share_of(limit: int, held_by_others: int) -> int:
    """Give how much one user may hold, of `limit` in all."""
    return -(-(limit - held_by_others) * 3 // 4)


def may_take(wanted: int, limit: int, own: int, held: int) -> bool:
    """Tell whether a user may take more, if there is so much.

    Args:
        wanted: how much more.
        limit: what there is in all.
        own: what this user holds.
        held: what all hold, this one among them.
    """
    return not own or own + wanted <= share_of(limit, held - own)
