"""Rows of many lengths in few shapes, since each shape is compiled once."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Int


def bucket(length: int, longest: int | None = None) -> int:
    """Returns the first of 4, 6, 8, 12, 16, 24, ... that holds a length.

    Args:
        length: At least a third of the bucket, unless that is the first.
        longest: Bounds the bucket; no length exceeds it.
    """
    sizes = (size << power for power in itertools.count(1) for size in (2, 3))
    found = next(size for size in sizes if size >= length)
    return found if longest is None else min(found, longest)


def by_shape(
    shapes: Sequence[tuple[int, ...]], enough: Callable[[tuple[int, ...], list[int]], bool]
) -> list[tuple[tuple[int, ...], list[int]]]:
    """Returns shapes with the places of what fits into them, the largest first.

    What does not fit into memory then shows at once. A shape of which there are too few is
    left out, and what has it goes into the next larger one: some padding costs less than a program.

    Args:
        shapes: Of each place, all of the same number of sizes.
        enough: Returns whether a shape and the places that would have it are worth a program.
    """
    places = defaultdict(list)
    for place, shape in enumerate(shapes):
        places[shape].append(place)
    found, waiting, wide = [], [], ()
    for shape in sorted(places):
        waiting += places[shape]
        wide = tuple(map(max, shape, wide or shape))
        if enough(wide, waiting):
            found.append((wide, waiting))
            waiting, wide = [], ()
    if waiting:
        found.append((wide, waiting))
    return found[::-1]


def batches(places: Sequence[int], most: int) -> Iterator[tuple[list[int], int]]:
    """Yields parts of some places, and how many rows a batch of each part has, the same for all.

    Args:
        places: At least one.
        most: Rows of a batch, at most; fewer if there are fewer places.
    """
    rows = min(most, 1 << (len(places) - 1).bit_length())
    for first in range(0, len(places), rows):
        yield list(places[first : first + rows]), rows


def padded(
    rows: Sequence[Sequence[int]], count: int, length: int, *, left: bool = False
) -> Int[np.ndarray, "{count} {length}"]:
    """Returns rows of tokens as an array; zeros fill its right side and its last rows.

    Args:
        rows: At most `count`, of at most `length` tokens.
        count: Rows of the array.
        length: Columns of the array.
        left: Whether zeros fill the left side instead.
    """
    held = np.zeros((count, length), np.int32)
    for row, tokens in enumerate(rows):
        if len(tokens):
            held[row, slice(-len(tokens), None) if left else slice(len(tokens))] = tokens
    return held
