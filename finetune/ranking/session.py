"""A ranking from its first question to its last, which any interruption leaves whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ...errors import UsageError
from .drawing import Draw
from .files import Ranking, Stop, Wish, begin, keep_picture, note_answer, read_state, write_results, write_state
from .question import Answer, Question, Ranker
from .rank_sgd import RankSGD


def rank(draw: Draw, start: Tensor, wish: Wish, folder: Path, ranker: Ranker, rounds: int = 10) -> Ranking:
    """Ask `ranker` until so many rounds are done or it wants to stop; go on from `folder` where it was interrupted.

    draw: latents (B, C, h, w) -> pictures (B, 3, H, W), without randomness of its own. start: (C, h, w), unit variance.
    Everything that was answered is on the disk before the next question, so Ctrl-C loses nothing. Raises UsageError for
    a folder that holds another ranking.
    """
    if rounds < 1:
        raise UsageError(f"{rounds} rounds ask nothing; give at least 1")
    ranking = read_state(folder, wish)
    if ranking is None:
        ranking = Ranking(wish.method.begin(start, wish.seed), (Stop(start, 0),), 1)
        begin(folder, wish, ranking, draw(start[None]))
    else:
        write_results(folder, wish, ranking)  # an interruption may have come before they were
    while ranking.state.round < rounds:
        state = ranking.state
        pictures = draw(state.candidates)
        question = Question(pictures, wish.drawing.prompt, state.mode, wish.method.most(state), state.round, rounds)
        answer = ranker(question)
        if answer is None:
            break
        ranking = _answered(ranking, wish, folder, question, answer)
    return ranking


def _answered(ranking: Ranking, wish: Wish, folder: Path, question: Question, answer: Answer) -> Ranking:
    after = moved(ranking, wish.method, question, answer)
    new = len(after.way) > len(ranking.way)
    if new:
        keep_picture(folder, after.way[-1].round, question.pictures[answer.order[0]][None])
    note_answer(folder, ranking, answer)
    write_state(folder, wish, after)
    if question.picks:
        write_results(folder, wish, after)
    return after


def moved(ranking: Ranking, method: RankSGD, question: Question, answer: Answer) -> Ranking:
    """The ranking after an answer."""
    state, way = method.tell(ranking.state, answer.order), ranking.way
    if question.picks:
        pick, scores = answer.order[0], answer.scores
        if scores and way[-1].score is None:  # the first picture stands in the first search
            way = (*way[:-1], replace(way[-1], score=scores[0]))
        if pick:
            way = (*way, Stop(state.x, state.round, scores[pick] if scores else None))
    return Ranking(state, way, ranking.drawn + len(question.pictures))
