"""Trains a vocabulary: exact word counts, then the merges of Hugging Face's `WordPieceTrainer`.

Notable choices:

- Words are counted in memory up to a budget; beyond it, sorted files of counts are written and
  merged. A file's name says which part of the input it counts, so that a killed count goes on
  after the last of them.
- `WordPieceTrainer` numbers the continuations of the alphabet (`##a`) in the random order of a
  hash map, and chooses by these numbers between equally frequent pairs: each of its runs gives
  another vocabulary. Ours is the one that it gives when its words come in byte order.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic
from chapbook.fast_wordpiece import _core
from chapbook.fast_wordpiece.settings import SPECIAL_TOKENS, Normalizer

Progress = Callable[[str, int, int | None], object]

BLOCK = 8 << 20  # bytes counted by one call
COMMIT = 1 << 30  # bytes after which a run writes down what it has counted
FILES = 32  # files of counts that are merged into one
SPACES = b" \t\n\r"  # a text that is cut here has the same words


def train_vocab(
    texts: Iterable[str] | None = None,
    vocab_size: int = 30_000,
    *,
    files: Sequence[str | Path] | None = None,
    min_frequency: int = 2,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    limit_alphabet: int = 1000,
    initial_alphabet: Iterable[str] = (),
    normalizer: Normalizer | None = None,
    mark: str = "##",
    algorithm: str = "bpe",
    num_threads: int | None = None,
    memory_budget: int = 1 << 30,
    run: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Trains a vocabulary by merging the most frequent pair of pieces, again and again.

    The pieces and their ids are those of Hugging Face's `WordPieceTrainer` on the same input, up
    to the one thing that it leaves to chance: the order of the alphabet's continuations. Given as
    `special_tokens` to both, the special tokens and the whole alphabet leave nothing to chance.

    The words are counted exactly and the result does not depend on the number of threads, on the
    memory budget or on where a run was interrupted. The merges hold every distinct word in memory,
    some 400 bytes each.

    Args:
        texts: The texts. Either these or `files`.
        vocab_size: The number of pieces. There are fewer when the words have no more pairs that
            are frequent enough.
        files: Files of plain text in UTF-8.
        min_frequency: How often a pair must occur to be merged.
        special_tokens: The pieces that come first, in their order.
        limit_alphabet: How many characters are kept, the most frequent ones. Others vanish from
            the words.
        initial_alphabet: Characters that are kept even if no text has them.
        normalizer: What is done to the texts before; None means BERT's uncased one.
        mark: What pieces that continue a word begin with.
        algorithm: `"bpe"`; there is no other.
        num_threads: For counting; None means one for each processor at hand.
        memory_budget: Bytes of word counts beyond which they go to files, looked at after each 8
            MiB of text.
        run: A folder for the word counts of `files`. A count that was interrupted goes on where it
            stopped, and another vocabulary of the same files needs no new count.
        progress: Called with `"count"`, the bytes or texts that are counted, and how many there
            are (None if unknown); then with `"merge"`, the pieces so far, and `vocab_size`.

    Returns:
        The ids of the pieces, in the order of the ids.

    Raises:
        Error: An argument cannot work; a file is not UTF-8 or changes while it is read; there is
            no word in the input; the special tokens and the alphabet fill the vocabulary, which
            `WordPieceTrainer` would make larger than asked.
        TypeError: A text is no string.

    Reference:
        Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units",
        ACL 2016, algorithm 1; its form with continuation marks is that of `tokenizers`.
    """
    threads = _processors() if num_threads is None else num_threads
    _check(texts, files, run, algorithm)
    for name, value, least in (
        ("vocab_size", vocab_size, 1),
        ("min_frequency", min_frequency, 0),
        ("limit_alphabet", limit_alphabet, 0),
        ("num_threads", threads, 1),
        ("memory_budget", memory_budget, 1),
    ):
        if value < least:
            raise Error(f"{name} is {value} and must be at least {least}")
    alphabet = "".join(map(_character, initial_alphabet))
    normalizer = normalizer or Normalizer()
    tell = progress or (lambda stage, done, total: None)
    counter = _core.WordCounts(
        threads,
        clean_text=normalizer.clean_text,
        handle_chinese_chars=normalizer.handle_chinese_chars,
        strip_accents=normalizer.strips_accents,
        lowercase=normalizer.lowercase,
        tf_text=normalizer.compat == "tf-text",
    )
    with contextlib.ExitStack() as stack:
        if texts is not None:
            folder = stack.enter_context(_temporary_folder())
            total = len(texts) if isinstance(texts, Sized) else None
            kept = _count(counter, _text_blocks(texts), total, folder, memory_budget, tell)
        else:
            inputs = [_Input(Path(file), Path(file).stat()) for file in files or ()]
            folder = stack.enter_context(
                _temporary_folder() if run is None else _run_folder(run, inputs, normalizer)
            )
            total = sum(file.stat.st_size for file in inputs)
            blocks = _file_blocks(inputs, _counted(_kept(folder)))
            kept = _count(
                counter, blocks, total, folder, memory_budget, tell, commit=run is not None
            )
        with _mendable():
            pieces, special, single, words = _core.train_bpe(
                counter,
                list(map(str, kept)),
                vocab_size,
                min_frequency,
                list(special_tokens),
                limit_alphabet,
                alphabet,
                mark,
                lambda done: tell("merge", done, vocab_size),
            )
    if not words:
        raise Error("there is no word in the input to train on")
    if special + single > vocab_size:
        raise Error(
            f"vocab_size is {vocab_size}, but there are {special} special tokens and {single} "
            "single characters, with and without the mark",
            f"raise it to {special + single} or more, or lower limit_alphabet",
        )
    return {piece: number for number, piece in enumerate(pieces)}


