# ruff: noqa: A001, A002, N818 - the names are those of the extension
"""The compiled core. Private: what stands here changes without notice."""

import builtins
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import CapsuleType

# ids, bounds of the rows, offsets, word ids; and of each row: the text that it comes from, how many
# tokens of the first and of the second text it has, and which of them overflowed.
_Rows: TypeAlias = tuple[
    NDArray[np.int32],
    NDArray[np.int64],
    NDArray[np.uint32] | None,
    NDArray[np.int32] | None,
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.uint8],
]
# The same, and which rows are not null where some are.
_RowsAndNulls: TypeAlias = tuple[
    NDArray[np.int32],
    NDArray[np.int64],
    NDArray[np.uint32] | None,
    NDArray[np.int32] | None,
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.uint8],
    NDArray[np.bool_] | None,
]

NO_ID: int

class Model:
    @property
    def settings(self) -> bytes: ...
    @property
    def unknown(self) -> int: ...
    @property
    def block(self) -> bytes: ...

class Encoder:
    def __init__(
        self,
        model: Model,
        added: Sequence[tuple[str, int, bool, bool, bool, bool, bool]],
        single: Sequence[tuple[int, int]],
        pair: Sequence[tuple[int, int]],
        truncation: tuple[int, int, int, bool] | None = None,
        trim: bool = False,
        prefix_space: bool = False,
        isa: str = "auto",
    ) -> None: ...
    def encode_ids(
        self, text: object, add_special_tokens: bool = True
    ) -> NDArray[np.int32] | None: ...
    def encode_batch(
        self,
        texts: object,
        pairs: object | None,
        pretokenized: bool,
        special: bool,
        offsets: bool,
        words: bool,
        bytes: bool,
        overflow: bool,
        threads: int,
    ) -> _Rows: ...
    def count_batch(self, texts: object, special: bool, threads: int) -> NDArray[np.int64]: ...
    def encode_flat(
        self,
        data: object,
        starts: object,
        ends: object,
        valid: object | None,
        special: bool,
        offsets: bool,
        words: bool,
        bytes: bool,
        overflow: bool,
        threads: int,
    ) -> _Rows: ...

class ArrowList:
    def __init__(self, values: object, bounds: object, valid: object | None = None) -> None: ...
    def __len__(self) -> int: ...
    def __arrow_c_schema__(self) -> CapsuleType: ...
    def __arrow_c_array__(
        self, requested_schema: object | None = None
    ) -> tuple[CapsuleType, CapsuleType]: ...
    def __arrow_c_stream__(self, requested_schema: object | None = None) -> CapsuleType: ...

class DamagedCounts(Exception): ...

class WordCounts:
    def __init__(
        self,
        threads: int,
        *,
        clean_text: bool,
        handle_chinese_chars: bool,
        strip_accents: bool,
        lowercase: bool,
        tf_text: bool,
    ) -> None: ...
    @property
    def bytes(self) -> int: ...
    def add(self, text: builtins.bytes) -> None: ...
    def write(self, path: str) -> None: ...
    def clear(self) -> None: ...

def compile(
    pieces: list[str],
    ids: object,
    mark: str,
    unknown: int,
    max_chars: int,
    normalizer: tuple[bool, bool, bool, bool, bool],
    settings: bytes,
    literal_marks: bool = False,
    cache_bits: int = 16,
) -> Model: ...
def open(buffer: object, cache_bits: int = 16) -> Model: ...
def encode_arrow(
    encoder: Encoder,
    texts: object,
    special: bool,
    offsets: bool,
    words: bool,
    bytes: bool,
    overflow: bool,
    threads: int,
) -> _RowsAndNulls: ...
def count_arrow(
    encoder: Encoder, texts: object, special: bool, threads: int
) -> NDArray[np.int64]: ...
def fill_rows(
    values: object,
    bounds: object,
    out: NDArray[np.int32] | NDArray[np.int64],
    filling: int,
    at_right: bool,
) -> None: ...
def first_invalid_utf8(data: object) -> int: ...
def instruction_sets() -> list[str]: ...

# Ids, their bounds, steps and seconds of each word.
def match_words(
    model: Model, words: Sequence[str], algorithm: str, repeats: int = 1
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]: ...

# Each node: continues, text, failure pops, failure link.
def trie(model: Model) -> list[tuple[bool, str, list[int], tuple[bool, str] | None]]: ...
def merge_counts(paths: Sequence[str], out: str) -> None: ...

# Pieces, how many of them are special tokens and single characters, and the number of words.
def train_bpe(
    counter: WordCounts,
    paths: Sequence[str],
    vocab_size: int,
    min_frequency: int,
    special_tokens: Sequence[str],
    limit_alphabet: int,
    initial_alphabet: str,
    mark: str,
    progress: Callable[[int], Any],
) -> tuple[list[str], int, int, int]: ...
