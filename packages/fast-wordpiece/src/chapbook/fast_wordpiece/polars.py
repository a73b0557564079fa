"""Polars expressions: importing this module gives every expression and series a `wordpiece`.

    import chapbook.fast_wordpiece.polars

    pl.scan_parquet("corpus.parquet").with_columns(ids=pl.col("text").wordpiece.encode(tok))

Each call hands a whole column to the core through Arrow's C interface, and Polars takes over the
memory of what comes back. The expressions are elementwise, in lazy queries and in the streaming
engine too; null stays null.
"""

from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar, get_args

import polars as pl

from chapbook.fast_wordpiece.tokenizer import OffsetUnit, Tokenizer

Column = TypeVar("Column", pl.Expr, pl.Series)

IDS = pl.List(pl.Int32)
COUNTS = pl.UInt32
OFFSETS = pl.List(pl.Struct({"start": pl.UInt32, "end": pl.UInt32}))


@pl.api.register_expr_namespace("wordpiece")
@pl.api.register_series_namespace("wordpiece")
class WordPiece(Generic[Column]):
    """What `pl.col("text").wordpiece` and `series.wordpiece` offer.

    Columns of texts are of type String, or Binary that holds UTF-8. A column of another type, or
    bytes that are not UTF-8, raise an error when the query runs.

    Args:
        column: The expression or the series.
    """

    def __init__(self, column: Column):
        self._column = column

    def encode(self, tokenizer: Tokenizer, *, add_special_tokens: bool = True) -> Column:
        """Encodes texts.

        Args:
            tokenizer: The tokenizer; its truncation and padding hold.
            add_special_tokens: Whether to put the template's special tokens around each text.

        Returns:
            Token ids, List(Int32).
        """
        return self._map(_encode, IDS, tokenizer, add_special_tokens)

    def count(self, tokenizer: Tokenizer, *, add_special_tokens: bool = True) -> Column:
        """Counts the tokens of texts without keeping them.

        Args:
            tokenizer: The tokenizer; its truncation holds, its padding does not count.
            add_special_tokens: Whether the template's special tokens count.

        Returns:
            Numbers of tokens, UInt32.
        """
        return self._map(_count, COUNTS, tokenizer, add_special_tokens)

    def offsets(
        self,
        tokenizer: Tokenizer,
        unit: OffsetUnit = "char",
        *,
        add_special_tokens: bool = True,
    ) -> Column:
        """Tells where each token of `encode` stands in its text.

        Args:
            tokenizer: The tokenizer; its truncation and padding hold.
            unit: `char`, as `str.slice` counts, or `byte`, as `bin.slice` does.
            add_special_tokens: Whether the template's special tokens are there, too, at (0, 0).

        Returns:
            From where to where, without the last: List(Struct(start: UInt32, end: UInt32)).
        """
        if unit not in get_args(OffsetUnit):
            raise ValueError(f"unit is {unit!r} and must be 'char' or 'byte'")
        return self._map(_offsets, OFFSETS, tokenizer, unit, add_special_tokens)

    def decode(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> Column:
        """Joins the pieces of ids to texts.

        Args:
            tokenizer: The tokenizer.
            skip_special_tokens: Whether to leave out special added tokens such as `[CLS]`.

        Returns:
            Texts, String; of a column of lists or arrays of integers.
        """
        return self._map(_decode, pl.String, tokenizer, skip_special_tokens)

    def _map(
        self,
        function: Callable[..., pl.Series],
        dtype: pl.DataType | type[pl.DataType],
        tokenizer: Tokenizer,
        *options: object,
    ) -> Column:
        if not isinstance(tokenizer, Tokenizer):
            kind = type(tokenizer).__name__
            raise TypeError(f"wordpiece needs a Tokenizer of chapbook.fast_wordpiece, not {kind}")
        if isinstance(self._column, pl.Series):
            return function(tokenizer, *options, self._column)
        mapped = partial(function, tokenizer, *options)
        return self._column.map_batches(mapped, dtype, is_elementwise=True)


def _encode(tokenizer: Tokenizer, special: bool, texts: pl.Series) -> pl.Series:
    _require_texts(texts)
    ids = tokenizer.encode_arrow(texts, add_special_tokens=special)
    return pl.Series(ids).alias(texts.name)


def _count(tokenizer: Tokenizer, special: bool, texts: pl.Series) -> pl.Series:
    _require_texts(texts)
    counts = tokenizer.count_batch(texts, add_special_tokens=special)
    return _where_valid(texts, pl.Series(texts.name, counts, pl.UInt32))


def _offsets(tokenizer: Tokenizer, unit: OffsetUnit, special: bool, texts: pl.Series) -> pl.Series:
    _require_texts(texts)
    _, offsets = tokenizer.encode_arrow(
        texts, add_special_tokens=special, offsets=True, offset_unit=unit
    )
    return pl.Series(offsets).alias(texts.name)


def _decode(tokenizer: Tokenizer, skip_special: bool, ids: pl.Series) -> pl.Series:
    inner = getattr(ids.dtype, "inner", None)
    if ids.dtype != pl.Null and not (inner is not None and inner.is_integer()):
        raise TypeError(
            f"column {ids.name!r} is of type {ids.dtype}, and wordpiece.decode reads lists of ids"
        )
    rows = ids.to_list()
    for number, row in enumerate(rows):
        if row and None in row:
            raise ValueError(f"row {number} of column {ids.name!r} holds a null among its ids")
    texts = tokenizer.decode_batch([row or [] for row in rows], skip_special)
    return _where_valid(ids, pl.Series(ids.name, texts, pl.String))


def _require_texts(column: pl.Series) -> None:
    if column.dtype not in (pl.String, pl.Binary, pl.Null):
        raise TypeError(
            f"column {column.name!r} is of type {column.dtype}, and wordpiece reads texts: cast it"
            " with .cast(pl.String)"
        )


def _where_valid(column: pl.Series, values: pl.Series) -> pl.Series:
    """Returns the values, null where the column is."""
    if column.null_count() == 0:
        return values
    return pl.select(pl.when(column.is_not_null()).then(values)).to_series().alias(values.name)
