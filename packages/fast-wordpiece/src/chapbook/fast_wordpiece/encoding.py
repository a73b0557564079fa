"""What encoding gives: one row, or the rows of a batch, as views of flat arrays.

A row's structure (special tokens, first and second text, padding) is kept as lengths. What can be
derived from it, masks and type ids, is derived when it is asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from chapbook.fast_wordpiece import _core
from chapbook.fast_wordpiece.settings import Padding

if TYPE_CHECKING:
    import polars as pl

    from chapbook.fast_wordpiece.tokenizer import Tokenizer

FIRST, SECOND, SPECIAL, PADDING = 0, 1, -1, -2


@dataclass(frozen=True, eq=False, repr=False)
class EncodingBatch:
    """The rows of a batch. A row is a text, a pair, or a window of overflow.

    Attributes:
        tokenizer: What encoded it.
        ids: Token ids of all rows, one row behind the other, shape (tokens,), int32.
        row_offsets: Where each row begins, and where the last one ends, shape (rows + 1,), int64.
        samples: The text that each row comes from, shape (rows,), int32.
    """

    tokenizer: "Tokenizer"
    ids: np.ndarray
    row_offsets: np.ndarray
    samples: np.ndarray
    _offsets: np.ndarray | None
    _words: np.ndarray | None
    _firsts: np.ndarray
    _seconds: np.ndarray
    _overflow: np.ndarray
    _is_pair: bool
    _special: bool
    _padding: Padding | None = None
    _filled: np.ndarray | None = None  # how many padding tokens each row has

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._rows(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a batch of {len(self)}")
        return Encoding(self, index % len(self))

    def __iter__(self) -> Iterator["Encoding"]:
        return (Encoding(self, row) for row in range(len(self)))

    def __repr__(self) -> str:
        return f"EncodingBatch({len(self)} rows, {len(self.ids)} tokens)"

    # ------------------------------------------------------------------------ per token, flat

    @property
    def offsets(self) -> np.ndarray:
        """Where each token stands in its text, shape (tokens, 2), uint32; (0, 0) for specials.

        Raises:
            ValueError: The batch was encoded without offsets.
        """
        if self._offsets is None:
            raise ValueError("this batch was encoded without offsets; give offsets=True")
        return self._offsets

    @property
    def word_ids(self) -> np.ndarray:
        """The word of its text that each token is of, shape (tokens,), int32; -1 for specials.

        Raises:
            ValueError: The batch was encoded without them.
        """
        if self._words is None:
            raise ValueError("this batch was encoded without word ids; give word_ids=True")
        return self._words

    @cached_property
    def sequence_ids(self) -> np.ndarray:
        """0 for tokens of the first text, 1 of the second, -1 for others, shape (tokens,), int8."""
        return np.maximum(self._kinds, np.int8(SPECIAL))

    @cached_property
    def special_tokens_mask(self) -> np.ndarray:
        """1 for special and padding tokens, shape (tokens,), int8."""
        return (self._kinds < 0).astype(np.int8)

    @cached_property
    def attention_mask(self) -> np.ndarray:
        """0 for padding tokens, 1 for others, shape (tokens,), int8."""
        if self._padding is None:
            return np.ones(len(self.ids), np.int8)
        return (self._kinds != PADDING).astype(np.int8)

    @cached_property
    def type_ids(self) -> np.ndarray:
        """The type id of each token, shape (tokens,), int32."""
        layout = self._layout
        template = self.tokenizer.light_settings.template
        if not self._overflow.any() and len({type_id for _, _, type_id in layout}) == 1:
            return np.full(len(self.ids), layout[0][2], np.int32)
        values = np.tile(np.array([type_id for _, _, type_id in layout], np.int32), (len(self), 1))
        if template is not None and not (template.roberta and self._special):
            # Windows of overflow keep the types that their texts had before the template.
            for column, (kind, _, _) in enumerate(layout):
                if kind in (FIRST, SECOND):
                    values[self._overflow & (1 << kind) != 0, column] = kind
        return np.repeat(values.ravel(), self._lengths.ravel())

    @cached_property
    def _kinds(self) -> np.ndarray:
        kinds = np.array([kind for kind, _, _ in self._layout], np.int8)
        return np.repeat(np.tile(kinds, len(self)), self._lengths.ravel())

    @cached_property
    def _layout(self) -> list[tuple[int, int, int]]:
        """The parts of every row: (kind, tokens of a special part, type id)."""
        parts: list[tuple[int, int, int]] = []
        template = self.tokenizer.light_settings.template
        if template is None:
            parts = [(FIRST, 0, 0), (SECOND, 0, 1)][: 1 + self._is_pair]
        else:
            for piece in template.pair if self._is_pair else template.single:
                if len(piece) == 2:
                    parts.append((FIRST if piece[0] == "A" else SECOND, 0, piece[1]))
                elif self._special:
                    parts.append((SPECIAL, len(piece[1]), piece[2]))
        if self._padding is not None:
            filling = (PADDING, 0, self._padding.type_id)
            parts = [filling, *parts] if self._padding.side == "left" else [*parts, filling]
        return parts

    @cached_property
    def _lengths(self) -> np.ndarray:
        """How many tokens each part of each row has, shape (rows, parts)."""
        lengths = np.empty((len(self), len(self._layout)), np.int64)
        for column, (kind, count, _) in enumerate(self._layout):
            if kind == SPECIAL:
                lengths[:, column] = count
            else:
                lengths[:, column] = {
                    FIRST: self._firsts,
                    SECOND: self._seconds,
                    PADDING: self._filled,
                }[kind]
        # A null row has no special tokens either.
        lengths[self.lengths == 0] = 0
        return lengths

    # ------------------------------------------------------------------------------ per batch

    @cached_property
    def lengths(self) -> np.ndarray:
        """How many tokens each row has, shape (rows,), int64."""
        return np.diff(self.row_offsets)

    def pad(self, padding: Padding) -> "EncodingBatch":
        """Fills up short rows; rows that are longer stay as they are.

        Args:
            padding: To what length, with what, and on which side.

        Returns:
            The batch with padding tokens in its rows.
        """
        lengths = self.lengths
        # Windows of overflow do not decide how long the rows get.
        mains = lengths[np.r_[True, np.diff(self.samples) != 0]] if len(self) else lengths
        width = padding.width(int(mains.max(initial=0)))
        filled = np.maximum(width - lengths, 0)
        row_offsets = np.concatenate([[0], np.cumsum(lengths + filled)])
        starts = row_offsets[:-1] + (filled if padding.side == "left" else 0)
        # Where each token goes.
        places = np.arange(len(self.ids)) + np.repeat(starts - self.row_offsets[:-1], lengths)

        def spread(values: np.ndarray | None, filling: int) -> np.ndarray | None:
            if values is None:
                return None
            out = np.full((int(row_offsets[-1]), *values.shape[1:]), filling, values.dtype)
            out[places] = values
            return out

        ids = spread(self.ids, padding.id)
        assert ids is not None
        return replace(
            self,
            ids=ids,
            row_offsets=row_offsets,
            _offsets=spread(self._offsets, 0),
            _words=spread(self._words, -1),
            _padding=padding,
            _filled=filled,
        )

    def padded(
        self,
        length: int | None = None,
        multiple_of: int | None = None,
        side: str = "right",
        *,
        dtype: Any = np.int32,
        out: dict[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns the rows as rectangular arrays for a model.

        Args:
            length: Tokens of a row; None means those of the longest.
            multiple_of: Rounds the length up to a multiple of this.
            side: `right` or `left`, where the padding goes.
            dtype: Of the arrays, int32 or int64.
            out: Arrays of a former call of the same shape, which are written to.

        Returns:
            `input_ids`, `token_type_ids` and `attention_mask`, each of shape (rows, length).

        Raises:
            ValueError: A row is longer than the length, or `out` has another shape.
        """
        own = self.tokenizer.light_settings.padding or self.tokenizer.default_padding()
        padding = replace(own, length=length, multiple_of=multiple_of, side=side)
        width = padding.width(int(self.lengths.max(initial=0)))
        if len(self) and (longest := int(self.lengths.max())) > width:
            row = int(self.lengths.argmax())
            raise ValueError(
                f"row {row} has {longest} tokens and the length is {width}; truncate, or give a"
                " greater length"
            )
        shape = (len(self), width)
        if out is None:
            names = ("input_ids", "token_type_ids", "attention_mask")
            out = {name: np.empty(shape, dtype) for name in names}
        elif any(array.shape != shape for array in out.values()):
            raise ValueError(f"out must hold arrays of shape {shape}")
        for name, values, filling in (
            ("input_ids", lambda: self.ids, padding.id),
            ("token_type_ids", lambda: self.type_ids, padding.type_id),
            ("attention_mask", lambda: self.attention_mask, 0),
        ):
            if name in out:
                _core.fill_rows(values(), self.row_offsets, out[name], filling, side == "left")
        return out

    def __arrow_c_schema__(self) -> object:
        """The Arrow type of the rows: large_list<int32>."""
        return self._arrow.__arrow_c_schema__()

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        """The rows' ids as an Arrow array, without a copy (Arrow PyCapsule interface)."""
        return self._arrow.__arrow_c_array__(requested_schema)

    @property
    def _arrow(self) -> Any:
        return _core.ArrowList(self.ids, self.row_offsets, None)

    def to_arrow(self) -> Any:
        """Returns the rows' ids as an object with Arrow's C interface, without a copy."""
        return self._arrow

    def to_polars(self) -> "pl.Series":
        """Returns the rows' ids as a Polars series of lists of Int32."""
        import polars as pl

        return pl.Series(self._arrow).alias("ids")

    def _rows(self, rows: range) -> "EncodingBatch":
        """The batch of some of its rows."""
        numbers = np.arange(rows.start, rows.stop, rows.step)
        lengths = self.lengths[numbers]
        row_offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self.row_offsets[:-1][numbers] - row_offsets[:-1], lengths)
        places = places + np.arange(int(row_offsets[-1]))

        def some(values: np.ndarray | None, which: np.ndarray) -> Any:
            return None if values is None else values[which]

        return replace(
            self,
            ids=self.ids[places],
            row_offsets=row_offsets,
            samples=self.samples[numbers],
            _offsets=some(self._offsets, places),
            _words=some(self._words, places),
            _firsts=self._firsts[numbers],
            _seconds=self._seconds[numbers],
            _overflow=self._overflow[numbers],
            _filled=some(self._filled, numbers),
        )

    def __getstate__(self) -> dict[str, Any]:
        fields = self.__dataclass_fields__
        return {name: value for name, value in self.__dict__.items() if name in fields}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class Encoding:
    """One row: what `Tokenizer.encode` returns, or a row of a batch.

    Everything but the ids of `Tokenizer.encode` is worked out when it is first asked for.
    """

    __slots__ = ("_batch", "_call", "_row", "ids")

    def __init__(
        self,
        batch: EncodingBatch | None,
        row: int = 0,
        *,
        ids: np.ndarray | None = None,
        call: tuple[Any, ...] | None = None,
    ):
        self._batch = batch
        self._row = row
        self._call = call
        #: Token ids, shape (tokens,), int32.
        if ids is None:
            assert batch is not None
            ids = batch.ids[batch.row_offsets[row] : batch.row_offsets[row + 1]]
        self.ids = ids

    @property
    def batch(self) -> EncodingBatch:
        """The batch that the row is of."""
        if self._batch is None:
            assert self._call is not None
            tokenizer, text, pair, special, pretokenized = self._call
            self._batch = tokenizer.encode_batch(
                [text],
                None if pair is None else [pair],
                add_special_tokens=special,
                is_pretokenized=pretokenized,
                offsets=True,
                overflow=True,
                num_threads=1,
            )
        return self._batch

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"Encoding({len(self)} tokens: {' '.join(self.tokens[:12])}{' …' * (len(self) > 12)})"
        )

    def _of(self, values: np.ndarray) -> np.ndarray:
        bounds = self.batch.row_offsets
        return values[bounds[self._row] : bounds[self._row + 1]]

    @property
    def tokens(self) -> list[str]:
        """The pieces."""
        batch = self.batch
        return batch.tokenizer.tokens_of(self.ids)

    @property
    def offsets(self) -> np.ndarray:
        """Where each token stands in its text, shape (tokens, 2), uint32; (0, 0) for specials."""
        return self._of(self.batch.offsets)

    @property
    def word_ids(self) -> list[int | None]:
        """The word of its text that each token is of; None for special tokens."""
        return [None if word < 0 else word for word in self._of(self.batch.word_ids).tolist()]

    @property
    def sequence_ids(self) -> list[int | None]:
        """0 or 1 for tokens of the first or second text; None for special tokens."""
        return [None if n < 0 else n for n in self._of(self.batch.sequence_ids).tolist()]

    @property
    def type_ids(self) -> np.ndarray:
        """The type id of each token, shape (tokens,), int32."""
        return self._of(self.batch.type_ids)

    @property
    def attention_mask(self) -> np.ndarray:
        """0 for padding tokens, 1 for others, shape (tokens,), int8."""
        return self._of(self.batch.attention_mask)

    @property
    def special_tokens_mask(self) -> np.ndarray:
        """1 for special and padding tokens, shape (tokens,), int8."""
        return self._of(self.batch.special_tokens_mask)

    @property
    def overflowing(self) -> list["Encoding"]:
        """The other windows of the same text, where truncation cut some off and kept them."""
        batch = self.batch
        same = np.flatnonzero(batch.samples == batch.samples[self._row])
        return [Encoding(batch, int(row)) for row in same if row > self._row]

    # ------------------------------------------------------------------ between text and token

    def char_to_token(self, char: int, sequence: int = 0) -> int | None:
        """Finds the token that holds a character.

        Args:
            char: Index of the character in its text.
            sequence: 0 for the first text, 1 for the second.

        Returns:
            Index of the token, or None where no token holds the character.
        """
        offsets = self.offsets
        inside = (self._of(self.batch.sequence_ids) == sequence) & (offsets[:, 0] <= char)
        found = np.flatnonzero(inside & (char < offsets[:, 1]))
        return int(found[0]) if len(found) else None

    def char_to_word(self, char: int, sequence: int = 0) -> int | None:
        """Finds the word that holds a character; arguments as for `char_to_token`."""
        token = self.char_to_token(char, sequence)
        return None if token is None else self.token_to_word(token)

    def token_to_chars(self, token: int) -> tuple[int, int] | None:
        """Returns the range of characters of a token; None for a special token."""
        if self._of(self.batch.sequence_ids)[token] < 0:
            return None
        start, end = self.offsets[token].tolist()
        return start, end

    def token_to_word(self, token: int) -> int | None:
        """Returns the word of a token; None for a special token."""
        return self.word_ids[token]

    def token_to_sequence(self, token: int) -> int | None:
        """Returns 0 or 1 for the text of a token; None for a special token."""
        return self.sequence_ids[token]

    def word_to_tokens(self, word: int, sequence: int = 0) -> tuple[int, int] | None:
        """Returns the range of tokens of a word; None where the row holds none of it."""
        words, sequences = self._of(self.batch.word_ids), self._of(self.batch.sequence_ids)
        found = np.flatnonzero((words == word) & (sequences == sequence))
        return (int(found[0]), int(found[-1]) + 1) if len(found) else None

    def word_to_chars(self, word: int, sequence: int = 0) -> tuple[int, int] | None:
        """Returns the range of characters of a word; None where the row holds none of it."""
        tokens = self.word_to_tokens(word, sequence)
        if tokens is None:
            return None
        offsets = self.offsets
        return int(offsets[tokens[0], 0]), int(offsets[tokens[1] - 1, 1])
