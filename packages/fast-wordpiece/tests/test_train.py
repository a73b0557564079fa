"""A trained vocabulary is that of Hugging Face, however the words were counted."""

import contextlib
import email
import itertools
import os
import pydoc_data.topics
import random
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from chapbook.core.errors import Error
from chapbook.fast_wordpiece import _core, train
from chapbook.fast_wordpiece.settings import SPECIAL_TOKENS, Normalizer
from chapbook.fast_wordpiece.train import train_vocab

SCRIPTS = ["abcdefgh", "абвгдежз", "αβγδεζ", "가나다라마", "कखगघङ", "中文字汉", "éüöñ", "مسعد"]


def english() -> list[str]:
    return [text for topic in pydoc_data.topics.topics.values() for text in topic.split("\n\n")]


def source_code() -> list[str]:
    folder = Path(email.__file__).parent
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))]


def many_languages() -> list[str]:
    draw = random.Random(7)

    def text(letters: str) -> str:
        return " ".join("".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(9))

    return [text(draw.choice(SCRIPTS)) for _ in range(1200)]


def two_letters() -> list[str]:
    """Few letters make many ties, runs such as aaaa, and pieces that are spelled in two ways."""
    draw = random.Random(8)
    return ["".join(draw.choices("ab", k=draw.randint(1, 30))) for _ in range(3000)]


def hugging_face(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Iterable[str],
    *,
    min_frequency: int = 2,
    limit_alphabet: int = 1000,
    initial_alphabet: Iterable[str] = (),
    mark: str = "##",
    lowercase: bool = True,
) -> list[str]:
    """Returns the pieces that `WordPieceTrainer` makes, in the order of their ids."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special_tokens),
        limit_alphabet=limit_alphabet,
        initial_alphabet=list(initial_alphabet),
        continuing_subword_prefix=mark,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    return sorted(vocab, key=lambda piece: vocab[piece])


def characters(pieces: Iterable[str], mark: str = "##") -> list[str]:
    """Returns the special tokens and the whole alphabet, which come before all merged pieces."""

    def first(piece: str) -> bool:
        return piece in SPECIAL_TOKENS or len(piece.removeprefix(mark)) == 1

    return list(itertools.takewhile(first, pieces))


@pytest.mark.parametrize("vocab_size", [900, 30_000])
@pytest.mark.parametrize("corpus", [english, source_code, many_languages, two_letters])
def test_the_vocabulary_is_that_of_hugging_face_id_by_id(corpus, vocab_size):
    texts = corpus()
    ours = list(train_vocab(texts, vocab_size))
    assert hugging_face(texts, vocab_size, characters(ours)) == ours


@pytest.mark.parametrize("corpus", [english, two_letters])
def test_any_vocabulary_that_hugging_face_gives_is_given_by_its_alphabet(corpus):
    texts = corpus()[:1500]
    theirs = hugging_face(texts, 4000, SPECIAL_TOKENS)  # its continuations are in random order
    ours = train_vocab(texts, 4000, special_tokens=characters(theirs))
    assert list(ours) == theirs


@pytest.mark.parametrize(
    "options",
    [
        {"min_frequency": 0},
        {"min_frequency": 40},
        {"limit_alphabet": 30},
        {"limit_alphabet": 30, "initial_alphabet": ["é", "ß", "中"]},
        {"mark": "@@@"},
        {"lowercase": False},
    ],
    ids=str,
)
def test_every_option_means_what_it_means_to_hugging_face(options):
    texts = english()[:400]
    given = dict(options)
    if "lowercase" in given:
        given["normalizer"] = Normalizer(lowercase=given.pop("lowercase"))
    ours = list(train_vocab(texts, 3000, **given))
    head = characters(ours, options.get("mark", "##"))
    assert hugging_face(texts, 3000, head, **options) == ours


@pytest.mark.parametrize("seed", range(40))
def test_small_corpora_full_of_ties_agree_with_hugging_face(seed):
    draw = random.Random(seed)
    letters = "abcdé중"[: draw.randint(1, 6)]
    words = ["".join(draw.choices(letters, k=draw.randint(1, 12))) for _ in range(40)]
    texts = [" ".join(draw.choices(words, k=50))]
    ours = list(train_vocab(texts, 300, min_frequency=draw.randint(0, 3)))
    assert hugging_face(texts, len(ours), characters(ours), min_frequency=0) == ours


def test_a_worked_example():
    words = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}
    texts = [" ".join([word] * times) for word, times in words.items()]
    vocab = train_vocab(texts, 18, special_tokens=["[UNK]"])
    alphabet = ["b", "g", "h", "n", "p", "s", "u", "##u", "##n", "##g", "##s"]
    merged = ["##ug", "##un", "hug", "pun", "pug", "hugs"]  # 20, 16, 15, 12, then 5 and 5
    assert list(vocab) == ["[UNK]", *alphabet, *merged]
    assert list(vocab.values()) == list(range(18))


def test_training_ends_where_no_pair_is_frequent_enough():
    assert list(train_vocab(["aab aac"], special_tokens=[])) == [
        "a",
        "b",
        "c",
        "##a",
        "##b",
        "##c",
        "aa",
    ]


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_and_memory_budget_do_not_change_the_vocabulary(threads, monkeypatch):
    monkeypatch.setattr(train, "BLOCK", 1 << 14)
    monkeypatch.setattr(train, "FILES", 5)
    texts = english()[:600]
    once = train_vocab(texts, 3000, num_threads=1)
    again = train_vocab(texts, 3000, num_threads=threads, memory_budget=1)
    assert list(again) == list(once)


def write_files(folder: Path) -> list[Path]:
    """Writes texts to three files: many lines, Windows lines, and one line without any space."""
    texts = english()[:600]
    files = [
        folder / "lines.txt",
        folder / "windows.txt",
        folder / "one-word.txt",
        folder / "empty",
    ]
    files[0].write_text("\n".join(texts[:300]), encoding="utf-8")
    files[1].write_text("\r\n".join(texts[300:]), encoding="utf-8", newline="")
    files[2].write_text("中文字汉é" * 5000, encoding="utf-8")
    files[3].touch()
    return files


def as_texts(files: Iterable[Path]) -> list[str]:
    return [file.read_text(encoding="utf-8") for file in files]


@pytest.mark.parametrize("block", [100, 4096, train.BLOCK])
def test_files_hold_the_words_of_their_texts_wherever_they_are_cut(block, tmp_path, monkeypatch):
    files = write_files(tmp_path)
    expected = train_vocab(as_texts(files), 2000)
    monkeypatch.setattr(train, "BLOCK", block)
    assert list(train_vocab(files=files, vocab_size=2000)) == list(expected)


KILLED = """
import os, signal, sys
from chapbook.fast_wordpiece import train
train.BLOCK, train.COMMIT, train.FILES = 2000, 9000, 4
*files, run, blocks = sys.argv[1:]
seen = 0
def progress(stage, done, total):
    global seen
    seen += 1
    if seen == int(blocks):
        os.kill(os.getpid(), signal.SIGKILL)
