"""A tokenizer that is called like a fast tokenizer of `transformers`, without that library."""

import warnings
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from chapbook.core.errors import MissingExtra
from chapbook.core.io import write_json
from chapbook.fast_wordpiece import files
from chapbook.fast_wordpiece.encoding import Encoding, EncodingBatch
from chapbook.fast_wordpiece.settings import Padding, Side, Truncation
from chapbook.fast_wordpiece.tokenizer import Tokenizer

# What `transformers` says of models without a limit.
NO_LIMIT = int(1e30)
_LARGEST_LIMIT = int(1e20)
_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_STRATEGIES = ("longest_first", "only_first", "only_second")

Words = Sequence[str]
Text = str | Words
Tensors = Literal["np", "jax", "pt"]
Strategy = Literal["longest_first", "only_first", "only_second", "do_not_truncate"]
Ids = int | Sequence[int] | np.ndarray


class CharSpan(NamedTuple):
    """From which character of a text to which, without the last."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """From which token of a row to which, without the last."""

    start: int
    end: int


class BatchEncoding(UserDict[str, Any]):
    """What a tokenizer returns: a dictionary whose entries are attributes too.

    Entries are lists, or arrays where tensors were asked for. An index gives an `Encoding`.

    Args:
        data: The entries.
        rows: Works out the rows, which is left until one is asked for; None where they are not
            known, as after `pad`.
    """

    def __init__(
        self, data: Mapping[str, Any], rows: Callable[[], list[Encoding]] | None = None
    ) -> None:
        super().__init__(data)
        self._rows = rows

    def __getattr__(self, name: str) -> Any:
        # `data` is missing only while an object is being unpickled.
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(f"a BatchEncoding has no {name!r}")

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self.data[key]
        if isinstance(key, slice) and self._rows is None:
            return {name: values[key] for name, values in self.data.items()}
        return self.encodings[key]

    def __getstate__(self) -> dict[str, Any]:
        rows = None if self._rows is None else self.encodings
        return {"data": self.data, "rows": rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.data = state["data"]
        rows = state["rows"]
        self._rows = None if rows is None else lambda: rows

    @cached_property
    def encodings(self) -> list[Encoding]:
        """The rows one by one, windows of overflow included where these were asked for."""
        if self._rows is None:
            raise ValueError("the rows are not known: this is no result of a call to a tokenizer")
        return self._rows()

    @property
    def is_fast(self) -> bool:
        """Whether words and characters can be looked up."""
        return self._rows is not None

    @property
    def n_sequences(self) -> int:
        """1 for texts, 2 for pairs."""
        return 2 if 1 in self.encodings[0].sequence_ids else 1

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Returns the pieces of a row."""
        return self.encodings[batch_index].tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Returns the word of each token of a row."""
        return self.encodings[batch_index].word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Returns the sequence of each token of a row."""
        return self.encodings[batch_index].sequence_ids

    def token_to_sequence(self, batch_or_token: int, token: int | None = None) -> int | None:
        """Returns the sequence of a token: of the first row if only the token is given."""
        row, token = self._at(batch_or_token, token)
        return row.token_to_sequence(token)

    def token_to_word(self, batch_or_token: int, token: int | None = None) -> int | None:
        """Returns the word of a token: of the first row if only the token is given."""
        row, token = self._at(batch_or_token, token)
        return row.token_to_word(token)

    def token_to_chars(self, batch_or_token: int, token: int | None = None) -> CharSpan | None:
        """Returns where a token stands: of the first row if only the token is given."""
        row, token = self._at(batch_or_token, token)
        span = row.token_to_chars(token)
        return span and CharSpan(*span)

    def word_to_tokens(
        self, batch_or_word: int, word: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """Returns the tokens of a word: of the first row if only the word is given."""
        row, word = self._at(batch_or_word, word)
        span = row.word_to_tokens(word, sequence_index)
        return span and TokenSpan(*span)

    def word_to_chars(
        self, batch_or_word: int, word: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """Returns where a word stands: of the first row if only the word is given."""
        row, word = self._at(batch_or_word, word)
        span = row.word_to_chars(word, sequence_index)
        return span and CharSpan(*span)

    def char_to_token(
        self, batch_or_char: int, char: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Returns the token of a character: of the first row if only the character is given."""
        row, char = self._at(batch_or_char, char)
        return row.char_to_token(char, sequence_index)

    def char_to_word(
        self, batch_or_char: int, char: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Returns the word of a character: of the first row if only the character is given."""
        row, char = self._at(batch_or_char, char)
        return row.char_to_word(char, sequence_index)

    def _at(self, first: int, second: int | None) -> tuple[Encoding, int]:
        if second is None:
            return self.encodings[0], first
        return self.encodings[first], second

    def to(self, device: Any) -> "BatchEncoding":
        """Moves PyTorch tensors to a device, in place."""
        for name, values in self.data.items():
            if hasattr(values, "to"):
                self.data[name] = values.to(device)
        return self


class HFTokenizer:
    """A tokenizer with the calls of a fast tokenizer of `transformers`.

    Truncation and padding are what each call asks for; those of the tokenizer itself serve as
    defaults of `model_max_length`, the sides and the padding token alone.

    Args:
        tokenizer: What does the work.
        model_max_length: The most tokens of the model, for calls that do not say `max_length`.
        padding_side: Where padding goes.
        truncation_side: Where tokens are lost.
        model_input_names: What calls return unless they say otherwise.
        special_tokens: Names such as `cls_token` and the tokens that bear them; None means those
            of the template, the padding, and BERT's names.
        clean_up_tokenization_spaces: Whether decoding cleans whole texts too, as `transformers`
            offers it.

    Reference: `PreTrainedTokenizerFast` of `transformers`, version 5.
    """

    is_fast = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        model_max_length: int | None = None,
        padding_side: Side | None = None,
        truncation_side: Side | None = None,
        model_input_names: Sequence[str] = ("input_ids", "token_type_ids", "attention_mask"),
        special_tokens: Mapping[str, str] | None = None,
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        settings = tokenizer.settings
        truncation, padding = settings.truncation, settings.padding
        if model_max_length is None:
            model_max_length = truncation.max_length if truncation else NO_LIMIT
        self.model_max_length = model_max_length
        self.padding_side: Side = padding_side or (padding.side if padding else "right")
        self.truncation_side: Side = truncation_side or (
            truncation.direction if truncation else "right"
        )
        self.model_input_names = list(model_input_names)
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.pad_token_type_id = padding.type_id if padding else 0
        self.tokenizer = tokenizer
        named = _special_tokens(tokenizer) if special_tokens is None else dict(special_tokens)
        if unknown := named.keys() - set(_NAMES):
            raise ValueError(f"special_tokens has {sorted(unknown)}, which is none of {_NAMES}")
        self.special_tokens_map = {name: named[name] for name in _NAMES if name in named}

    # --------------------------------------------------------------------------------- vocabulary

    def __getattr__(self, name: str) -> Any:
        key = name.removesuffix("_id")
        if key not in _NAMES:
            raise AttributeError(f"an HFTokenizer has no {name!r}")
        token = self.special_tokens_map.get(key)
        return token if key == name or token is None else self.convert_tokens_to_ids(token)

    def __len__(self) -> int:
        return len(self.get_vocab())

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return (
            f"HFTokenizer(vocab_size={self.vocab_size}, model_max_length={self.model_max_length},"
            f" padding_side={self.padding_side!r}, truncation_side={self.truncation_side!r},"
            f" special_tokens={self.special_tokens_map})"
        )

    @property
    def vocab_size(self) -> int:
        """The number of pieces, without added tokens that are none."""
        return len(self.tokenizer.settings.vocab)

    def get_vocab(self) -> dict[str, int]:
        """Returns the ids of all pieces and added tokens."""
        return {**self.tokenizer.settings.vocab, **self.get_added_vocab()}

    @property
    def vocab(self) -> dict[str, int]:
        """The ids of all pieces and added tokens."""
        return self.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """Returns the ids of the added tokens."""
        return {token.content: token.id for token in self.tokenizer.settings.added_tokens}

    @property
    def all_special_tokens(self) -> list[str]:
        """The tokens with a name, and the other special added tokens."""
        added = [token.content for token in self.tokenizer.settings.added_tokens if token.special]
        return list(dict.fromkeys([*self.special_tokens_map.values(), *added]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return [self._id(token) for token in self.all_special_tokens]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Returns the id of a token or the ids of several; the unknown token's for unknown ones."""
        if isinstance(tokens, str):
            return self._id(tokens)
        return [self._id(token) for token in tokens]

    def _id(self, token: str) -> Any:
        number = self.tokenizer.token_to_id(token)
        unknown = self.special_tokens_map.get("unk_token")
        if number is None and unknown is not None:
            number = self.tokenizer.token_to_id(unknown)
        return number

    def convert_ids_to_tokens(self, ids: Ids, skip_special_tokens: bool = False) -> Any:
        """Returns the token of an id or the tokens of several; None for ids of no piece."""
        if isinstance(ids, int | np.integer):
            return self.tokenizer.id_to_token(int(ids))
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.tokenizer.id_to_token(int(i)) for i in ids if int(i) not in skipped]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Returns how many tokens the template adds to a text or to a pair."""
        template = self.tokenizer.settings.template
        return template.added(pair) if template else 0

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Returns 1 for each special token of a row that has its special tokens already."""
        if token_ids_1 is not None or not already_has_special_tokens:
            raise ValueError("only rows with already_has_special_tokens=True are supported")
        special = set(self.all_special_ids)
        return [int(number in special) for number in token_ids_0]

    # --------------------------------------------------------------------------------------- call

    def __call__(
        self,
        text: Text | Sequence[Text] | Sequence[tuple[Text, Text]],
        text_pair: Text | Sequence[Text] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | Literal["longest", "max_length", "do_not_pad"] = False,
        truncation: bool | Strategy | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        return_tensors: Tensors | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        split_special_tokens: bool | None = None,
    ) -> BatchEncoding:
        """Encodes a text, a pair, or many of them.

        Args:
            text: A text; a list of texts; or a list of (text, pair) tuples.
            text_pair: The pair of the text, or of each of the texts.
            add_special_tokens: Whether the template's special tokens are added.
            padding: `True` or `"longest"` fills rows up to the longest, `"max_length"` up to
                `max_length` or the model's limit.
            truncation: `True` or `"longest_first"` shortens the longer sequence of a pair first,
                `"only_first"` and `"only_second"` one of them. None means True if `max_length` is
                given and rows are not padded.
            max_length: The most tokens of a row; None means the model's limit.
            stride: How many tokens two neighbouring windows of overflow share.
            is_split_into_words: Whether each text is a list of words.
            pad_to_multiple_of: What the width is rounded up to a multiple of.
            padding_side: Where padding goes; None means as the tokenizer says.
            return_tensors: `"np"`, `"jax"` or `"pt"` for arrays instead of lists.
            return_token_type_ids: Whether to return `token_type_ids`; None means if
                `model_input_names` holds them.
            return_attention_mask: The same of `attention_mask`.
            return_overflowing_tokens: Whether windows of what was cut off follow as rows of their
                own, with `overflow_to_sample_mapping`.
            return_special_tokens_mask: Whether to return `special_tokens_mask`.
            return_offsets_mapping: Whether to return `offset_mapping`, in characters.
            return_length: Whether to return `length`, padding included.
            split_special_tokens: Whether special tokens in a text are ordinary text; None means as
                the tokenizer says.

        Returns:
            The rows; without the batch's dimension where a single text came in and lists go out.

        Raises:
            ValueError: The options or the numbers of texts and pairs contradict each other.
            TypeError: What should be a text is none.
        """
        pad, cut = self._limits(padding, truncation, max_length, pad_to_multiple_of)
        texts, pairs, batched = _inputs(text, text_pair, is_split_into_words)
        filling = pad and Padding(
            pad.length,
            pad_to_multiple_of,
            padding_side or self.padding_side,
            self.pad_token_id,
            self.pad_token_type_id,
            self.pad_token,
        )

        def encode(offsets: bool, word_ids: bool) -> EncodingBatch:
            return self._encoder(split_special_tokens).encode_batch(
                texts,
                pairs,
                add_special_tokens=add_special_tokens,
                is_pretokenized=is_split_into_words,
                truncation=cut and Truncation(cut[1], stride, cut[0], self.truncation_side),
                padding=filling,
                overflow=return_overflowing_tokens,
                offsets=offsets,
                word_ids=word_ids,
                num_threads=1 if len(texts) == 1 else None,
            )

        batch = encode(offsets=return_offsets_mapping, word_ids=False)
        columns: dict[str, np.ndarray] = {"input_ids": batch.ids}
        if self._returns("token_type_ids", return_token_type_ids):
            columns["token_type_ids"] = batch.type_ids
        if self._returns("attention_mask", return_attention_mask):
            ones = np.ones_like(batch.ids)
            columns["attention_mask"] = batch.attention_mask if filling else ones
        if return_special_tokens_mask:
            columns["special_tokens_mask"] = batch.special_tokens_mask
        if return_offsets_mapping:
            columns["offset_mapping"] = batch.offsets
        place = _lists if return_tensors is None else _table
        data = {name: place(flat, batch.row_offsets) for name, flat in columns.items()}
        if return_length:
            data["length"] = batch.lengths.tolist()
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = batch.samples.tolist()
        if return_tensors is not None:
            data = {name: _tensor(value, return_tensors) for name, value in data.items()}
        elif not batched and not return_overflowing_tokens:
            data |= {name: data[name][0] for name in columns}
        return BatchEncoding(data, lambda: list(encode(offsets=True, word_ids=True)))

    def encode(
        self,
        text: Text,
        text_pair: Text | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | Literal["longest", "max_length", "do_not_pad"] = False,
        truncation: bool | Strategy | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        padding_side: Side | None = None,
        return_tensors: Tensors | None = None,
    ) -> Any:
        """Returns the ids alone; the arguments are those of a call."""
        return self(
            text,
            text_pair,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            is_split_into_words=is_split_into_words,
            padding_side=padding_side,
            return_tensors=return_tensors,
        )["input_ids"]

    def tokenize(
        self, text: Text, pair: Text | None = None, add_special_tokens: bool = False
    ) -> list[str]:
        """Returns the pieces of a text or a pair."""
        return self(text, pair, add_special_tokens=add_special_tokens).tokens()

    def _encoder(self, literal: bool | None) -> Tokenizer:
        if literal is None or literal == self.tokenizer.light_settings.encode_special_tokens:
            return self.tokenizer
        return self._other

    @cached_property
    def _other(self) -> Tokenizer:
        """The same, but for what special tokens in a text are."""
        own = self.tokenizer.light_settings.encode_special_tokens
        return self.tokenizer.with_encode_special_tokens(not own)

    def _returns(self, name: str, asked: bool | None) -> bool:
        return name in self.model_input_names if asked is None else asked

    def _limits(
        self,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        multiple_of: int | None,
    ) -> "tuple[_Pad | None, tuple[Any, int] | None]":
        if max_length is not None and padding is False and truncation is None:
            truncation = "longest_first"
        strategy = "longest_first" if truncation is True else truncation or None
        strategy = None if strategy == "do_not_truncate" else strategy
        fill = "longest" if padding is True else padding or None
        fill = None if fill == "do_not_pad" else fill
        if strategy not in (None, *_STRATEGIES):
            raise ValueError(f"truncation is {truncation!r} and must be one of {_STRATEGIES}")
        if fill not in (None, "longest", "max_length"):
            raise ValueError(f"padding is {padding!r} and must be 'longest' or 'max_length'")
        if padding is True and max_length is not None and strategy is None:
            warnings.warn(
                "max_length is ignored with padding=True and without truncation; padding="
                "'max_length' fills rows up to it",
                stacklevel=3,
            )
        if max_length is None and self.model_max_length <= _LARGEST_LIMIT:
            max_length = self.model_max_length
        if max_length is None:
            # Models without a limit are neither cut nor filled up to it.
            strategy, fill = None, None if fill == "max_length" else fill
        if fill and self.pad_token_id is None:
            raise ValueError(
                "padding was asked for, and the tokenizer has no pad_token; say which token it is"
                " with special_tokens={'pad_token': ...}"
            )
        if strategy and fill and multiple_of and max_length and max_length % multiple_of:
            raise ValueError(
                f"max_length {max_length} is no multiple of pad_to_multiple_of {multiple_of}, and"
                " rows are both cut and filled up"
            )
        pad = _Pad(max_length if fill == "max_length" else None) if fill else None
        return pad, (strategy, cast(int, max_length)) if strategy else None

    # ---------------------------------------------------------------------------- pad and decode

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | Literal["longest", "max_length", "do_not_pad"] = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Tensors | None = None,
    ) -> BatchEncoding:
        """Fills up rows that calls have returned, as collators of data loaders need it.

        Args:
            encoded_inputs: The result of a call, or a list of results of single texts. Of its
                entries `input_ids`, `token_type_ids`, `attention_mask` and `special_tokens_mask`
                are filled up; others stay as they are.
            padding: As in a call.
            max_length: As in a call.
            pad_to_multiple_of: As in a call.
            padding_side: As in a call.
            return_attention_mask: As in a call.
            return_tensors: As in a call; None means arrays if arrays came in.

        Returns:
            The rows.

        Raises:
            ValueError: There are no `input_ids`.
        """
        if isinstance(encoded_inputs, Mapping):
            data = dict(encoded_inputs)
        else:
            names = encoded_inputs[0].keys() if encoded_inputs else ["input_ids"]
            data = {name: [row[name] for row in encoded_inputs] for name in names}
        if "input_ids" not in data:
            raise ValueError(f"there are no input_ids to pad, only {list(data)}")
        if return_tensors is None:
            return_tensors = _kind(data["input_ids"])
        data = {name: _plain_lists(values) for name, values in data.items()}
        single = bool(data["input_ids"]) and not isinstance(data["input_ids"][0], list)
        if single:
            data = {name: [values] for name, values in data.items()}
        masked = self._returns("attention_mask", return_attention_mask)
        if masked:
            data.setdefault("attention_mask", [[1] * len(row) for row in data["input_ids"]])
        pad, _ = self._limits(padding, False, max_length, pad_to_multiple_of)
        if pad is not None:
            longest = max(map(len, data["input_ids"]), default=0)
            width = Padding(pad.length, pad_to_multiple_of).width(longest)
            fills = {"input_ids": self.pad_token_id, "token_type_ids": self.pad_token_type_id}
            fills |= {"special_tokens_mask": 1} | ({"attention_mask": 0} if masked else {})
            left = (padding_side or self.padding_side) == "left"
            for name, fill in fills.items():
                if name in data:
                    missing = [[fill] * (width - len(row)) for row in data[name]]
                    data[name] = [
                        more + row if left else row + more
                        for row, more in zip(data[name], missing, strict=True)
                    ]
        if single:
            data = {name: values[0] for name, values in data.items()}
        if return_tensors is not None:
            data = {name: _tensor(values, return_tensors) for name, values in data.items()}
        return BatchEncoding(data)

    def decode(
        self,
        token_ids: Ids | Sequence[Sequence[int]],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Returns the text of a row of ids, or the texts of many.

        Args:
            token_ids: An id, the ids of a row, or rows.
            skip_special_tokens: Whether to leave out special tokens.
            clean_up_tokenization_spaces: Whether to clean the whole text too; None means as the
                tokenizer says.

        Returns:
            A text, or a list of texts if rows came in.
        """
        ids = _plain_lists(token_ids)
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            texts = self.tokenizer.decode_batch(ids, skip_special_tokens=skip_special_tokens)
        else:
            ids = ids if isinstance(ids, list) else [ids]
            texts = [self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)]
        clean = clean_up_tokenization_spaces
        if self.clean_up_tokenization_spaces if clean is None else clean:
            texts = [_cleaned(text) for text in texts]
        return texts if ids and isinstance(ids[0], list) else texts[0]

    def batch_decode(
        self,
        sequences: Sequence[Sequence[int]] | np.ndarray,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Returns the texts of rows of ids; the arguments are those of `decode`."""
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        if isinstance(texts, str):
            return [texts] if len(sequences) else []
        return texts

    # --------------------------------------------------------------------------------------- save

    def save_pretrained(self, save_directory: str | Path) -> tuple[str, str]:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which `transformers` reads too.

        Args:
            save_directory: The folder; it is made if need be.

        Returns:
            The paths of the two files.

        Raises:
            Error: The format cannot hold the tokenizer.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        settings = self.tokenizer.settings
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "model_input_names": self.model_input_names,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "split_special_tokens": settings.encode_special_tokens,
            **self.special_tokens_map,
        }
        names = folder / "tokenizer_config.json", folder / "tokenizer.json"
        files.write(replace(settings, encode_special_tokens=False), names[1])
        write_json(names[0], config)
        return str(names[0]), str(names[1])


# -------------------------------------------------------------------------------------- helpers


class _Pad(NamedTuple):
    """To what length rows are filled up; None means that of the longest."""

    length: int | None


def _lists(flat: np.ndarray, row_offsets: np.ndarray) -> list[Any]:
    values = flat.tolist() if flat.ndim == 1 else list(map(tuple, flat.tolist()))
    return [values[a:b] for a, b in pairwise(row_offsets.tolist())]


def _table(flat: np.ndarray, row_offsets: np.ndarray) -> np.ndarray:
    widths = np.diff(row_offsets)
    width = int(widths.max(initial=0))
    if (widths != width).any():
        raise ValueError(
            f"rows of {int(widths.min())} to {width} tokens make no array; ask for padding=True,"
            " and for truncation=True with a max_length if need be"
        )
    return flat.astype(np.int64).reshape(len(widths), width, *flat.shape[1:])


def _inputs(
    text: Any, text_pair: Any, is_split_into_words: bool
) -> tuple[list[Any], list[Any] | None, bool]:
    """Returns texts, their pairs, and whether a batch came in."""
    if is_split_into_words and not isinstance(text, list | tuple):
        raise TypeError(f"text is a {type(text).__name__}, and split text is a list of words")
    batched = isinstance(text, list | tuple)
    if is_split_into_words:
        batched = len(text) > 0 and isinstance(text[0], list | tuple)
    if not batched:
        # An empty pair counts as none.
        return [text], [text_pair] if text_pair else None, False
    texts: list[Any] = list(text)
    if text_pair is not None:
        if isinstance(text_pair, str) or len(text_pair) != len(texts):
            found = "one text" if isinstance(text_pair, str) else f"{len(text_pair)} texts"
            raise ValueError(f"text_pair is {found}, and text is a batch of {len(texts)}")
        return texts, list(text_pair), True
    kind = list | tuple if is_split_into_words else str
    paired = [_is_pair(item, kind) for item in texts]
    if not any(paired):
        return texts, None, True
    if not all(paired):
        raise ValueError(
            f"text {paired.index(False)} has no pair, and text {paired.index(True)} has one"
        )
    return [first for first, _ in texts], [second for _, second in texts], True


def _is_pair(item: Any, kind: Any) -> bool:
    return (
        isinstance(item, list | tuple)
        and len(item) == 2
        and all(isinstance(half, kind) for half in item)
    )


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    settings = tokenizer.settings

    def known(*tokens: str | None) -> str | None:
        found = (t for t in tokens if t is not None and tokenizer.token_to_id(t) is not None)
        return next(found, None)

    single = settings.template.single if settings.template else ()
    first, last = (
        piece[0] if piece is not None and len(piece) == 3 else None
        for piece in (single[0] if single else None, single[-1] if single else None)
    )
    named = {
        "unk_token": settings.unk_token,
        "sep_token": known(last, "[SEP]"),
        "pad_token": settings.padding.token if settings.padding else known("[PAD]", "<pad>"),
        "cls_token": known(first, "[CLS]"),
        "mask_token": known("[MASK]", "<mask>"),
    }
    return {name: token for name, token in named.items() if token is not None}


def _tensor(values: Any, kind: Tensors) -> Any:
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(
            "rows of several lengths make no array; ask for padding=True, and for"
            " truncation=True with a max_length if need be"
        ) from None
    array = array.astype(np.int64) if array.size == 0 else array
    if kind == "np":
        return array
    packages = {"jax": ("jax", "jax.numpy", "asarray"), "pt": ("torch", "torch", "tensor")}
    if kind not in packages:
        raise ValueError(f"return_tensors is {kind!r} and must be 'np', 'jax' or 'pt'")
    package, module, function = packages[kind]
    try:
        return getattr(import_module(module), function)(array)
    except ModuleNotFoundError:
        raise MissingExtra(
            f"return_tensors={kind!r} needs {package}", hint=f"pip install {package}"
        ) from None


def _kind(values: Any) -> Tensors | None:
    """Returns the kind of tensors that these are, or that a list of them holds."""
    first = values[0] if isinstance(values, list | tuple) and len(values) else values
    library = type(first).__module__.split(".")[0]
    kinds: dict[str, Tensors] = {"numpy": "np", "jaxlib": "jax", "jax": "jax", "torch": "pt"}
    return kinds.get(library)


def _plain_lists(values: Any) -> Any:
    """Returns arrays, and lists that hold arrays, as lists."""
    if hasattr(values, "tolist"):
        return values.tolist()
    if isinstance(values, list | tuple):
        return [_plain_lists(value) for value in values]
    return values


def _cleaned(text: str) -> str:
    # Not those of the decoder: `transformers` leaves "do not" alone here.
    for old in (" .", " ?", " !", " ,"):
        text = text.replace(old, old[1:])
    text = text.replace(" ' ", "'")
    for old in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(old, old[1:])
    return text
