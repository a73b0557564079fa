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
# Rows of a block that are solved first, to start the others near their solution.
_SAMPLE_ROWS = 8


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
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, " rows"]]:
    """Returns rows of a prior in the layout for their number of classes, and their largest values.

    Args:
        block: Rows of the prior.
        first_row: The number of the block's first row, for the error.
        normalize: Whether rows may have any positive sum, and are divided by it.

    Raises:
        Error: If a row is not finite, negative, or has a wrong sum; the first such is named.
    """
    few = block.shape[1] <= FEW_CLASSES
    with np.errstate(invalid="ignore", over="ignore"):
        if few:
            layout = np.ascontiguousarray(block.T)
            top, fine = layout.max(axis=0), layout.min(axis=0) >= 0
            sums = layout.sum(axis=0)
        else:
            layout = np.ascontiguousarray(block)
            # Read as unsigned integers, floats from 0 up are ordered as they are, and above them
            # come infinity, NaN and all negatives: one pass finds the largest and the faults.
            bits = np.dtype(f"u{block.dtype.itemsize}")
            top = layout.view(bits).max(axis=1).view(block.dtype)
            fine = top >= 0
            sums = layout @ np.ones(block.shape[1], block.dtype)  # BLAS is as fast as memory
        fine &= np.abs(sums - 1) <= SUM_TOLERANCE / 2
    doubtful = np.flatnonzero(~fine)
    if doubtful.size:  # or only summed too roughly: the float32 sum of a long row may err
        rows = _checked_slowly(block[doubtful], first_row + doubtful, normalize)
        top[doubtful] = rows.max(axis=1)
        if not np.array_equal(rows, block[doubtful]) or np.signbit(rows).any():
            layout = layout.copy()
            layout[(slice(None), doubtful) if few else doubtful] = (rows.T if few else rows) + 0.0
    return layout, top


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
    layout: Float[np.ndarray, "..."],
    top: Float[np.ndarray, " rows"],
    t: Float[np.ndarray, " rows"],
    num_classes: int,
) -> Support:
    """Returns the top-k* classes of each record: `{i : p_i > t w*}`, and always the top class.

    `w_k = (p_(1) + ... + p_(k)) / (1 + (k - 1) t)` is the probability of a true answer, and w* its
    maximum over k, reached first at k*. Each w_(k+1) is a weighted mean of w_k and p_(k+1) / t, so
    w rises exactly as long as p_(k+1) > t w_k, and never again afterwards because p_(k) falls.
    Hence the top k* are the classes with p_i > t w*: at k*, w* lies between w_(k*-1) and
    p_(k*) / t, and p_(k*+1) <= t w*. Equal probabilities therefore fall in or out together,
    except that for t = 1 the set would be empty and the first top class alone is taken.

    Few classes are sorted. For many, w* is the fixed point of `w -> sum_S p / (1 + (|S| - 1) t)`,
    `S = {i : p_i > t w}`: Dinkelbach's iteration, which from below rises to w* in a few steps. Each
    step drops classes for good, and the step that drops none has arrived. For t = 0 (an infinite
    epsilon) every class is a member, so that the answer is the label itself.

    Args:
        layout: Probabilities in the layout for their number of classes (see `checked_rows`).
        top: The largest probability of each record.
        t: e^-eps of each record.
        num_classes: The number of classes, which says what the layout is.

    Reference:
        Ghazi et al., Deep Learning with Label Differential Privacy, algorithm 3 and theorem 6;
        Dinkelbach, On Nonlinear Fractional Programming, 1967.
    """
    best = _few_best if num_classes <= FEW_CLASSES else _many_best
    return best(layout, top, t)


def _few_best(prior: np.ndarray, top: np.ndarray, t: np.ndarray) -> FewClasses:
    t = t.astype(prior.dtype)
    total, divisor, best = np.zeros_like(top), np.ones_like(top), np.zeros_like(top)
    for column in _descending(prior):
        total += column
        np.maximum(best, total / divisor, out=best)
        divisor += t
    members = prior > np.where(t == 0, -1, t * best)
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


def _many_best(prior: np.ndarray, top: np.ndarray, t: np.ndarray) -> ManyClasses:
    rows, classes = prior.shape
    lower = np.maximum(top, 1 / (1 + (classes - 1) * t))
    # Starting near w* spares most of the work. The start of a row is a guess from a few rows that
    # are sorted; one that was too high is seen, because the iteration only rises from below w*.
    few = slice(0, _SAMPLE_ROWS)
    sums = np.sort(prior[few], axis=1)[:, ::-1].cumsum(axis=1)
    best = (sums / (1 + np.arange(classes) * t[few, None])).max(axis=1)
    gain = float((best / lower[few]).min())
    start = np.maximum(lower * max(1.0, 0.8 * gain), 0.8 * float(best.min()))
    flat, best = _rise(prior, start, t)
    failed = np.flatnonzero(best < start)
    if failed.size:
        again, _ = _rise(prior[failed], lower[failed], t[failed])
        fine = flat[~np.isin(flat // classes, failed)]
        again += (failed - np.arange(len(failed)))[again // classes] * classes
        flat = np.sort(np.concatenate([fine, again]))
    counts = np.diff(np.searchsorted(flat, np.arange(rows + 1) * classes))
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        first = empty * classes + prior[empty].argmax(axis=1)
        flat = np.sort(np.concatenate([flat, first]))
        counts[empty] = 1
    return ManyClasses(flat, counts, classes)


def _rise(prior: np.ndarray, start: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Iterates from a start; returns the members, `row * classes + class`, and w* of each row.

    A row whose start was above w* comes back with less than its start, unless t = 1: there w* is
    the largest p, above which nothing lies, and no start can mislead.
    """
    rows, classes = prior.shape
    threshold = np.where(t == 0, -1, t * start).astype(prior.dtype)
    # One comparison with the block's least threshold leaves a short list to work on.
    flat = _true_cells(prior, threshold.min())
    values, row = prior.reshape(-1)[flat], flat // classes
    lower, found = np.where(t == 1, start, 0.0), -1
    while True:
        members = np.flatnonzero(values > threshold[row])
        if len(members) == found:
            return flat, lower
        found = len(members)
        flat, values, row = flat[members], values[members], row[members]
        count = np.bincount(row, minlength=rows)
        reached = np.bincount(row, values, rows) / (1 + np.maximum(count - 1, 0) * t)
        lower = np.maximum(lower, reached)
        threshold = np.where(t == 0, -1, t * lower).astype(prior.dtype)


def _true_cells(prior: np.ndarray, threshold: np.floating) -> np.ndarray:
    """Returns the flat indices of the probabilities above a threshold.

    They are few: looking at eight booleans as one word skips most of them at once.
    """
    above = np.zeros(-(-prior.size // 8) * 8, bool)
    np.greater(prior.reshape(-1), threshold, out=above[: prior.size])
    words = above.view(np.uint64)
    found = np.flatnonzero(words != 0)
    cells = np.flatnonzero(words[found].view(bool))
    return found[cells >> 3] * 8 + (cells & 7)


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
