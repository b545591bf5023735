"""Where things are said: results on stdout; progress, notes and errors on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from ..errors import one_line


def say_notes(notes: Iterable[str]) -> None:
    """One line each, beside the results."""
    for note in notes:
        print(f"note: {one_line(note)}", file=sys.stderr)


def say_error(message: str) -> None:
    """One line, whatever the message holds."""
    print(f"error: {' '.join(one_line(message).split())}", file=sys.stderr)


def print_table(title: str, columns: list[str], rows: list[list[str]], right: Iterable[int] = ()) -> None:
    """A table on stdout. right: the numbers of the columns that hold figures."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for number, name in enumerate(columns):
        figure = number in set(right)
        table.add_column(name, justify="right" if figure else "left", no_wrap=figure or number == 0)
    for row in rows:
        table.add_row(*(_plain(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 150, highlight=False).print(table)


def _plain(text: str) -> str:
    """Brackets are ours, not markup."""
    from rich.markup import escape

    return escape(text)
