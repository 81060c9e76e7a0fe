"""Lazy loading of container images: a node daemon, and the commands that talk to it."""

from __future__ import annotations

__version__ = "0.1.0"
