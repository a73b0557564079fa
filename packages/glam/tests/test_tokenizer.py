import io
import json
import random
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from chapbook.core.errors import Error, MissingExtra
from chapbook.glam.tokenizer import (
    END,
    ByteTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
)

WORDS = ["the", "then", "there", "other", "mother", "smother", "bother", "another", "weather"]
HARD = [
    "", " ", "the mother", "  two\n\n\tlines \r\n", "Füße é\u0301 😀 \u2028", f"a{END}b", "\ufffd",
    "中文", "".join(map(chr, range(1, 300))),
]  # fmt: skip


def corpus(seed: int = 0) -> pl.DataFrame:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=50)) for _ in range(20)]
    return pl.DataFrame({"id": [str(i) for i in range(20)], "text": texts})


@pytest.fixture(scope="module")
def bpe() -> HuggingFaceTokenizer:
    return train_tokenizer([corpus()], 280)


@pytest.fixture(scope="module")
def sentencepiece() -> SentencePieceTokenizer:
    package = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()["text"].to_list()),
        model_writer=model,
        vocab_size=300,
        byte_fallback=True,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue())


@pytest.mark.parametrize("text", HARD)
def test_decoding_an_encoding_gives_the_text_back(bpe, text):
    for tokenizer in (ByteTokenizer(), bpe):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.end not in ids
        assert all(0 <= each < tokenizer.vocab_size for each in ids)


def test_a_batch_is_what_its_texts_are_alone(bpe, sentencepiece):
    for tokenizer in (ByteTokenizer(), bpe, sentencepiece):
        assert isinstance(tokenizer, Tokenizer)
        for text, ids in zip(HARD, tokenizer.encode_batch(HARD), strict=True):
            assert ids.dtype == np.int32
            assert ids.tolist() == tokenizer.encode(text).tolist()


def test_the_first_merge_is_the_most_frequent_pair(bpe):
    pairs = Counter()
    for text in corpus()["text"]:
        # A word takes the space before it along, as the byte-level rule splits.
        for number, word in enumerate(text.split(" ")):
            letters = word if number == 0 else " " + word
            pairs.update(a + b for a, b in pairwise(letters))
    first = bpe.decode([257])  # behind the end and the bytes
    assert pairs[first] == max(pairs.values())


def test_training_depends_neither_on_the_order_nor_on_the_batches(bpe):
    shuffled = corpus().sample(fraction=1.0, shuffle=True, seed=1)
    again = train_tokenizer(iter([shuffled[:3], shuffled[3:]]), 280)
    assert again.fingerprint == bpe.fingerprint
    assert again.vocab_size == 280
    assert train_tokenizer([corpus()], 279).fingerprint != bpe.fingerprint


def test_a_vocabulary_that_cannot_be_filled_is_an_error_with_both_numbers():
    with pytest.raises(Error, match=r"vocab_size=5000 is larger than .* after \d+ tokens"):
        train_tokenizer([corpus()], 5000)
    with pytest.raises(Error, match="vocab_size=256 is too small"):
        train_tokenizer([corpus()], 256)
    with pytest.raises(Error, match="no documents"):
        train_tokenizer([], 300)


def test_what_was_saved_loads_as_the_same(bpe, sentencepiece, tmp_path):
    for number, tokenizer in enumerate((ByteTokenizer(), bpe, sentencepiece)):
        folder = tmp_path / str(number)
        folder.mkdir()
        file = tokenizer.save(folder)
        for path in (file, folder):
            loaded = load_tokenizer(path)
            assert type(loaded) is type(tokenizer)
            assert (loaded.fingerprint, loaded.end) == (tokenizer.fingerprint, tokenizer.end)
            assert loaded.encode(HARD[4]).tolist() == tokenizer.encode(HARD[4]).tolist()
    assert isinstance(load_tokenizer("bytes"), ByteTokenizer)


def test_a_sentencepiece_model_gives_a_text_back(sentencepiece):
    text = "the weather 中 😀"
    assert sentencepiece.decode(sentencepiece.encode(text)) == text


def test_ends_are_left_out_of_text_and_unknown_ids_are_named(bpe):
    for tokenizer in (ByteTokenizer(), bpe):
        ids = [*tokenizer.encode("one"), tokenizer.end, *tokenizer.encode("two")]
        assert tokenizer.decode(ids) == "onetwo"
        assert tokenizer.decode([]) == ""
        with pytest.raises(Error, match="token 9999 is not in the vocabulary of"):
            tokenizer.decode([9999])


def test_an_end_token_of_another_name_is_found_when_it_is_told(bpe, tmp_path):
    content = json.loads(bpe.save(tmp_path).read_text())
    content["added_tokens"][0]["content"] = "<stop>"
    content["model"]["vocab"]["<stop>"] = content["model"]["vocab"].pop(END)
    file = tmp_path / "other.json"
    file.write_text(json.dumps(content))
    with pytest.raises(Error, match="no token that ends a document; its special ones are <stop>"):
        load_tokenizer(file)
    named = load_tokenizer(file, end="<stop>")
    assert named.end == bpe.end
    named.save(file)
    assert load_tokenizer(file).end == bpe.end
    with pytest.raises(Error, match="no token <halt>"):
        load_tokenizer(file, end="<halt>")


def test_files_that_are_no_tokenizer_are_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "bad.json").write_text('{"model": 1}')
    (tmp_path / "bad.model").write_bytes(b"nothing")
    for name, told in [
        ("bad.json", "bad.json is no tokenizer"),
        ("none.json", "none.json: no such tokenizer"),
        (".", "holds no tokenizer.json"),
    ]:
        with pytest.raises(Error) as raised:
            load_tokenizer(tmp_path / name)
        assert told in raised.value.message
        assert "\n" not in raised.value.message
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtra, match=r"pip install 'chapbook-glam\[sentencepiece\]'"):
        load_tokenizer(tmp_path / "bad.model")
