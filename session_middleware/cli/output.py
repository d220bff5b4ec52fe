"""Where a command writes: tables and colour by rich on a terminal, plain text elsewhere, or JSON.

Nothing is printed but through here, so that no text of a conversation reaches a terminal as it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click

from session_middleware.cli.text import json_text
from session_middleware.words import shown

STYLES = {
    "heading": "1",
    "dim": "2",
    "good": "32",
    "bad": "31",
    "attention": "33",
}
"""Names of styles, and the SGR code of each."""

_WIDEST = 60  # characters of a cell, where no terminal says how wide it is


class Output:
    """The standard output of one command.

    Args:
        as_json: write objects, one JSON text a line, instead of text for people.
        stream: where to; the standard output by default.
    """

    def __init__(self, as_json: bool = False, stream: TextIO | None = None) -> None:
        self.as_json = as_json
        self._stream = stream if stream is not None else sys.stdout
        self.terminal = self._stream.isatty()
        self._colour = self.terminal and not os.environ.get("NO_COLOR")

    def write(self, text: str = "", style: str = "", width: int | None = None) -> None:
        """Write one line for people; with ``--json`` nothing."""
        if not self.as_json:
            self._line(self.styled(shown(text, width), style))

    def value(self, value: Any) -> None:
        """Write one JSON value; only with ``--json``."""
        if self.as_json:
            self._line(json_text(value))

    def data(self, text: str) -> None:
        """Write a line that is data, whatever is asked for; the caller has made it harmless."""
        self._line(text)

    def styled(self, line: str, style: str) -> str:
        """The line in this style, where the output has colour."""
        if not style or not self._colour:
            return line
        return f"\x1b[{STYLES[style]}m{line}\x1b[0m"

    def _line(self, line: str) -> None:
        print(line, file=self._stream, flush=self.terminal)

    def flush(self) -> None:
        """Hand over everything that was written, or raise what keeps it from being."""
        self._stream.flush()

    def table(
        self,
        headings: Sequence[str],
        rows: Sequence[Sequence[object]],
        right: Sequence[str] = (),
        styles: Callable[[Sequence[str]], str] | None = None,
    ) -> None:
        """Write rows under headings.

        Args:
            right: headings of columns that are aligned to the right.
            styles: the style of a row of texts.
        """
        if self.as_json:
            return
        texts = [[shown(cell, None if self.terminal else _WIDEST) for cell in row] for row in rows]
        console = _console(self._stream) if self.terminal else None
        if console is not None:
            _rich_table(console, headings, texts, right, styles)
            return
        widths = [max(map(len, column)) for column in zip(headings, *texts, strict=True)]
        self._line(self.styled(_aligned(headings, widths, headings, right), "heading"))
        for row in texts:
            style = styles(row) if styles is not None else ""
            self._line(self.styled(_aligned(row, widths, headings, right), style))


def _aligned(
    row: Sequence[str], widths: Sequence[int], headings: Sequence[str], right: Sequence[str]
) -> str:
    cells = [
        cell.rjust(width) if heading in right else cell.ljust(width)
        for cell, width, heading in zip(row, widths, headings, strict=True)
    ]
    return "  ".join(cells).rstrip()


def _console(stream: TextIO) -> Any:
    """A console of rich, or None where it is not installed."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream, markup=False, emoji=False, highlight=False)


def _rich_table(
    console: Any,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[str],
    styles: Callable[[Sequence[str]], str] | None,
) -> None:
    from rich.table import Table
    from rich.text import Text

    known = {"heading": "bold", "dim": "dim", "good": "green", "bad": "red", "attention": "yellow"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(
            heading, justify="right" if heading in right else "left", overflow="ellipsis"
        )
    for row in rows:
        style = known.get(styles(row), "") if styles is not None else ""
        table.add_row(*(Text(cell, overflow="ellipsis") for cell in row), style=style)
    console.print(table)


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on the standard error for the block, which is given a function that advances it.

    It is shown only where that is a terminal and rich is installed.

    Args:
        total: how far it has to go; None where nobody knows.
    """
    console = _console(sys.stderr) if sys.stderr.isatty() else None
    if console is None:
        yield lambda done: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(shown(what), total=total)
        yield lambda done: bar.advance(task, done)


def confirm(question: str, yes: bool) -> None:
    """Ask before something is destroyed.

    Args:
        yes: it was answered on the command line.

    Raises:
        click.UsageError: there is no terminal to ask at.
        click.ClickException: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("pass --yes: without a terminal nobody can be asked.")
    if not click.confirm(shown(question), default=False, err=True):
        raise click.ClickException("nothing was changed")
