"""One step of the student from a batch that goes through its network level by level."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from .method import Part
from .roles import STUDENT
from .times import Group


def student_parts(groups: Sequence[Group], loss: Callable[[Group], Tensor]) -> Iterator[Part]:
    """Parts whose sum is the mean of the loss over all rows, the last of which steps.

    loss: the mean over a group's rows, called only when the part before has been differentiated.
    """
    count = sum(len(group.rows) for group in groups)
    for number, group in enumerate(groups, start=1):
        yield Part(loss(group) * (len(group.rows) / count), number == len(groups), STUDENT)
