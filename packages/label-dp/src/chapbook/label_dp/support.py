"""The classes that a mechanism may answer with: the top k of a prior, and the best k.

Nothing here sees a label: the set that a record answers from is a function of its prior alone.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from chapbook.core.errors import Error

SUM_TOLERANCE = 1e-6


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
        if not np.issubdtype(prior.dtype, np.number) or np.iscomplexobj(prior):
            raise Error(f"the prior holds {prior.dtype}; it must hold numbers")
        prior = prior.astype(np.float32 if prior.dtype == np.float16 else np.float64)
    return prior


def checked_rows(
    block: Float[np.ndarray, "rows classes"], first_row: int, *, normalize: bool
) -> Float[np.ndarray, "rows classes"]:
    """Returns rows of a prior that are probabilities; raises an `Error` that names the first other.

    Args:
        block: Rows of the prior.
        first_row: The number of the block's first row, for the error.
        normalize: Whether rows may have any positive sum, and are divided by it.
    """
    # One BLAS pass sees every NaN and infinity: they survive a product with ones.
    with np.errstate(invalid="ignore", over="ignore"):
        sums = block @ np.ones(block.shape[1], block.dtype)
    lowest = block.min(axis=1)
    fine = lowest >= 0
    # The float32 sum of a long row errs by more than the tolerance; doubtful rows are summed again.
    fine &= np.abs(sums - 1) <= SUM_TOLERANCE / 2
    if fine.all():
        return block
    with np.errstate(invalid="ignore", over="ignore"):
        sums = block.sum(axis=1, dtype=np.float64)
    good_sums = (sums > 0) & (sums < np.inf) if normalize else np.abs(sums - 1) <= SUM_TOLERANCE
    fine = (lowest >= 0) & good_sums
    if not fine.all():
        bad = int(np.argmin(fine))
        raise Error(_problem(block[bad], sums[bad], first_row + bad, normalize))
    if normalize:
        return (block / sums[:, None]).astype(block.dtype)
    return block


def _problem(row: np.ndarray, total: float, number: int, normalize: bool) -> str:
    if not np.isfinite(row).all():
        return f"prior row {number} holds a value that is not finite"
    if (row < 0).any():
        return f"prior row {number} holds a negative value ({row.min():g})"
    if normalize:
        return f"prior row {number} sums to {total:g}, so that it cannot be normalised"
    return f"prior row {number} sums to {total:.9g}, not 1 (normalize=True divides by it)"


def optimal_support(
    prior: Float[np.ndarray, "..."], t: Float[np.ndarray, " rows"], axis: int
) -> Bool[np.ndarray, "..."]:
    """Returns the top-k* classes of each record: `{i : p_i > t w*}`, and always the top class.

    `w_k = (p_(1) + ... + p_(k)) / (1 + (k - 1) t)` is the probability of a true answer, and w* its
    maximum over k, reached first at k*. Each w_(k+1) is a weighted mean of w_k and p_(k+1) / t, so
    w rises exactly as long as p_(k+1) > t w_k, and never again afterwards because p_(k) falls.
    Hence the top k* are the classes with p_i > t w*: at k*, w* lies between w_(k*-1) and
    p_(k*) / t, and p_(k*+1) <= t w*. Equal probabilities therefore fall in or out together,
    except that for t = 1 the set would be empty and the first top class alone is taken.

    w* is the root of the convex, falling `f(w) = sum_i max(p_i - t w, 0) - (1 - t) w`. Newton's
    (Dinkelbach's) iteration from the largest p rises to it without a sort, in a few steps: each
    step drops classes for good, and the step that drops none has arrived.

    Args:
        prior: Probabilities: records along the other axis, classes along `axis`.
        t: e^-eps of each record.
        axis: 0 for classes by rows (fast for few classes), 1 for rows by classes.

    Reference:
        Ghazi et al., Deep Learning with Label Differential Privacy, algorithm 3 and theorem 6;
        Dinkelbach, On Nonlinear Fractional Programming, 1967.
    """
    classes = prior.shape[axis]
    t = t.astype(prior.dtype)
    top = prior.max(axis=axis)
    lower = np.maximum(top, 1 / (1 + (classes - 1) * t))
    scratch = np.empty_like(prior)
    before = None
    while True:
        threshold = np.expand_dims(t * lower, axis)
        members = prior > threshold
        count = _count(members, axis)
        if before is not None and np.array_equal(count, before):
            break
        before = count
        np.maximum(prior, threshold, out=scratch)
        excess = _sum(scratch, axis) - classes * t * lower
        step = (excess - (1 - t) * lower) / ((1 - t) + t * np.maximum(count, 1))
        lower += np.maximum(step, 0)
    empty = np.flatnonzero(count == 0)
    if empty.size:
        first = np.take(prior, empty, axis=1 - axis).argmax(axis=axis)
        members[(first, empty) if axis == 0 else (empty, first)] = True
    return members


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


def _sum(values: np.ndarray, axis: int) -> np.ndarray:
    return values.sum(axis=0) if axis == 0 else values @ np.ones(values.shape[1], values.dtype)


def _count(members: np.ndarray, axis: int) -> np.ndarray:
    """Counts the members; whole words at a time where that is possible."""
    kind = np.uint8 if members.shape[axis] < 256 else np.uint32
    return np.add.reduce(members.view(np.uint8), axis=axis, dtype=kind)
