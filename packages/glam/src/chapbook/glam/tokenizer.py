"""Text to token ids and back: bytes, trained BPE, and the files of other projects.

Notable choices:

- What is trained is byte-level BPE: every byte is a token, so nothing is unknown, and decoding an
  encoding gives the text back.
- The end-of-document token never comes out of text, even if its name is written there; whoever
  packs documents puts it behind each.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
from jaxtyping import Int32, Integer
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers, trainers

from chapbook.core.errors import Error, MissingExtra
from chapbook.core.io import write_atomic, write_json

END = "<|endoftext|>"
ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "<|end|>")
BYTES = 256

_CONFIG = "tokenizer_config.json"


@runtime_checkable
class Tokenizer(Protocol):
    """What turns text into token ids and back."""

    @property
    def vocab_size(self) -> int:
        """All ids are below it."""
        ...

    @property
    def end(self) -> int:
        """The id that ends a document; encoding never yields it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Tells whether two tokenizers are the same."""
        ...

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Returns the ids of a text, without an end."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " _"]]:
        """Returns the ids of each text; on several cores where that is possible."""
        ...

    def decode(self, ids: Sequence[int] | Integer[np.ndarray, " tokens"]) -> str:
        """Returns the text of ids; ends are left out, bytes that are no letter become U+FFFD."""
        ...

    def save(self, path: str | Path) -> Path:
        """Writes the file that `load_tokenizer` reads, and returns its path.

        Args:
            path: The file; or a folder, in which it is `tokenizer.json` or `tokenizer.model`.
        """
        ...


class ByteTokenizer:
    """Every byte of UTF-8 is a token, 0 to 255; 256 ends a document."""

    vocab_size: int = BYTES + 1
    end: int = BYTES
    fingerprint: str = "bytes"

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """As in `Tokenizer`."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " _"]]:
        """As in `Tokenizer`."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int] | Integer[np.ndarray, " tokens"]) -> str:
        """As in `Tokenizer`."""
        found = _checked(ids, self.vocab_size)
        return found[found < BYTES].astype(np.uint8).tobytes().decode(errors="replace")

    def save(self, path: str | Path) -> Path:
        """As in `Tokenizer`."""
        return _write(path, "tokenizer.json", b'{"kind": "bytes"}\n')


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` package: trained by `train_tokenizer`, or read from JSON.

    Args:
        inner: The tokenizer; this object takes it over, and switches off that it reads the names
            of special tokens in text.
        end: The name of the token that ends a document; the first of `ENDS` that it has if None.

    Raises:
        Error: It has no such token.
    """

    def __init__(self, inner: Fast, end: str | None = None):
        self._inner = inner
        inner.encode_special_tokens = True
        inner.no_truncation()
        inner.no_padding()
        special = {held.content: place for place, held in inner.get_added_tokens_decoder().items()}
        names = [name for name in ENDS if name in special] if end is None else [end]
        found = inner.token_to_id(names[0]) if names else None
        if found is None:
            raise Error(
                f"the tokenizer has no token {end or 'that ends a document'}; "
                f"its special ones are {', '.join(special) or 'none'}"
            )
        self.end = found
        self.end_name = names[0]
        self.fingerprint = _hash(f"{inner.to_str()}{found}".encode())

    @property
    def vocab_size(self) -> int:
        """As in `Tokenizer`."""
        return max(self._inner.get_vocab().values()) + 1

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """As in `Tokenizer`."""
        return np.array(self._inner.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " _"]]:
        """As in `Tokenizer`."""
        found = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(each.ids, np.int32) for each in found]

    def decode(self, ids: Sequence[int] | Integer[np.ndarray, " tokens"]) -> str:
        """As in `Tokenizer`."""
        return self._inner.decode(_checked(ids, self.vocab_size).tolist())

    def save(self, path: str | Path) -> Path:
        """As in `Tokenizer`."""
        file = _write(path, "tokenizer.json", self._inner.to_str(pretty=True).encode())
        if self.end_name not in ENDS:
            write_json(file.with_name(_CONFIG), {"eos_token": self.end_name})
        return file


class SentencePieceTokenizer:
    """A SentencePiece model. Spaces come back as its normalisation leaves them.

    Args:
        model: The content of a `.model` file.

    Raises:
        MissingExtra: The package sentencepiece is not installed.
        Error: The model cannot be read, or has no end-of-sentence token.
    """

    def __init__(self, model: bytes):
        try:
            from sentencepiece import SentencePieceProcessor
        except ModuleNotFoundError:
            raise MissingExtra(
                "SentencePiece models need sentencepiece; "
                "install it with: pip install 'chapbook-glam[sentencepiece]'"
            ) from None
        self._model = model
        self._inner: Any = SentencePieceProcessor()
        try:
            self._inner.LoadFromSerializedProto(model)
        except RuntimeError as problem:
            raise Error("this is no SentencePiece model") from problem
        self.fingerprint = _hash(model)
        self.vocab_size: int = self._inner.get_piece_size()
        self.end: int = self._inner.eos_id()
        if self.end < 0:
            raise Error("the SentencePiece model has no end-of-sentence token")

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """As in `Tokenizer`."""
        return np.array(self._inner.encode(text), np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " _"]]:
        """As in `Tokenizer`."""
        return [np.array(each, np.int32) for each in self._inner.encode(list(texts))]

    def decode(self, ids: Sequence[int] | Integer[np.ndarray, " tokens"]) -> str:
        """As in `Tokenizer`."""
        return self._inner.decode(_checked(ids, self.vocab_size).tolist())

    def save(self, path: str | Path) -> Path:
        """As in `Tokenizer`."""
        return _write(path, "tokenizer.model", self._model)


