"""The command line: ``session-middleware``."""

from session_middleware.cli.commands import main

__all__ = ["main"]
