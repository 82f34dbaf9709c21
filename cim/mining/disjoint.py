"""The best disjoint regions for given places: weighted set packing on the table of which regions are apart.

A photo of three dogs shows three regions that share hardly a pixel. Which three is a small exact search: some dozen
good candidates, as many slots as instances, and a bound that cuts most of the tree.
"""

from __future__ import annotations

import numpy as np

STEPS = 20_000  # of the search; beyond, the best set found so far counts


def best_disjoint(values: np.ndarray, apart: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """One candidate for every slot, no two of them in each other's way: as many slots as can be filled, and of those
    sets the one of the highest sum of values.

    Args:
        values: floating [S, K], what each of K candidates is worth in each of S slots; not above 0: it may not stand
            there. Slots with equal rows should be neighbours: of their permutations only one is looked at.
        apart: bool [K, K], symmetric, whether two candidates may stand together; the diagonal does not matter.
        steps: candidates looked at before the best set so far is taken.

    Returns:
        int64 [S], the candidate of each slot, -1 where none is left.
    """
    slots, count = values.shape
    if not slots or not count:
        return np.full(slots, -1, np.int64)
    search = _Search(values, apart & ~np.eye(count, dtype=bool), steps)
    search.fill(0, 0, (1 << count) - 1, 0.0)
    return np.array(search.best, np.int64)


class _Search:
    """Depth first, best candidate first; filled slots count more than any sum of values."""

    def __init__(self, values: np.ndarray, apart: np.ndarray, steps: int) -> None:
        self.count, self.steps = len(values), steps
        filled = float(np.maximum(values, 0).max(1).sum()) + 1.0  # what filling a slot adds to its value
        orders = [[int(k) for k in np.argsort(-row, kind="stable") if row[k] > 0] for row in values]
        self.orders = [[(k, float(row[k]) + filled) for k in order] for row, order in zip(values, orders)]
        self.friends = [sum(1 << int(other) for other in np.flatnonzero(row)) for row in apart]
        self.same = [s > 0 and bool((values[s] == values[s - 1]).all()) for s in range(self.count)]
        self.best, self.best_value = [-1] * self.count, -1.0
        self.chosen = [-1] * self.count

    def fill(self, slot: int, start: int, allowed: int, value: float) -> None:
        """Try the candidates of ``slot``, from place ``start`` of its order, among the bits of ``allowed``."""
        if slot == self.count:
            if value > self.best_value:
                self.best, self.best_value = list(self.chosen), value
            return
        if value + self._most(slot, start, allowed) <= self.best_value:
            return
        for place in range(start, len(self.orders[slot])):
            candidate, worth = self.orders[slot][place]
            if not allowed >> candidate & 1:
                continue
            if self.steps <= 0:
                break
            self.steps -= 1
            if value + self._most(slot, place, allowed) <= self.best_value:
                break
            self.chosen[slot] = candidate
            follows = slot + 1 < self.count and self.same[slot + 1]
            self.fill(slot + 1, place + 1 if follows else 0, allowed & self.friends[candidate], value + worth)
        self.chosen[slot] = -1
        after = slot + 1
        while after < self.count and self.same[after]:  # equal slots: if this one stays empty, so do the next
            after += 1
        self.fill(after, 0, allowed, value)

    def _most(self, slot: int, start: int, allowed: int) -> float:
        """No set of candidates for the slots from ``slot`` on is worth more."""
        total, place = 0.0, start
        for number in range(slot, self.count):
            if number > slot and not self.same[number]:
                place = 0
            order = self.orders[number]
            while place < len(order) and not allowed >> order[place][0] & 1:
                place += 1
            if place < len(order):
                total += order[place][1]
                place += 1
        return total
