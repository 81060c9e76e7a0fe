"""Fuzz one parser: `python -m tests.fuzz.run TARGET [--minutes N]` (scripts/fuzz).

libFuzzer by way of atheris, which follows the branches that are taken in the project's Python. A
finding ends the run with its traceback and leaves the input in a file that it names.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import atheris

MAX_SIZE = 1 << 16  # bytes of an input
SLOWEST = 20  # seconds for one input, with 20 of instrumentation's slowness in it
MEMORY = 1024  # MiB

with atheris.instrument_imports(include=["lazyimg", "lazyimg_formats", "construct"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Fuzz one parser.")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--minutes", type=float, default=10, help="default: 10")
    parser.add_argument(
        "--corpus", type=Path, default=Path(".fuzz"), help="inputs are kept in TARGET below it"
    )
    options = parser.parse_args()
    target = TARGETS[options.target]
    corpus = options.corpus / options.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    arguments = [
        sys.argv[0],
        f"-max_total_time={max(1, round(options.minutes * 60))}",
        *(f"-max_len={MAX_SIZE}", f"-timeout={SLOWEST}", f"-rss_limit_mb={MEMORY}"),
        *("-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={corpus}-"),
        str(corpus),
    ]
    atheris.Setup(arguments, target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
