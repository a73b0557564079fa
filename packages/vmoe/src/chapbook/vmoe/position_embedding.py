"""Position embeddings of one grid of patches, zoomed to another."""

import numpy as np
from jaxtyping import Float

from chapbook.core.errors import Error


def resize(
    embedding: Float[np.ndarray, "tokens embed"],
    grid: int,
    *,
    has_token: bool,
    source: tuple[int, int] | None = None,
) -> Float[np.ndarray, "new_tokens embed"]:
    """Returns the embeddings of a square grid, interpolated linearly from those of another.

    Corners stay where they are, as in `scipy.ndimage.zoom` of order 1, which the official code
    calls; a class token's embedding is kept as it is.

    Args:
        embedding: Of the positions, row by row, that of a class token first.
        grid: Patches along a side of the new grid.
        has_token: Whether the first position is a class token's.
        source: Rows and columns of the old grid; a square one if None.

    Raises:
        Error: The positions are no square and `source` is not given, or do not fit it.
    """
    from scipy.ndimage import zoom

    token, patches = embedding[: int(has_token)], embedding[int(has_token) :]
    side = round(len(patches) ** 0.5)
    rows, columns = source or (side, side)
    if rows * columns != len(patches):
        raise Error(
            f"{len(patches)} position embeddings are no grid of {rows} x {columns}; give its rows "
            "and columns"
        )
    if (rows, columns) == (grid, grid):
        return embedding
    old = patches.reshape(rows, columns, -1).astype(np.float32)
    new = np.asarray(zoom(old, (grid / rows, grid / columns, 1), order=1))
    return np.concatenate([token, new.reshape(grid * grid, -1).astype(embedding.dtype)])
