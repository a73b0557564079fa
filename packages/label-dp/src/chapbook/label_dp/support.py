"""The classes that a mechanism may answer with: the top k of a prior, and the best k.

Nothing here sees a label: the set that a record answers from is a function of its prior alone.

Blocks of records come in two layouts. With few classes a block is held classes by rows, so that
every operation runs over long rows of records, and a support is a table of booleans. With many
classes the prior is read in place, and a support is the sorted list of its few members.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from chapbook.core.errors import Error

SUM_TOLERANCE = 1e-6
# Up to this many classes the transposed layout is faster; its counts must fit a byte.
FEW_CLASSES = 48
# Of many classes: rows that are solved first, to find a value below which no other has members;
_SAMPLE_ROWS = 16
# classes above that value, beyond which a row is treated on its own;
_SLOTS = 48
# probabilities that stay in the second cache while their rows are read twice.
_CACHED_CELLS = 1 << 17


@dataclass(frozen=True, eq=False)
class FewClasses:
    """The members of each record's support among few classes.

    Attributes:
        members: Whether each class is a member.
        upto: How many members there are up to and with each class.
    """

    members: Bool[np.ndarray, "classes rows"]
    upto: UInt8[np.ndarray, "classes rows"]

    @classmethod
    def of(cls, members: Bool[np.ndarray, "classes rows"]) -> "FewClasses":
        """Returns the support that a table of members describes."""
        upto = members.astype(np.uint8)
        for before, after in pairwise(upto):
            after += before
        return cls(members, upto)

    def count(self) -> Int[np.ndarray, " rows"]:
        """Returns the number of members."""
        return self.upto[-1].astype(np.int32)

    def find(self, labels: Int[np.ndarray, " rows"]) -> tuple[np.ndarray, np.ndarray]:
        """Returns whether each label is a member, and how many members come before it."""
        place = labels * self.members.shape[1] + np.arange(len(labels))
        inside = self.members.reshape(-1)[place]
        return inside, self.upto.reshape(-1)[place] - inside

    def member(self, rank: Int[np.ndarray, " rows"]) -> UInt8[np.ndarray, " rows"]:
        """Returns the class of each record's rank-th member, from 0 in class order."""
        passed = self.upto <= rank.astype(np.uint8)
        return np.add.reduce(passed.view(np.uint8), axis=0, dtype=np.uint8)

    def mass(self, layout: Float[np.ndarray, "classes rows"]) -> Float[np.ndarray, " rows"]:
        """Returns the sum of the members' probabilities."""
        return np.where(self.members, layout, 0).sum(axis=0)

    def table(self) -> Bool[np.ndarray, "rows classes"]:
        """Returns whether each class is a member, rows by classes."""
        return self.members.T