def _check(texts: object, files: object, run: object, algorithm: str) -> None:
    if algorithm != "bpe":
        raise Error(f'algorithm is {algorithm!r}; the only one is "bpe"')
    if (texts is None) == (files is None):
        raise Error("train_vocab needs either texts or files")
    if isinstance(texts, str | bytes):
        raise Error("texts is a single string", "give a list of texts, or files")
    if isinstance(files, str | Path):
        raise Error("files is a single path", "give a list of paths")
    if run is not None and files is None:
        raise Error("only a count of files can be resumed", "leave run away, or give files")


def _character(text: str) -> str:
    if len(text) != 1:
        raise Error(f"initial_alphabet holds {text!r}, which is not one character")
    return text


def _processors() -> int:
    """Returns how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _text_blocks(texts: Iterable[str]) -> Iterator[tuple[bytes, int]]:
    """Yields texts, some at a time as UTF-8, and how many have gone by."""
    block: list[str] = []
    size = end = 0
    for end, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise TypeError(f"text {end - 1} is a {type(text).__name__}, not a str")
        block.append(text)
        size += len(text)
        if size >= BLOCK // 2:
            yield _utf8(block, end), end
            block, size = [], 0
    if block:
        yield _utf8(block, end), end


def _utf8(texts: list[str], end: int) -> bytes:
    """Returns the texts as lines of UTF-8; `end` is the number of the text after them."""
    try:
        return "\n".join(texts).encode()
    except UnicodeEncodeError:
        for number, text in enumerate(texts, start=end - len(texts)):
            if found := re.search("[\ud800-\udfff]", text):
                raise Error(
                    f"text {number} has the lone surrogate {found[0]!r} at {found.start()}",
                    'clean it by text.encode("utf-8", "replace").decode()',
                ) from None
        raise


class _Input(NamedTuple):
    path: Path
    stat: os.stat_result


def _file_blocks(inputs: Sequence[_Input], start: int) -> Iterator[tuple[bytes, int]]:
    """Yields the files, some of them or a part of one at a time, from a position on.

    A position is a number of bytes in all files laid end to end; each block comes with its end.
    """
    block: list[bytes] = []
    size = end = 0
    for part, end in _parts(inputs, start):
        block.append(part)
        size += len(part)
        if size >= BLOCK:
            yield b"\n".join(block), end
            block, size = [], 0
    if block:
        yield b"\n".join(block), end


def _parts(inputs: Sequence[_Input], start: int) -> Iterator[tuple[bytes, int]]:
    """Yields parts of files, each up to a space or to the file's end, and where they end."""
    position = 0
    for path, stat in inputs:
        if position + stat.st_size <= start:
            position += stat.st_size
            continue
        with path.open("rb") as file:
            file.seek(max(start - position, 0))
            at = file.tell()
            held: list[bytes] = []
            while data := file.read(BLOCK):
                cut = max(map(data.rfind, SPACES)) + 1
                if cut:
                    part = b"".join([*held, data[:cut]])
                    _check_utf8(part, path, at)
                    at += len(part)
                    yield part, position + at
                    held = []
                held.append(data[cut:])
            if part := b"".join(held):
                _check_utf8(part, path, at)
                at += len(part)
                yield part, position + at
            if at != stat.st_size:
                raise Error(f"{path} has changed while it was read", "start again when it is whole")
        position += stat.st_size


