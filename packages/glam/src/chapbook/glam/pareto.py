"""Which scored documents stay: nearly all good ones, and some of every score."""

import numpy as np
import polars as pl
from jaxtyping import Float, Float64

from chapbook.core.errors import Error, TableError
from chapbook.glam.hashing import uniform

ALPHA = 9.0


def keep_probability(
    score: Float[np.ndarray, "*documents"], alpha: float = ALPHA
) -> Float64[np.ndarray, "*documents"]:
    """Returns `(2 - score)^-alpha`: how likely a document of a score is to be kept.

    It is P(X > 1 - score) for a Pareto variable X on [0, inf), of the density
    `alpha (1 + x)^-(alpha + 1)`, which is how NumPy defines it.

    Args:
        score: In [0, 1].
        alpha: A larger one keeps less of what scores low.

    Reference:
        Brown et al., Language Models are Few-Shot Learners, 2020, appendix A, which keeps a
        document if `np.random.pareto(9) > 1 - score`; Du et al., GLaM, 2022, section 3.
    """
    return np.asarray((2.0 - score.astype(np.float64)) ** -alpha)


def pareto_sample(
    df: pl.DataFrame,
    score: str = "score",
    alpha: float = ALPHA,
    seed: int = 0,
    id: str = "id",  # noqa: A002
) -> pl.DataFrame:
    """Returns the rows that stay, in their order.

    Whether a document stays depends on its id, its score and the seed alone: not on the other rows,
    nor on their order. The same document stays under every larger score and smaller alpha.

    Args:
        df: A row for each document.
        score: The column of scores in [0, 1].
        alpha: As in `keep_probability`.
        seed: Another one keeps others.
        id: The column of ids.

    Raises:
        TableError: A column is missing, or a score is no number in [0, 1].
    """
    if not alpha > 0:
        raise Error(f"alpha={alpha}: give a positive number")
    for name in (score, id):
        if name not in df.columns:
            told = f'no column "{name}"; it has {", ".join(df.columns)}'
            raise TableError(told, column=name)
        if df[name].null_count():
            row = df[name].is_null().arg_max()
            raise TableError(f"row {row}: {name} is empty", column=name, row=row)
    if not df[score].dtype.is_numeric():
        raise TableError(f"column {score} is {df[score].dtype}, not a number", column=score)
    scores = df[score].cast(pl.Float64).to_numpy()
    inside = (scores >= 0) & (scores <= 1)
    if not inside.all():
        row = int(np.argmin(inside))
        told = f"document {df[id][row]}: {score} {scores[row]} is not in [0, 1]"
        raise TableError(told, column=score, row=row)
    return df.filter(uniform(df[id], seed, "pareto") < keep_probability(scores, alpha))
