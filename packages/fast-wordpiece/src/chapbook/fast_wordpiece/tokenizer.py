"""The tokenizer: texts to ids and back. Immutable, and safe to share between threads.

Reference: Song, Salcianu, Song, Dopson, Zhou, "Fast WordPiece Tokenization", EMNLP 2021. What is
given out is, id by id and offset by offset, what Hugging Face's `tokenizers` gives.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from chapbook.fast_wordpiece import _core, compiled, files
from chapbook.fast_wordpiece import decode as spelling
from chapbook.fast_wordpiece.encoding import Encoding, EncodingBatch
from chapbook.fast_wordpiece.settings import (
    AddedToken,
    Padding,
    Settings,
    SettingsError,
    Truncation,
)

if TYPE_CHECKING:
    import polars as pl

    from chapbook.fast_wordpiece.hf import HFTokenizer

_SURROGATE = re.compile("[\ud800-\udfff]")
OWN: Any = object()  # the tokenizer's own truncation or padding
Errors = Literal["strict", "replace"]
OffsetUnit = Literal["char", "byte"]


class Tokenizer:
    """A WordPiece tokenizer with BERT's normaliser and pre-tokeniser.

    Args:
        settings: What it is; `from_file`, `from_vocab` and `from_pretrained` make one from what
            is at hand.
    """

    def __init__(self, settings: Settings):
        self._start(compiled.compile_settings(settings), replace(settings, vocab={}), settings)

    def _start(self, model: _core.Model, light: Settings, whole: Settings | None) -> None:
        self._model = model
        #: The settings with an empty vocabulary.
        self.light_settings = light
        if whole is not None:
            self.__dict__["settings"] = whole
        self._isa = os.environ.get("CHAPBOOK_FWP_ISA", "auto")
        self._encoders: dict[Truncation | None, _core.Encoder] = {}
        self._own = self._encoder(light.truncation)
        template = light.template
        complete = template is None or all(
            piece[1] for piece in (*template.single, *template.pair) if len(piece) == 3
        )
        # Straight into the core where nothing is left to do behind it.
        self._straight = complete and light.truncation is None and light.padding is None
        self._straight = self._straight and model.unknown != _core.NO_ID

    # ------------------------------------------------------------------------------ in and out

    @classmethod
    def from_file(
        cls, path: str | Path, *, lowercase: bool | None = None, ignore_limits: bool = False
    ) -> "Tokenizer":
        """Reads a tokenizer.

        Args:
            path: A `tokenizer.json`, a `vocab.txt`, a compiled `.fwp` file, or a folder that holds
                one of the first two.
            lowercase: Whether to lower-case, where `vocab.txt` leaves it open; None means yes.
            ignore_limits: Whether to leave out truncation and padding that the file asks for.

        Returns:
            The tokenizer.

        Raises:
            UnsupportedTokenizerError: The file asks for something that this package does not do.
            Error: The file is broken; the message says where.
            OSError: The file cannot be read.
        """
        if Path(path).suffix == ".fwp":
            model = compiled.load(path)
            made = cls.__new__(cls)
            light, _ = compiled.settings_of(model)
            made._start(model, light, None)
            return made.no_truncation().no_padding() if ignore_limits else made
        return cls(files.read(path, lowercase=lowercase, ignore_limits=ignore_limits))

    @classmethod
    def from_vocab(
        cls, vocab: Iterable[str] | Mapping[str, int], *, lowercase: bool = True, **options: Any
    ) -> "Tokenizer":
        """Makes BERT's tokenizer from a vocabulary.

        Args:
            vocab: Pieces in the order of their ids, or the id of each piece.
            lowercase: Whether to lower-case and strip accents.
            **options: Further options of `Settings.bert`.

        Returns:
            The tokenizer.
        """
        if not isinstance(vocab, Mapping):
            vocab = {piece: number for number, piece in enumerate(vocab)}
        return cls(Settings.bert(vocab, lowercase, **options))

    @classmethod
    def from_pretrained(cls, tokenizer: Any, *, ignore_limits: bool = False) -> "Tokenizer":
        """Takes over a tokenizer of Hugging Face's `tokenizers` or `transformers`.

        Args:
            tokenizer: A `tokenizers.Tokenizer`, or a fast tokenizer of `transformers`.
            ignore_limits: Whether to leave out its truncation and padding.

        Returns:
            A tokenizer that gives the same.

        Raises:
            UnsupportedTokenizerError: It does something that this package does not do.
        """
        return cls(files.from_hf(tokenizer, ignore_limits=ignore_limits))

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer, whole or not at all.

        Args:
            path: Ends in `.json` (a `tokenizer.json` that Hugging Face reads too), `.txt` (a
                `vocab.txt`) or `.fwp` (compiled, mapped into memory when it is loaded).

        Raises:
            Error: The format cannot hold the tokenizer.
            OSError: The file cannot be written.
        """
        if Path(path).suffix == ".fwp":
            compiled.save(self.settings, path)
        else:
            files.write(self.settings, path)

    @cached_property
    def settings(self) -> Settings:
        """What the tokenizer is."""
        _, whole = compiled.settings_of(self._model)
        return replace(self.light_settings, vocab=whole().vocab)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides what the tokenizer gives, as hexadecimal digits."""
        return files.fingerprint(self.settings)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._model.block, self.light_settings, self.settings)

    def __repr__(self) -> str:
        normalizer = self.light_settings.normalizer
        return f"Tokenizer({self.vocab_size} pieces, {'un' * normalizer.lowercase}cased)"

    # -------------------------------------------------------------------------------- encoding

    def encode_ids(self, text: str, add_special_tokens: bool = True) -> np.ndarray:
        """Encodes one text on the shortest path.

        Args:
            text: The text.
            add_special_tokens: Whether to put the template's special tokens around it.

        Returns:
            Token ids, shape (tokens,), int32.

        Raises:
            TypeError: The text is no string.
            ValueError: It holds a lone surrogate, or cannot be truncated as asked.
        """
        if self._straight:
            ids = self._own.encode_ids(text, add_special_tokens)
            if ids is not None:
                return ids
        return self.encode_batch([text], add_special_tokens=add_special_tokens).ids

    def encode(
        self,
        text: str | Sequence[str],
        pair: str | Sequence[str] | None = None,
        add_special_tokens: bool = True,
        *,
        is_pretokenized: bool = False,
    ) -> Encoding:
        """Encodes one text, or a pair.

        Args:
            text: The text; a list of words where `is_pretokenized`.
            pair: A second text.
            add_special_tokens: Whether to put the template's special tokens around them.
            is_pretokenized: Whether the texts are cut into words already.

        Returns:
            The row, with windows of overflow where the tokenizer truncates.

        Raises:
            TypeError: A text is no string.
            ValueError: It holds a lone surrogate, or cannot be truncated as asked.
        """
        if self._straight and pair is None and not is_pretokenized:
            ids = self._own.encode_ids(text, add_special_tokens)
            if ids is not None:
                return Encoding(None, ids=ids, call=(self, text, None, add_special_tokens, False))
        batch = self.encode_batch(
            [text],
            None if pair is None else [pair],
            add_special_tokens=add_special_tokens,
            is_pretokenized=is_pretokenized,
            offsets=True,
            overflow=True,
        )
        return batch[0]

    def encode_batch(
        self,
        texts: Iterable[str] | Iterable[Sequence[str]],
        pairs: Iterable[str] | Iterable[Sequence[str]] | None = None,
        *,
        add_special_tokens: bool = True,
        is_pretokenized: bool = False,
        offsets: bool = False,
        word_ids: bool | None = None,
        offset_unit: OffsetUnit = "char",
        overflow: bool = False,
        truncation: Truncation | None = OWN,
        padding: Padding | None = OWN,
        errors: Errors = "strict",
        num_threads: int | None = None,
    ) -> EncodingBatch:
        """Encodes many texts, or pairs.

        Args:
            texts: The texts; lists of words where `is_pretokenized`.
            pairs: As many second texts.
            add_special_tokens: Whether to put the template's special tokens around them.
            is_pretokenized: Whether the texts are cut into words already. Offsets then count
                within each word.
            offsets: Whether to keep where each token stands in its text.
            word_ids: Whether to keep which word each token is of; None means as for `offsets`.
            offset_unit: `char`, indices into the Python string, or `byte`, into its UTF-8.
            overflow: Whether what truncation cuts off follows as further rows; `samples` then
                tells the text of each row.
            truncation: How rows are shortened, instead of the tokenizer's own way.
            padding: How rows are filled up, instead of the tokenizer's own way.
            errors: `strict`, or `replace` to read a lone surrogate as U+FFFD.
            num_threads: Threads to use; None means one for each processor at hand.

        Returns:
            The rows.

        Raises:
            TypeError: A text is no string; the message names its index.
            ValueError: A text holds a lone surrogate, or cannot be truncated as asked, or there
                are not as many pairs as texts.
        """
        if errors == "replace":
            texts = _mended(texts, is_pretokenized)
            pairs = None if pairs is None else _mended(pairs, is_pretokenized)
        is_pair = pairs is not None
        encoder = self._ready(is_pair, add_special_tokens, truncation)
        rows = encoder.encode_batch(
            texts,
            pairs,
            is_pretokenized,
            add_special_tokens,
            offsets,
            offsets if word_ids is None else word_ids,
            offset_unit == "byte",
            overflow,
            _threads(num_threads),
        )
        return self._batch(rows, is_pair, add_special_tokens, padding)

    def encode_arrow(
        self,
        strings: Any,
        *,
        add_special_tokens: bool = True,
        offsets: bool = False,
        offset_unit: OffsetUnit = "char",
        num_threads: int | None = None,
    ) -> Any:
        """Encodes a column of strings without making Python strings of them.

        Args:
            strings: A Polars series, a pyarrow array, or whatever offers Arrow's C interface.
            add_special_tokens: Whether to put the template's special tokens around each text.
            offsets: Whether to return where each token stands, too.
            offset_unit: `char` or `byte`.
            num_threads: Threads to use; None means one for each processor at hand.

        Returns:
            An Arrow array of type large_list<int32>, or with `offsets` a pair of it and one of
            type large_list<struct<start, end>>. Null stays null. `polars.Series(...)` and
            `pyarrow.array(...)` take them without a copy.

        Raises:
            TypeError: It is no column of strings.
            ValueError: A string is not UTF-8.
        """
        encoder = self._ready(False, add_special_tokens, OWN)
        *rows, valid = _core.encode_arrow(
            encoder,
            strings,
            add_special_tokens,
            offsets,
            False,
            offset_unit == "byte",
            False,
            _threads(num_threads),
        )
        batch = self._batch(rows, False, add_special_tokens, OWN)
        ids = _core.ArrowList(batch.ids, batch.row_offsets, valid)
        if not offsets:
            return ids
        return ids, _core.ArrowList(batch.offsets, batch.row_offsets, valid)

    def count_batch(
        self,
        texts: Any,
        *,
        add_special_tokens: bool = True,
        num_threads: int | None = None,
    ) -> np.ndarray:
        """Counts the tokens of each text without keeping them.

        Args:
            texts: Strings, or a column with Arrow's C interface as for `encode_arrow`, where a null
                counts 0.
            add_special_tokens: Whether the template's special tokens count.
            num_threads: Threads to use; None means one for each processor at hand.

        Returns:
            Numbers of tokens after the tokenizer's truncation, without padding, shape (texts,),
            int64.

        Raises:
            TypeError: A text is no string.
            ValueError: A text holds a lone surrogate.
        """
        encoder = self._ready(False, add_special_tokens, OWN)
        is_arrow = hasattr(texts, "__arrow_c_array__") or hasattr(texts, "__arrow_c_stream__")
        threads = _threads(num_threads)
        if self._model.unknown == _core.NO_ID:  # Ids must be seen to tell which text needs it.
            wanted = (add_special_tokens, False, False, False, False, threads)
            if is_arrow:
                *rows, _ = _core.encode_arrow(encoder, texts, *wanted)
            else:
                rows = encoder.encode_batch(texts, None, False, *wanted)
            return self._batch(rows, False, add_special_tokens, None).lengths
        count = partial(_core.count_arrow, encoder) if is_arrow else encoder.count_batch
        return count(texts, add_special_tokens, threads)

    def stream(
        self, texts: Iterable[str], batch_bytes: int = 1 << 20, **options: Any
    ) -> Iterator[EncodingBatch]:
        """Encodes texts as they come, in bounded memory and in order.

        Args:
            texts: The texts.
            batch_bytes: Roughly how many bytes of text to encode at a time.
            **options: Those of `encode_batch`.

        Yields:
            The rows of as many texts as make up a batch.
        """
        some: list[str] = []
        size = 0
        for text in texts:
            some.append(text)
            size += len(text)
            if size >= batch_bytes:
                yield self.encode_batch(some, **options)
                some, size = [], 0
        if some:
            yield self.encode_batch(some, **options)

    def _encoder(self, truncation: Truncation | None) -> _core.Encoder:
        made = self._encoders.get(truncation)
        if made is None:
            made = compiled.encoder(self._model, self.light_settings, truncation, self._isa)
            self._encoders[truncation] = made
        return made

    def _ready(self, is_pair: bool, special: bool, truncation: Truncation | None) -> _core.Encoder:
        """Returns the encoder, after naming special tokens that are needed and not there."""
        template = self.light_settings.template
        if special and template is not None:
            template.added(is_pair)
        return self._own if truncation is OWN else self._encoder(truncation)

    def _batch(
        self, rows: Sequence[Any], is_pair: bool, special: bool, padding: Padding | None
    ) -> EncodingBatch:
        ids, bounds, offsets, words, samples, firsts, seconds, overflow = rows
        batch = EncodingBatch(
            self, ids, bounds, samples, offsets, words, firsts, seconds, overflow, is_pair, special
        )
        if self._model.unknown == _core.NO_ID and len(ids) and ids.min() < 0:
            row = int(np.searchsorted(bounds, int(ids.argmin()), "right")) - 1
            raise SettingsError(
                f"text {int(samples[row])} holds a word that the vocabulary cannot spell, and the"
                f" vocabulary lacks the unknown token {self.light_settings.unk_token!r}",
                hint="Add it to the vocabulary.",
            )
        own = self.light_settings.padding if padding is OWN else padding
        return batch if own is None else batch.pad(own)

    def explain(self, text: str) -> "pl.DataFrame":
        """Tells why a text is cut as it is; see `chapbook.fast_wordpiece.explain.explain`."""
        from chapbook.fast_wordpiece.explain import explain

        return explain(self, text)

    # -------------------------------------------------------------------------------- decoding

    @cached_property
    def _spelled(self) -> spelling.Spellings:
        return spelling.spellings(self.settings)

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Joins pieces to a text; arguments as for `chapbook.fast_wordpiece.decode.decode`."""
        return spelling.decode(self._spelled, ids, skip_special_tokens)

    def decode_batch(self, rows: Any, skip_special_tokens: bool = True) -> list[str]:
        """Joins the pieces of many rows to texts; `rows` may be an `EncodingBatch`."""
        if isinstance(rows, EncodingBatch):
            rows = spelling.split_rows(rows.ids, rows.row_offsets)
        return spelling.decode_batch(self._spelled, rows, skip_special_tokens)

    def detokenize_words(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Joins pieces to words, as TensorFlow Text does."""
        return spelling.detokenize_words(self._spelled, ids)

    def tokens_of(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Returns the pieces of ids.

        Raises:
            KeyError: An id belongs to no piece.
        """
        pieces = self._spelled.pieces
        return [pieces[int(number)] for number in ids]

    # ------------------------------------------------------------------------------ vocabulary

    @cached_property
    def _vocab(self) -> dict[str, int]:
        added = {token.content: token.id for token in self.light_settings.added_tokens}
        return {**self.settings.vocab, **added}

    @property
    def vocab_size(self) -> int:
        """How many pieces there are, added tokens included."""
        return len(self._vocab)

    def get_vocab(self) -> dict[str, int]:
        """Returns the id of each piece, added tokens included."""
        return dict(self._vocab)

    def token_to_id(self, token: str) -> int | None:
        """Returns the id of a piece, or None."""
        return self._vocab.get(token)

    def id_to_token(self, id: int) -> str | None:  # noqa: A002 - the field's name for it
        """Returns the piece of an id, or None."""
        return self._spelled.pieces.get(id)

    # ------------------------------------------------------------------------ other tokenizers

    def _with(self, **changes: Any) -> "Tokenizer":
        """A tokenizer of the same vocabulary, which shares its memory and caches."""
        made = Tokenizer.__new__(Tokenizer)
        whole = self.__dict__.get("settings")
        made._start(
            self._model,
            replace(self.light_settings, **changes),
            whole and replace(whole, **changes),
        )
        return made

    def add_tokens(
        self, tokens: Iterable[str | AddedToken], *, special: bool = False
    ) -> "Tokenizer":
        """Returns a tokenizer that also knows these tokens.

        Args:
            tokens: Strings, which get the ids of the vocabulary or the next free ones and are
                matched in the normalised text unless special, or whole `AddedToken`s.
            special: Whether decoding may leave out the tokens given as strings.

        Returns:
            The new tokenizer; this one stays as it is.
        """
        added = {token.content: token for token in self.light_settings.added_tokens}
        free = max(max(self._vocab.values(), default=-1), -1) + 1
        for token in tokens:
            if isinstance(token, str):
                number = self._vocab.get(token)
                if token in added:
                    number = added[token].id
                if number is None:
                    number, free = free, free + 1
                token = AddedToken(token, number, special=special, normalized=not special)
            added[token.content] = token
        return self._with(added_tokens=tuple(added.values()))

    def with_truncation(self, max_length: int, **options: Any) -> "Tokenizer":
        """Returns a tokenizer that truncates; options are those of `Truncation`."""
        return self._with(truncation=Truncation(max_length, **options))

    def no_truncation(self) -> "Tokenizer":
        """Returns a tokenizer that does not truncate."""
        return self._with(truncation=None)

    def default_padding(self) -> Padding:
        """Returns padding to the longest row with `[PAD]`, as the vocabulary has it."""
        number = self.token_to_id("[PAD]")
        return Padding(id=0 if number is None else number)

    def with_padding(self, length: int | None = None, **options: Any) -> "Tokenizer":
        """Returns a tokenizer that pads; options are those of `Padding`."""
        own = self.light_settings.padding or self.default_padding()
        return self._with(padding=replace(own, length=length, **options))

    def no_padding(self) -> "Tokenizer":
        """Returns a tokenizer that does not pad."""
        return self._with(padding=None)

    def with_encode_special_tokens(self, value: bool = True) -> "Tokenizer":
        """Returns a tokenizer to which special tokens in a text are ordinary text, or are not."""
        return self._with(encode_special_tokens=value)

    def as_hf(self, **options: Any) -> "HFTokenizer":
        """Returns what can be called like a fast tokenizer of `transformers`."""
        from chapbook.fast_wordpiece.hf import HFTokenizer

        return HFTokenizer(self, **options)


def _restored(block: bytes, light: Settings, whole: Settings) -> Tokenizer:
    """Unpickles a tokenizer."""
    made = Tokenizer.__new__(Tokenizer)
    made._start(_core.open(block), light, whole)
    return made


def _mended(texts: Iterable[Any], is_pretokenized: bool) -> list[Any]:
    """Puts U+FFFD in the place of each lone surrogate."""
    if is_pretokenized:
        return [_mended(words, False) for words in texts]
    return [_SURROGATE.sub("\ufffd", text) if isinstance(text, str) else text for text in texts]


_in_fork = False


def _forked() -> None:
    global _in_fork
    _in_fork = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _threads(wanted: int | None) -> int:
    """Returns how many threads to use: all at hand, but one in a child process.

    There the parent's other workers, such as a data loader's, want the processors too.
    """
    if wanted is not None:
        if wanted < 1:
            raise ValueError(f"num_threads is {wanted} and must be at least 1")
        return wanted
    return 1 if _in_fork or _is_worker() else processors()


def _is_worker() -> bool:
    """Whether `multiprocessing` started this process, in whatever way."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


@cache
def processors() -> int:
    """Returns how many processors this process may use, by affinity and by control group."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # No such control group.
        pass
    return count
