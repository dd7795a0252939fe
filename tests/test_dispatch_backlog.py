"""Offline's one query in the Dispatcher: millions of integers, which become arrays piece by piece."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from orchestrator.dispatch import LONG, PIECE, Backlog, Dispatcher, Lump
from tests.test_dispatch import FIRST, MS, answer, dispatcher, issue, nothing_is_left, paced, whole

TIME_BUDGET_S = 5


class Ended(list[int]):
    """A list of which we hear when nobody holds it any more."""


@pytest.mark.parametrize("n", [LONG + 1, LONG + 7, LONG + PIECE])  # the last is of whole pieces
def test_a_lump_of_many_pieces_keeps_its_order_and_becomes_arrays_on_the_way(
    monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    made = [0]
    piece = Backlog.piece

    def counted(self: Backlog) -> Lump:
        made[0] += PIECE
        return piece(self)

    monkeypatch.setattr(Backlog, "piece", counted)
    d = Dispatcher([("node/0", paced(max_batch=3000))])
    ids, indices = list(range(FIRST, FIRST + n)), list(range(n))
    issue(d, n, 5)
    d.issue(Lump(ids, indices, 0))
    issue(d, n + 5, 5)
    order: list[int] = []
    while d.outstanding:
        for send in d.sends(0):
            order += send.indices.tolist()
            # Nobody makes more of the lists into arrays than the next frames need.
            assert made[0] - len(order) < PIECE
            done = d.answer(0, answer(whole(send), width=1), MS)
            assert done is not None and (done.ids - np.uint64(FIRST)).tolist() == send.indices.tolist()
    assert order == [*range(n, n + 5), *range(n), *range(n + 5, n + 10)] and made[0] == -(-n // PIECE) * PIECE
    assert nothing_is_left(d)


def test_a_later_query_of_many_pieces_is_not_kept() -> None:
    d = Dispatcher([("node/0", paced(max_batch=3000))])
    for first in range(0, 3 * (LONG + 1), LONG + 1):
        lists = Ended(range(first, first + LONG + 1)), Ended(range(LONG + 1))
        held = [weakref.ref(one) for one in lists]
        d.issue(Lump(*lists, 0))
        del lists
        while d.outstanding:
            for send in d.sends(0):
                d.answer(0, answer(whole(send), width=1), MS)
        # The first is: an Offline test has no other, and to free it takes long.
        assert [one() is not None for one in held] == [first == 0] * 2


def test_what_a_loss_moves_goes_before_the_rest_of_a_lump_of_many_pieces() -> None:
    d = dispatcher(2)
    issue(d, 0, LONG + 100)
    lost, kept = d.sends(0)
    d.lose(lost.worker, "cut", MS)
    d.answer(kept.worker, answer(whole(kept)), MS)
    assert d.sends(MS)[0].indices.tolist() == lost.indices.tolist()


def test_a_lump_that_is_not_long_waits_as_arrays() -> None:
    d, lists = dispatcher(2), (Ended(range(LONG)), Ended(range(LONG)))
    held = [weakref.ref(one) for one in lists]
    d.issue(Lump(*lists, 0))
    del lists
    assert [one() for one in held] == [None, None]
