"""A person who ranks in the terminal: the pictures in a numbered sheet, the order typed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import UsageError
from ...storage import disk_errors, whole
from .question import Answer, Question, labels
from .rank_sgd import check_order
from .sheets import sheet_of

SHEET = "question.png"


@dataclass(frozen=True, eq=False)
class InTerminal:
    """folder: where the sheet `question.png` is written. read: shows a text and gives the line that was typed."""

    folder: Path
    read: Callable[[str], str] = lambda shown: input(shown)
    say: Callable[[str], None] = print

    def __call__(self, question: Question) -> Answer | None:
        """The order that was typed; asks again until it is one. None for "q" or at the end of the input."""
        with disk_errors(self.folder), whole(self.folder / SHEET) as part:
            sheet_of(question.pictures, labels(len(question.pictures))).save(part, format="PNG")
        self.say(f"{question.text} ({self.folder / SHEET})")
        while True:
            try:
                typed = self.read("the number of the best: " if question.picks else "numbers such as 3 1 5, or q: ")
            except EOFError:
                return None
            if typed.strip().lower() in ("q", "quit"):
                return None
            try:
                return Answer(order_in(typed, question))
            except UsageError as error:
                self.say(str(error))


def order_in(typed: str, question: Question) -> tuple[int, ...]:
    """ "3 1 5" or "3,1,5" as (2, 0, 4). Raises UsageError for what is no answer to the question."""
    pieces = [piece for piece in re.split(r"[\s,>]+", typed.strip()) if piece]
    wrong = next((piece for piece in pieces if not re.fullmatch(r"[0-9]{1,6}", piece)), None)
    if wrong is not None:
        raise UsageError(f"{wrong!r} is no number; type numbers of pictures such as 3 1 5, or q to stop")
    order = tuple(int(piece) - 1 for piece in pieces)
    check_order(order, len(question.pictures))
    if len(order) > question.most:
        wanted = "one picture" if question.most == 1 else f"at most {question.most} pictures"
        raise UsageError(f"{len(order)} pictures were named; name {wanted}")
    return order
