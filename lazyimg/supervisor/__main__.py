"""``python -I -S lazyimg/supervisor/__main__.py``: the supervisor, without site-packages' start."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(__file__.rpartition("/lazyimg/")[0])
    from lazyimg.supervisor.command import main

    sys.exit(main(sys.argv[1:]))