def _check_utf8(part: bytes, path: Path, at: int) -> None:
    try:
        part.decode()
    except UnicodeDecodeError as problem:
        raise Error(f"{path} is not UTF-8 at byte {at + problem.start}: {problem.reason}") from None


def _count(
    counter: _core.WordCounts,
    blocks: Iterator[tuple[bytes, int]],
    total: int | None,
    folder: Path,
    budget: int,
    tell: Progress,
    *,
    commit: bool = False,
) -> list[Path]:
    """Counts the blocks and returns the files of counts, beside what is left in the counter.

    Args:
        counter: Counts the words.
        blocks: Text, and the position where it ends.
        total: The last position, if it is known.
        folder: Where files of counts are, and go.
        budget: Bytes of counts beyond which they are written down.
        tell: Is told of the progress.
        commit: Whether to write down everything, and often.
    """
    kept = _kept(folder)
    start = end = _counted(kept)
    for block, end in blocks:
        counter.add(block)
        if counter.bytes > budget or (commit and end - start >= COMMIT):
            kept, start = _write(counter, folder, kept, end), end
        tell("count", end, total)
    return _write(counter, folder, kept, end) if commit and end > start else kept


def _write(counter: _core.WordCounts, folder: Path, kept: list[Path], end: int) -> list[Path]:
    """Moves the counts so far to a file; when there are many, they become one."""
    path = folder / f"{_counted(kept):020}-{end:020}.counts"
    write_atomic(path, lambda part: counter.write(str(part)))
    counter.clear()
    kept = [*kept, path]
    if len(kept) < FILES:
        return kept
    whole = folder / f"{0:020}-{end:020}.counts"
    names = list(map(str, kept))
    with _mendable():
        write_atomic(whole, lambda part: _core.merge_counts(names, str(part)))
    return _kept(folder)


@contextlib.contextmanager
def _mendable() -> Iterator[None]:
    """Tells the user what to do about a damaged file of counts."""
    try:
        yield
    except _core.DamagedCounts as problem:
        raise Error(str(problem), "delete it: its part of the input is counted again") from None


def _kept(folder: Path) -> list[Path]:
    """Returns the files of counts that follow each other from position 0, and deletes all others.

    Others are left where a kill came between writing the whole and deleting its parts.
    """
    spans = {}
    for path in folder.iterdir():
        first, _, last = path.stem.partition("-")
        if first.isdecimal() and last.isdecimal():
            spans[int(first), int(last)] = path
    chain = []
    end = 0
    while following := [span for span in spans if span[0] == end and span[1] > end]:
        end = max(following)[1]
        chain.append(spans[max(following)])
    for path in set(folder.iterdir()).difference(chain):
        path.unlink()
    return chain


def _counted(kept: list[Path]) -> int:
    """Returns the position up to which files of counts go."""
    return int(kept[-1].stem.partition("-")[2]) if kept else 0


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextlib.contextmanager
def _run_folder(
    run: str | Path, inputs: Sequence[_Input], normalizer: Normalizer
) -> Iterator[Path]:
    """Holds a run whose options are all that decides the counts, and yields its folder for them."""
    from chapbook.core.run import Run

    facts = [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in inputs]
    files = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    options = {"files": files, **asdict(normalizer)}
    with Run(run, options) as held:
        folder = held.path / "counts"
        folder.mkdir(exist_ok=True)
        yield folder
