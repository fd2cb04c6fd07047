"""The console that the commands print to."""

from __future__ import annotations

from rich.console import Console

_PIPE_WIDTH = 120


def wide_console() -> Console:
    """A console as wide as the terminal; wide enough for a table where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, _PIPE_WIDTH))
