"""Children of a test that forks do no more than what they were made for."""

from __future__ import annotations

import gc
import os


def test_no_garbage_is_collected_in_a_child() -> None:
    """It may be a channel of gRPC, which would wait for ever for threads that the child lacks."""
    assert gc.isenabled()
    child = os.fork()
    if child == 0:
        os._exit(gc.isenabled())
    assert os.waitpid(child, 0) == (child, 0)
    assert gc.isenabled()