train.train_vocab(files=files, vocab_size=2000, run=run, progress=progress)
"""


@pytest.mark.parametrize("blocks", [1, 20])
def test_a_killed_count_goes_on_where_it_stopped(blocks, tmp_path):
    files = write_files(tmp_path)
    run = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, *map(str, files), str(run), str(blocks)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    committed = set((run / "counts").iterdir())
    assert bool(committed) == (blocks > 1)
    positions = []

    def progress(stage: str, done: int, total: int | None) -> None:
        if stage == "count":
            positions.append((done, total))

    size = sum(file.stat().st_size for file in files)
    resumed = train_vocab(files=files, vocab_size=2000, run=run, progress=progress)
    assert list(resumed) == list(train_vocab(as_texts(files), 2000))
    assert positions == [(size, size)]
    assert committed < set((run / "counts").iterdir())
    positions.clear()
    smaller = train_vocab(files=files, vocab_size=1500, run=run, progress=progress)
    assert not positions
    assert list(smaller) == list(resumed)[:1500]


def test_a_kill_between_a_merge_of_counts_and_its_clean_up_counts_nothing_twice(
    tmp_path, monkeypatch
):
    files = write_files(tmp_path)
    monkeypatch.setattr(train, "BLOCK", 2000)
    monkeypatch.setattr(train, "COMMIT", 2000)
    monkeypatch.setattr(train, "FILES", 10_000)
    first = train_vocab(files=files, vocab_size=2000, run=tmp_path / "run")
    parts = sorted((tmp_path / "run" / "counts").iterdir())
    assert len(parts) > 10
    whole = parts[0].with_name(parts[0].stem[:21] + parts[7].stem[21:] + ".counts")
    _core.merge_counts(list(map(str, parts[:8])), str(whole))
    parts[0].with_name(".0123456789ab.counts").write_bytes(b"half")
    again = train_vocab(files=files, vocab_size=2000, run=tmp_path / "run")
    assert list(again) == list(first)
    assert sorted((tmp_path / "run" / "counts").iterdir()) == [whole, *parts[8:]]


@pytest.mark.parametrize("at", [0, 40, -1])
def test_a_damaged_file_of_counts_is_named(at, tmp_path):
    files = write_files(tmp_path)
    train_vocab(files=files, vocab_size=2000, run=tmp_path / "run")
    (path,) = (tmp_path / "run" / "counts").iterdir()
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(Error, match=path.name) as caught:
        train_vocab(files=files, vocab_size=2000, run=tmp_path / "run")
    assert "delete it" in str(caught.value.hint)


def test_a_run_of_other_files_is_refused(tmp_path):
    files = write_files(tmp_path)
    train_vocab(files=files, vocab_size=2000, run=tmp_path / "run")
    with pytest.raises(Error, match="run folder holds a run with files="):
        train_vocab(files=files[:1], vocab_size=2000, run=tmp_path / "run")
    with pytest.raises(Error, match="lowercase"):
        train_vocab(
            files=files,
            vocab_size=2000,
            run=tmp_path / "run",
            normalizer=Normalizer(lowercase=False),
        )


@pytest.mark.parametrize("stage", ["count", "merge"])
def test_what_progress_raises_stops_the_training(stage):
    def progress(now: str, done: int, total: int | None) -> None:
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_vocab(["some words to count"], 100, progress=progress)


def test_ctrl_c_stops_a_count_on_its_way(tmp_path):
    options = dict.fromkeys(
        ["clean_text", "handle_chinese_chars", "strip_accents", "lowercase"], True
    )
    for size in (1 << 24, 1 << 26, 1 << 28):  # as long as the machine is too fast for it
        counter = _core.WordCounts(2, **options, tf_text=False)
        text = b"ab " * (size // 3)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            try:
                counter.add(text)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        counter.write(str(tmp_path / "counts"))
        content = (tmp_path / "counts").read_bytes().partition(b"\x02ab")[2]
        count = 0
        for place, byte in enumerate(content):
            count |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                break
        if count < len(text) // 3:
            return
    pytest.fail("a quarter of a gigabyte was counted before the signal was seen")


def test_the_alphabet_must_fit():
    with pytest.raises(Error, match="vocab_size is 9, but there are 5 special tokens and 5 single"):
        train_vocab(["abc"], 9)
    assert len(train_vocab(["abc"], 10)) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either texts or files"),
        ({"texts": ["a"], "files": ["b"]}, "either texts or files"),
        ({"texts": "one text"}, "single string"),
        ({"files": "one.txt"}, "single path"),
        ({"texts": ["a"], "run": "folder"}, "only a count of files can be resumed"),
        ({"texts": ["a"], "algorithm": "likelihood"}, 'the only one is "bpe"'),
        ({"texts": ["a"], "vocab_size": 0}, "vocab_size is 0 and must be at least 1"),
        ({"texts": ["a"], "num_threads": 0}, "num_threads is 0"),
        ({"texts": ["a"], "initial_alphabet": ["ab"]}, "'ab', which is not one character"),
        ({"texts": ["a", "b\ud800"]}, "text 1 has the lone surrogate '.ud800' at 1"),
        ({"texts": []}, "no word"),
        ({"texts": [" \u200b\n"]}, "no word"),
        ({"files": []}, "no word"),
    ],
)
def test_what_cannot_work_is_refused_by_name(arguments, message):
    with pytest.raises(Error, match=message):
        train_vocab(**arguments)


def test_a_text_that_is_no_string_is_told_by_its_place():
    with pytest.raises(TypeError, match="text 1 is a NoneType, not a str"):
        train_vocab(["a", None])  # pyright: ignore[reportArgumentType]


def test_a_file_that_is_not_utf_8_is_told_with_the_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "BLOCK", 64)
    path = tmp_path / "latin-1.txt"
    path.write_bytes(b"word " * 50 + b"caf\xe9 " + b"word " * 50)
    with pytest.raises(Error, match=r"latin-1.txt is not UTF-8 at byte 253"):
        train_vocab(files=[path])


def test_a_missing_file_is_an_os_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        train_vocab(files=[tmp_path / "absent.txt"])


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "BLOCK", 100)
    path = tmp_path / "log.txt"
    path.write_text("some words " * 100)

    def progress(stage: str, done: int, total: int | None) -> None:
        with path.open("a") as file:
            file.write("more words ")

    with pytest.raises(Error, match=r"log\.txt has changed while it was read"):
        train_vocab(files=[path], vocab_size=100, progress=progress)


def test_counts_that_cannot_be_written_are_an_os_error_that_names_the_file(tmp_path):
    counter = _core.WordCounts(
        1,
        clean_text=True,
        handle_chinese_chars=True,
        strip_accents=True,
        lowercase=True,
        tf_text=False,
    )
    counter.add(b"word")
    absent = os.fspath(tmp_path / "absent" / "counts")
    with pytest.raises(FileNotFoundError) as caught:
        counter.write(absent)
    assert caught.value.filename == absent