def train_tokenizer(documents: Iterable[pl.DataFrame], vocab_size: int) -> HuggingFaceTokenizer:
    """Trains byte-level BPE: merges the most frequent pair until the vocabulary is full.

    The result depends on the documents and not on their order. Memory grows with the number of
    distinct words, not with the text.

    Args:
        documents: Frames with a column `text`, as `read_documents` gives them.
        vocab_size: The number of tokens: the end of a document, the 256 bytes and the merges.

    Raises:
        Error: The vocabulary does not hold all bytes, or is larger than the documents allow.

    Reference:
        Sennrich, Haddow, Birch, Neural Machine Translation of Rare Words with Subword Units, 2016;
        on bytes as in Radford et al., Language Models are Unsupervised Multitask Learners, 2019.
    """
    if vocab_size <= BYTES:
        raise Error(f"vocab_size={vocab_size} is too small: {BYTES} bytes and an end are needed")
    inner = Fast(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen = 0

    def texts() -> Iterator[list[str]]:
        nonlocal seen
        for batch in documents:
            seen += batch.height
            yield batch["text"].to_list()

    inner.train_from_iterator(texts(), trainer)
    if not seen:
        raise Error("there are no documents to train a tokenizer on")
    if (held := inner.get_vocab_size()) < vocab_size:
        raise Error(
            f"vocab_size={vocab_size} is larger than the documents allow: "
            f"their words are whole after {held} tokens"
        )
    return HuggingFaceTokenizer(inner)


def load_tokenizer(path: str | Path, *, end: str | None = None) -> Tokenizer:
    """Reads a tokenizer.

    Args:
        path: `bytes`; a `tokenizer.json` of Hugging Face or of `save`; a SentencePiece `.model`;
            or a folder that holds one of these.
        end: The name of the token that ends a document, in a Hugging Face file. If None, it is the
            `eos_token` of a `tokenizer_config.json` beside, or else the first of `ENDS`.

    Raises:
        MissingExtra: The file needs sentencepiece, which is not installed.
        Error: There is no such file, or it is no tokenizer.
    """
    if str(path) == "bytes":
        return ByteTokenizer()
    file = Path(path)
    if file.is_dir():
        held = [file / name for name in ("tokenizer.json", "tokenizer.model")]
        found = next((each for each in held if each.exists()), None)
        if found is None:
            raise Error(f"{file} holds no tokenizer.json and no tokenizer.model")
        file = found
    if not file.exists():
        raise Error(f"{file}: no such tokenizer; give a file, a folder or the word bytes")
    content = file.read_bytes()
    try:
        if file.suffix == ".model":
            return SentencePieceTokenizer(content)
        if json.loads(content) == {"kind": "bytes"}:
            return ByteTokenizer()
        return HuggingFaceTokenizer(Fast.from_str(content.decode()), end or _eos(file))
    except MissingExtra:
        raise
    except Error as problem:
        raise Error(f"{file}: {problem.message}", "name the token by --end-token") from None
    except Exception as problem:  # the package raises plain exceptions of its own
        told = f"{file} is no tokenizer of Hugging Face or SentencePiece: {problem}"
        raise Error(told.partition("\n")[0]) from problem


def _eos(file: Path) -> str | None:
    """Returns the end that Hugging Face's configuration beside a tokenizer names, if any."""
    config = file.with_name(_CONFIG)
    eos = json.loads(config.read_text()).get("eos_token") if config.exists() else None
    return eos["content"] if isinstance(eos, dict) else eos


def _checked(
    ids: Sequence[int] | Integer[np.ndarray, " tokens"], vocab_size: int
) -> Integer[np.ndarray, " tokens"]:
    found = np.asarray(ids, dtype=None if len(ids) else np.int32)
    if len(found) and not 0 <= found.min() <= found.max() < vocab_size:
        wrong = found[(found < 0) | (found >= vocab_size)][0]
        raise Error(f"token {wrong} is not in the vocabulary of {vocab_size}")
    return found


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _write(path: str | Path, name: str, content: bytes) -> Path:
    file = Path(path) / name if Path(path).is_dir() else Path(path)
    write_atomic(file, content)
    return file