@dataclass(frozen=True, eq=False)
class ManyClasses:
    """The members of each record's support among many classes.

    Attributes:
        flat: The members of all records, ascending: `row * classes + class`.
        counts: The number of members of each record.
        classes: The number of classes.
    """

    flat: Int[np.ndarray, " members"]
    counts: Int[np.ndarray, " rows"]
    classes: int

    @classmethod
    def of(cls, members: Bool[np.ndarray, "rows classes"]) -> "ManyClasses":
        """Returns the support that a table of members describes."""
        counts = np.count_nonzero(members, axis=1)
        return cls(np.flatnonzero(members), counts, members.shape[1])

    def count(self) -> Int[np.ndarray, " rows"]:
        """Returns the number of members."""
        return self.counts

    def find(self, labels: Int[np.ndarray, " rows"]) -> tuple[np.ndarray, np.ndarray]:
        """Returns whether each label is a member, and how many members come before it."""
        wanted = np.arange(len(labels)) * self.classes + labels
        place = np.searchsorted(self.flat, wanted)
        inside = np.take(self.flat, place, mode="clip") == wanted
        return inside, place - self._starts()

    def member(self, rank: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
        """Returns the class of each record's rank-th member, from 0 in class order."""
        rows = np.arange(len(rank))
        return self.flat[self._starts() + rank] - rows * self.classes

    def mass(self, layout: Float[np.ndarray, "rows classes"]) -> Float[np.ndarray, " rows"]:
        """Returns the sum of the members' probabilities."""
        return np.bincount(self.flat // self.classes, layout.reshape(-1)[self.flat], len(layout))

    def table(self) -> Bool[np.ndarray, "rows classes"]:
        """Returns whether each class is a member, rows by classes."""
        members = np.zeros((len(self.counts), self.classes), bool)
        members.reshape(-1)[self.flat] = True
        return members

    def _starts(self) -> np.ndarray:
        return np.cumsum(self.counts) - self.counts


@dataclass(frozen=True, eq=False)
class EveryClass:
    """The support of plain randomised response: every class, for every record.

    Attributes:
        classes: The number of classes.
        rows: The number of records.
    """

    classes: int
    rows: int

    def count(self) -> Int[np.ndarray, " rows"]:
        """Returns the number of members."""
        return np.full(self.rows, self.classes, np.int32)

    def find(self, labels: Int[np.ndarray, " rows"]) -> tuple[np.ndarray, np.ndarray]:
        """Returns that each label is a member, and how many members come before it."""
        return np.ones(len(labels), bool), labels

    def member(self, rank: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
        """Returns the class of each record's rank-th member, from 0 in class order."""
        return rank


Support = FewClasses | ManyClasses


def support_of(members: Bool[np.ndarray, "rows classes"]) -> Support:
    """Returns the support that a table of members, rows by classes, describes."""
    if members.shape[1] <= FEW_CLASSES:
        return FewClasses.of(np.ascontiguousarray(members.T))
    return ManyClasses.of(members)


def check_prior(prior: np.ndarray, num_classes: int) -> Float[np.ndarray, "rows classes"]:
    """Returns the prior as a floating-point matrix; its rows are checked block by block later.

    Raises:
        Error: If it is no matrix of `num_classes` columns of numbers.
    """
    prior = np.asarray(prior)
    if prior.ndim != 2 or prior.shape[1] != num_classes:
        shape = " x ".join(map(str, prior.shape)) or "a single number"
        raise Error(
            f"the prior is {shape}; it must have a row for each record and "
            f"{num_classes} columns, one for each class"
        )
    if prior.dtype not in (np.float32, np.float64):
        if prior.dtype.kind not in "fiub":
            raise Error(f"the prior holds {prior.dtype}; it must hold numbers")
        prior = prior.astype(np.float32 if prior.dtype == np.float16 else np.float64)
    return prior


def checked_rows(
    block: Float[np.ndarray, "rows classes"], first_row: int, *, normalize: bool
) -> Float[np.ndarray, "..."]:
    """Returns rows of a prior in the layout for their number of classes.

    Args:
        block: Rows of the prior.
        first_row: The number of the block's first row, for the error.
        normalize: Whether rows may have any positive sum, and are divided by it.

    Raises:
        Error: If a row is not finite, negative, or has a wrong sum; the first such is named.
    """
    few = block.shape[1] <= FEW_CLASSES
    layout = np.ascontiguousarray(block.T if few else block)
    with np.errstate(invalid="ignore", over="ignore"):
        sums = layout.sum(axis=0) if few else layout @ np.ones(block.shape[1], block.dtype)
        fine = (layout.min(axis=0 if few else 1) >= 0) & (np.abs(sums - 1) <= SUM_TOLERANCE / 2)
    return _mended(layout, np.flatnonzero(~fine), block, first_row, normalize)[0]


def _mended(
    layout: np.ndarray, doubtful: np.ndarray, block: np.ndarray, first_row: int, normalize: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the layout once doubtful rows have been found or made good, and those made good."""
    if not doubtful.size:  # nearly always
        return layout, doubtful
    rows = _checked_slowly(block[doubtful], first_row + doubtful, normalize)
    # Most were only summed too roughly: the float32 sum of a long row may err.
    changed = (rows != block[doubtful]).any(axis=1) | np.signbit(rows).any(axis=1)
    made, rows = doubtful[changed], rows[changed] + 0.0
    if made.size:
        few = block.shape[1] <= FEW_CLASSES
        layout = layout.copy()
        layout[(slice(None), made) if few else made] = rows.T if few else rows
    return layout, made


def _checked_slowly(rows: np.ndarray, numbers: np.ndarray, normalize: bool) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        sums = rows.sum(axis=1, dtype=np.float64)
    good_sums = (sums > 0) & (sums < np.inf) if normalize else np.abs(sums - 1) <= SUM_TOLERANCE
    fine = (rows.min(axis=1) >= 0) & good_sums
    if fine.all():
        return (rows / sums[:, None]).astype(rows.dtype) if normalize else rows
    bad = int(np.argmin(fine))
    row, total, name = rows[bad], sums[bad], f"prior row {numbers[bad]}"
    if not np.isfinite(row).all():
        raise Error(f"{name} holds a value that is not finite")
    if (row < 0).any():
        raise Error(f"{name} holds a negative value ({row.min():g})")
    if normalize:
        raise Error(f"{name} sums to {total:g}, so that it cannot be normalised")
    raise Error(f"{name} sums to {total:.9g}, not 1 (normalize=True divides by it)")


def optimal_support(
    block: Float[np.ndarray, "rows classes"],
    first_row: int,
    t: Float[np.ndarray, " rows"],
    *,
    normalize: bool,
) -> tuple[Support, Float[np.ndarray, "..."]]:
    """Returns the top-k* classes of each record: `{i : p_i > t w*}`, and always the top class.

    `w_k = (p_(1) + ... + p_(k)) / (1 + (k - 1) t)` is the probability of a true answer, and w* its
    maximum over k, reached first at k*. Each w_(k+1) is a weighted mean of w_k and p_(k+1) / t, so
    w rises exactly as long as p_(k+1) > t w_k, and never again afterwards because p_(k) falls.
    Hence the top k* are the classes with p_i > t w*: at k*, w* lies between w_(k*-1) and
    p_(k*) / t, and p_(k*+1) <= t w*. Equal probabilities therefore fall in or out together,
    except that for t = 1 the set would be empty and the first top class alone is taken.

    Few classes are sorted. Of many only the few above `t w` are looked at, for some w <= w*: they
    hold all members. For t = 0 (an infinite epsilon) every class is a member, so that the answer
    is the label itself.

    Args:
        block: Rows of the prior.
        first_row: The number of the block's first row, for the error.
        t: e^-eps of each record.
        normalize: Whether rows may have any positive sum, and are divided by it.

    Returns:
        The support, and the prior in the layout for its number of classes (see `checked_rows`).

    Raises:
        Error: If a row is not finite, negative, or has a wrong sum; the first such is named.

    Reference:
        Ghazi et al., Deep Learning with Label Differential Privacy, algorithm 3 and theorem 6.
    """
    if block.shape[1] > FEW_CLASSES:
        return _many_best(block, first_row, t, normalize)
    layout = checked_rows(block, first_row, normalize=normalize)
    return _few_best(layout, t), layout


def _few_best(prior: np.ndarray, t: np.ndarray) -> FewClasses:
    each = t.astype(prior.dtype)
    # One t for all needs one divisor for all.
    step = each[:1] if (each == each[0]).all() else each
    total, best, divisor = np.zeros_like(each), np.zeros_like(each), np.ones_like(step)
    ratio = np.empty_like(each)
    for column in _descending(prior):
        total += column
        np.maximum(best, np.divide(total, divisor, out=ratio), out=best)
        divisor += step
    np.multiply(best, step, out=best)
    members = prior > np.where(step == 0, -1, best)
    support = FewClasses.of(members)
    empty = np.flatnonzero(support.upto[-1] == 0)
    if not empty.size:
        return support
    members[prior[:, empty].argmax(axis=0), empty] = True
    return FewClasses.of(members)


def _descending(rows: np.ndarray) -> list[np.ndarray]:
    """Sorts every column: returns the rows of the sorted array, the largest values first.

    Batcher's merge exchange compares whole rows, in an order that does not depend on the values.

    Reference:
        Knuth, The Art of Computer Programming, volume 3, algorithm 5.2.2 M.
    """
    order, spare = list(rows.copy()), np.empty_like(rows[0])
    top = 1 << max(0, (len(order) - 1).bit_length() - 1)
    p = top
    while p:
        q, r, d = top, 0, p
        while True:
            for i in range(len(order) - d):
                if i & p == r:
                    high, low = order[i], order[i + d]
                    np.maximum(high, low, out=spare)
                    np.minimum(high, low, out=low)
                    order[i], spare = spare, high
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return order


def _many_best(
    block: np.ndarray, first_row: int, t: np.ndarray, normalize: bool
) -> tuple[ManyClasses, np.ndarray]:
    prior = np.ascontiguousarray(block)
    classes = prior.shape[1]
    start = _low_guess(prior, t)
    sums, cells, values = _cells_above(prior, float(t.min()) * start)
    with np.errstate(invalid="ignore"):
        fine = np.abs(sums - 1) <= SUM_TOLERANCE / 2
    fine[cells[~(values < np.inf) | np.signbit(values)] // classes] = False
    prior, made = _mended(prior, np.flatnonzero(~fine), block, first_row, normalize)
    # The cells of a record, side by side and filled up with zeros, are a prior on few classes.
    starts = np.searchsorted(cells, np.arange(0, prior.size + 1, classes))
    counts = np.diff(starts)
    slots = np.arange(min(_SLOTS, counts.max()))[:, None]
    table = np.append(values, np.zeros(len(slots), values.dtype)).take(starts[:-1] + slots)
    table[slots >= counts] = 0
    best, threshold, members = _fixed_point(table, t)
    # Where the guess was above w*, or the slots do not hold all cells, this was in vain.
    good = (best >= start) & (counts <= len(slots)) & (members > 0)
    good[made] = False
    threshold[~good] = np.inf
    flat = cells[values > np.repeat(threshold, counts)]
    again = np.flatnonzero(~good)
    if again.size:
        more = _rise(prior[again], t[again])
        flat = np.sort(np.append(flat, again[more // classes] * classes + more % classes))
        members[again] = np.bincount(more // classes, minlength=len(again))
    return ManyClasses(flat, members, classes), prior


def _fixed_point(table: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns w* of each record of a table, slots by rows, t w*, and how many slots exceed it.

    w* is the fixed point of `w -> sum_S p / (1 + (|S| - 1) t)`, `S = {i : p_i > t w}`: Dinkelbach's
    iteration, which from below rises to w* in a few steps. Each step drops classes for good, and
    the step that drops none has arrived.

    Reference:
        Dinkelbach, On Nonlinear Fractional Programming, 1967.
    """
    above, excess = np.empty(table.shape, bool), np.empty_like(table)
    threshold, best = np.zeros(len(t), table.dtype), table.sum(axis=0)
    found = table.size + 1
    while True:
        np.greater(table, threshold, out=above)
        members = np.add.reduce(above.view(np.uint8), axis=0, dtype=np.uint8)
        if (now := int(members.sum())) >= found:
            return best, threshold, members.astype(np.int32)
        found = now
        np.subtract(table, threshold, out=excess)
        total = np.maximum(excess, 0, out=excess).sum(axis=0) + members * threshold
        best = total / (1 + np.maximum(members, 1) * t - t)
        threshold = (t * best).astype(table.dtype)


def _low_guess(prior: np.ndarray, t: np.ndarray) -> float:
    """Returns a guess that is below w* for nearly all records, from a few that are sorted."""
    some = prior[:: -(-len(prior) // _SAMPLE_ROWS)]
    divisor = 1 + np.arange(prior.shape[1]) * t.max()
    with np.errstate(invalid="ignore", divide="ignore"):
        sums = np.sort(some, axis=1)[:, ::-1].cumsum(axis=1)
        lowest = (sums / sums[:, -1:] / divisor).max(axis=1).min()
    # No w* is below that of the uniform prior.
    return max(1 / divisor[-1], 0.8 * lowest) if lowest > 0 else 1 / divisor[-1]


def _cells_above(prior: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads a prior once: returns the sums of its rows, and its cells that are not below a value.

    A cell is `row * classes + class`. Read as unsigned integers, floats from 0 up are ordered as
    they are, and above them come infinity, NaN and all negatives: those are among the cells.

    Returns:
        The sums, the cells and the values in them.
    """
    rows, classes = prior.shape
    bits = np.dtype(f"u{prior.dtype.itemsize}")
    least = np.asarray(threshold, prior.dtype).view(bits)[()]
    ones, sums = np.ones(classes, prior.dtype), np.empty(rows, prior.dtype)
    size = max(1, _CACHED_CELLS // classes)
    # Looking at eight booleans as one word skips most of them at once.
    above = np.zeros(-(-size * classes // 8) * 8, bool)
    words, cells, values = above.view(np.uint64), [], []
    for first in range(0, rows, size):
        part = prior[first : first + size].reshape(-1)
        with np.errstate(invalid="ignore", over="ignore"):
            np.dot(prior[first : first + size], ones, out=sums[first : first + size])
        np.greater_equal(part.view(bits), least, out=above[: part.size])
        above[part.size :] = False
        word = np.flatnonzero(words != 0)
        within = np.flatnonzero(words[word].view(bool))
        found = word[within >> 3] * 8 + (within & 7)
        cells.append(found + first * classes)
        values.append(part.take(found))
    return sums, np.concatenate(cells), np.concatenate(values)


def _rise(prior: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Returns the members, `row * classes + class`, of any rows, by the same iteration."""
    rows, classes = prior.shape
    lower = np.maximum(prior.max(axis=1), 1 / (1 + (classes - 1) * t))
    threshold = np.where(t == 0, -1, t * lower).astype(prior.dtype)
    flat = np.flatnonzero(prior > threshold[:, None])
    values, row, found = prior.reshape(-1)[flat], flat // classes, -1
    while len(flat) != found:
        found = len(flat)
        count = np.bincount(row, minlength=rows)
        reached = np.bincount(row, values, rows) / (1 + np.maximum(count - 1, 0) * t)
        lower = np.maximum(lower, reached)
        threshold = np.where(t == 0, -1, t * lower).astype(prior.dtype)
        members = values > threshold[row]
        flat, values, row = flat[members], values[members], row[members]
    empty = np.flatnonzero(np.bincount(row, minlength=rows) == 0)
    return np.sort(np.append(flat, empty * classes + prior[empty].argmax(axis=1)))


def top_support(
    prior: Float[np.ndarray, "rows classes"], k: Int[np.ndarray, " rows"]
) -> Bool[np.ndarray, "rows classes"]:
    """Returns the k most probable classes of each record; of equals, those of smallest index."""
    rows = np.arange(len(prior))
    weakest = np.sort(prior, axis=1)[rows, prior.shape[1] - k][:, None]
    members = prior > weakest
    equal = prior == weakest
    room = (k - members.sum(axis=1))[:, None]
    return members | (equal & (equal.cumsum(axis=1) <= room))


def official_k(
    prior: Float[np.ndarray, "rows classes"], t: Float[np.ndarray, " rows"]
) -> Int[np.ndarray, " rows"]:
    """Returns the k of the published code, which divides `p_(1) + ... + p_(k)` by `1 + (k - 2) t`.

    It is as private as the best k and less often right: for comparison only.
    """
    k = np.arange(1, prior.shape[1] + 1)
    sums = np.sort(prior.astype(np.float64), axis=1)[:, ::-1].cumsum(axis=1)
    with np.errstate(divide="ignore"):
        scores = sums / (1 + (k - 2) * t[:, None])
    return scores.argmax(axis=1) + 1
