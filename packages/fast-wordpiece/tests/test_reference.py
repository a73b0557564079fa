"""The plain-Python tokenizer against HuggingFace `tokenizers`, field by field."""

import itertools
import random
from dataclasses import replace

import pytest

from chapbook.fast_wordpiece import _unicode
from chapbook.fast_wordpiece.huggingface import huggingface
from chapbook.fast_wordpiece.reference import (
    Char,
    decode,
    encode,
    encode_batch,
    max_match,
    normalized,
)
from chapbook.fast_wordpiece.settings import (
    AddedToken,
    Normalizer,
    Padding,
    Settings,
    SettingsError,
    Template,
    Truncation,
)

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["cafe", "naive", "the", "they", "##y", "##ing", "un", "##aff", "##able", "##", "#", "##a"]
LETTERS = "abcxyzABXÀéñçßİ\u0131ŁΣς\u03c3Жйёїאבغٱंािคำที่кoK"
MARKS = (
    "\u0301\u0308\u0323\u0327\u0334\u0345\u0330\u05b0\u05bc\u0651\u064b\u093c\u094d\u0bcd\u0e38\u0e48"
    "\u1734\u1dfa\u20d0\u3099\U0001d165\U0001d16d\U0001e8d0"
)
HANGUL = "한국각ᄀ각힣"
IDEOGRAPHS = "中国\u3400\u4dbf\uf900\ufa0e\U00020000\U0002b820\U0002b920\U0002f800ー"
SINGLETONS = (
    "\u0149\u0344\u037e\u0387\u0958\u0f73\u0f81\u1e9b\u1fef\u2000\u2126\u212a\u212b\ufb1d"
    "\U00011938\U0001d15e"
)
SPACES = " \t\n\r\u00a0\u2003\u3000\u2028\u1680"
DELETED = (
    "\0\x0b\x0c\x1f\x7f\x85\u200b\u200d\u202e\u2060\ufeff\u00ad\ufffd\ue000\U000e0041\U000f0000"
)
PUNCTUATION = ".,!?'#-_()[]<>$+=^`|~\u166d\u3002\u2e43\u061d\U000111c9"
OTHER = "😀👍🏽\U0010ffff\u0378\u2460ǅﬀ"
POOLS = (
    LETTERS,
    LETTERS,
    "ab",
    MARKS,
    HANGUL,
    IDEOGRAPHS,
    SINGLETONS,
    SPACES,
    "  ",
    DELETED,
    PUNCTUATION,
    OTHER,
)
LITERALS = (
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[UNK]",
    "[PAD]",
    "##a",
    "cafe\u0301",
    "un",
    "affable",
    " the ",
)
NORMALIZERS = (
    Normalizer(),
    Normalizer(lowercase=False),
    Normalizer(strip_accents=False),
    Normalizer(lowercase=False, strip_accents=True),
    Normalizer(clean_text=False, handle_chinese_chars=False, strip_accents=True),
    Normalizer(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False),
)


def vocabulary() -> dict[str, int]:
    """Pieces for every character that the nasty pools can turn into, but not for all of them."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    for char in dict.fromkeys("".join(POOLS)):
        for normalizer in NORMALIZERS:
            for part in normalized([Char(char, 0, 1)], normalizer):
                if part.char not in "kK😀":
                    pieces += [part.char, f"##{part.char}"]
    return {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}


VOCAB = vocabulary()


def nasty_text(rng: random.Random, most: int = 14, literals: tuple[str, ...] = LITERALS) -> str:
    """Characters of all the pools and of all planes, words and literal special tokens."""
    parts = []
    for _ in range(rng.randrange(most)):
        kind = rng.random()
        if kind < 0.08:
            parts.append(rng.choice(literals))
        elif kind < 0.12:
            point = rng.choice(
                (rng.randrange(0x3000), rng.randrange(0x30000), rng.randrange(0x110000))
            )
            parts.append("" if 0xD800 <= point < 0xE000 else chr(point))
        elif kind < 0.14:
            parts.append(rng.choice("ab\u00e9") * rng.choice((99, 100, 101, 102)))
        else:
            pool = rng.choice(POOLS)
            parts.append("".join(rng.choice(pool) for _ in range(rng.randrange(1, 4))))
    return "".join(parts)


def fields(row) -> dict:
    """All that an encoding of either kind says, its windows of overflow included."""
    names = "ids tokens offsets word_ids type_ids special_tokens_mask attention_mask sequence_ids"
    out = {name: list(getattr(row, name)) for name in names.split()}
    return out | {"overflowing": [fields(window) for window in row.overflowing]}


def assert_same(settings: Settings, hf, *args, **kwargs) -> None:
    """Both tokenizers say the same, or both refuse."""
    try:
        theirs = fields(hf.encode(*args, **kwargs))
    except Exception as refused:
        with pytest.raises(SettingsError):
            encode(settings, *args, **kwargs)
        assert "truncat" in str(refused).lower() or "unk" in str(refused).lower()
    else:
        assert fields(encode(settings, *args, **kwargs)) == theirs, (args, kwargs)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_nasty_texts_have_the_ids_offsets_and_words_of_tokenizers(normalizer):
    settings = replace(Settings.bert(VOCAB), normalizer=normalizer)
    hf = huggingface(settings)
    rng = random.Random(1)
    for _ in range(500):
        assert_same(settings, hf, nasty_text(rng))


@pytest.mark.parametrize("lowercase", [True, False])
def test_marks_that_canonical_ordering_moves_leave_the_spans_where_they_were(lowercase):
    classes = {c: n for first, last, n in _unicode.CCC for c in map(chr, range(first, last + 1))}
    deleted = {chr(c) for first, last in _unicode.MARK for c in range(first, last + 1)}
    kept = sorted(set(classes) - deleted)
    assert len({classes[char] for char in kept}) > 3
    split = [chr(c) for c, text in _unicode.DECOMPOSE.items() if any(d in kept for d in text)]
    seen = [*kept, *"abe", *(part for char in split for part in _unicode.DECOMPOSE[ord(char)])]
    pieces = ["[UNK]", *(mark + char for char in dict.fromkeys(seen) for mark in ("", "##"))]
    settings = Settings(
        {piece: index for index, piece in enumerate(pieces)},
        normalizer=Normalizer(strip_accents=True, lowercase=lowercase),
    )
    hf = huggingface(settings)
    rng = random.Random(2)
    pools = (kept, kept, split, sorted(deleted & set(classes)), "abeé\u200b中")
    for _ in range(400):
        text = "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(1, 9)))
        assert_same(settings, hf, text)


FLAGS = ("special", "normalized", "single_word", "lstrip", "rstrip")
CONTENTS = (
    ("<m>", "<m", "m>", "><", "x<m>y"),
    ("ab", "a b", "abc", "b", "Ab"),
    ("café", "cafe", "Cafe", "CAFE\u0301", "fe"),
    (" ", "  ", " the", "the ", "e t"),
    ("中", "中国", "한국", "ᄒ", "İ"),
    ("[CLS]", "[SEP]", "[UNK]", "the", "un"),
)


def added_tokens(rng: random.Random) -> tuple[AddedToken, ...]:
    """Tokens that overlap and touch, with random flags, some of them in the vocabulary."""
    new = itertools.count(len(VOCAB))
    contents = [c for group in rng.sample(CONTENTS, 3) for c in rng.sample(group, rng.randrange(4))]
    # Which of two tokens with one normal form HuggingFace finds differs from one process to the
    # next.
    folded = {
        content.lower().replace("e\u0301", "e").replace("é", "e"): content for content in contents
    }
    out = []
    for content in folded.values():
        flags = {flag: rng.random() < 0.5 for flag in FLAGS}
        # Where white space is asked to take the white space before it, HuggingFace may panic.
        flags["lstrip"] &= not content[0].isspace()
        id_ = VOCAB[content] if content in VOCAB else next(new)
        out.append(AddedToken(content, id_, **flags))
    return tuple(out)


@pytest.mark.parametrize("encode_special_tokens", [False, True])
def test_added_tokens_with_every_mix_of_flags_are_cut_out_as_by_tokenizers(encode_special_tokens):
    rng = random.Random(3)
    around = ("", "", " ", "  ", "\t", "\u3000", "a", "é", "_", ".", "\u0301", "\u200b", "\0", "1")
    for _ in range(80):
        settings = Settings(
            VOCAB,
            normalizer=rng.choice(NORMALIZERS),
            added_tokens=added_tokens(rng),
            encode_special_tokens=encode_special_tokens,
        )
        hf = huggingface(settings)
        contents = [token.content for token in settings.added_tokens] or ["ab"]
        for _ in range(12):
            text = "".join(
                rng.choice(around) + rng.choice((str.upper, str.lower, str))(rng.choice(contents))
                for _ in range(rng.randrange(1, 6))
            )
            assert_same(settings, hf, text + rng.choice(around))
            assert_same(settings, hf, nasty_text(rng, 6, tuple(contents)))


def test_white_space_that_an_added_token_took_can_be_taken_again():
    tokens = (AddedToken("<m>", 2, rstrip=True), AddedToken(" ", 3))
    settings = Settings({"[UNK]": 0, "a": 1}, added_tokens=tokens)
    row = encode(settings, "a<m>  a")
    assert row.tokens == ["a", "<m>  ", " ", " ", "a"]
    assert row.offsets == [(0, 1), (1, 6), (4, 5), (5, 6), (6, 7)]
    assert_same(settings, huggingface(settings), "a<m>  a")


def test_of_two_added_tokens_with_one_normal_form_the_first_special_one_is_found():
    tokens = [AddedToken(form, 5 + i, normalized=True) for i, form in enumerate(("Ab", "aB", "AB"))]
    settings = Settings({"[UNK]": 0}, added_tokens=tuple(tokens))
    assert encode(settings, "ab").ids == [5]
    tokens[1] = replace(tokens[1], special=True)
    assert encode(replace(settings, added_tokens=tuple(tokens)), "ab").ids == [6]


def test_an_added_token_of_which_nothing_is_left_is_refused():
    settings = Settings(
        VOCAB, added_tokens=(AddedToken("\u0301", VOCAB["\u0301"], normalized=True),)
    )
    with pytest.raises(SettingsError, match="nothing is left"):
        encode(settings, "abc")


def test_words_and_pairs_are_encoded_as_by_tokenizers():
    settings = Settings.bert(VOCAB)
    hf = huggingface(settings)
    rng = random.Random(4)
    for _ in range(200):
        first, second = ([nasty_text(rng, 4) for _ in range(rng.randrange(5))] for _ in "ab")
        special = rng.random() < 0.5
        for is_pretokenized in (False, True):
            one, two = (first, second) if is_pretokenized else map(" ".join, (first, second))
            options = {"add_special_tokens": special, "is_pretokenized": is_pretokenized}
            assert_same(settings, hf, one, **options)
            assert_same(settings, hf, one, two, **options)


BERT = Settings.bert(VOCAB).template
CLS, SEP = ("[CLS]", (VOCAB["[CLS]"],), 0), ("[SEP]", (VOCAB["[SEP]"],), 0)
TEMPLATES = {
    "bert": BERT,
    "none": None,
    "other types": Template(
        (("A", 3), (*SEP[:2], 4)), (CLS, ("B", 2), SEP, ("A", 5), (*SEP[:2], 1))
    ),
    "roberta": Template(
        (CLS, ("A", 0), SEP), (CLS, ("A", 0), SEP, SEP, ("B", 0), SEP), roberta=True
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("direction", ["right", "left"])
def test_truncation_makes_the_rows_and_windows_of_tokenizers(name, direction):
    rng = random.Random(5)
    for strategy in ("longest_first", "only_first", "only_second"):
        for _ in range(60):
            stride = rng.choice((0, 0, 1, 2, 3))
            truncation = Truncation(stride + rng.randrange(1, 9), stride, strategy, direction)
            settings = Settings(VOCAB, template=TEMPLATES[name], truncation=truncation)
            first, second = (" ".join("abcxyz"[: rng.randrange(7)]) for _ in "ab")
            args = (first, second) if rng.random() < 0.7 else (first,)
            special = rng.random() < 0.7
            try:
                encode(settings, *args, add_special_tokens=special)
            except SettingsError as refused:
                if "stride" in str(refused) or "tokens of the template" in str(refused):
                    continue  # where HuggingFace panics or does not truncate
            try:
                hf = huggingface(settings)
            except Exception as refused:
                assert "stride" in str(refused)
                continue
            assert_same(settings, hf, *args, add_special_tokens=special)


def test_a_row_of_special_tokens_alone_keeps_the_text_as_overflow():
    settings = Settings(VOCAB, template=BERT, truncation=Truncation(2))
    row = encode(settings, "a b c")
    assert row.tokens == ["[CLS]", "[SEP]"]
    assert [window.tokens for window in row.overflowing] == [["[CLS]", "a", "b", "c", "[SEP]"]]
    assert fields(row) == fields(huggingface(settings).encode("a b c"))


@pytest.mark.parametrize(
    ("truncation", "pair", "numbers"),
    [
        (Truncation(1), None, "1 is less than the 2"),
        (Truncation(2), "b", "2 is less than the 3"),
        (Truncation(5, 3), None, "3 must be less than the 3"),
        (Truncation(5, 2, "only_second"), None, "no second sequence"),
        (Truncation(6, 0, "only_first"), "b c x", "4 tokens from a sequence of 4"),
    ],
)
def test_truncation_that_cannot_be_done_is_refused_with_its_numbers(truncation, pair, numbers):
    settings = Settings(VOCAB, template=BERT, truncation=truncation)
    with pytest.raises(SettingsError, match=numbers):
        encode(settings, "a b c x", pair)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_are_padded_as_by_tokenizers(name, side):
    rng = random.Random(6)
    for length, multiple_of, truncation in itertools.product(
        (None, 0, 5, 12), (None, 0, 4), (None, Truncation(8, 1, direction="left"))
    ):
        padding = Padding(length, multiple_of, side, id=VOCAB["[PAD]"], type_id=7, token="[PAD]")
        settings = Settings(VOCAB, template=TEMPLATES[name], truncation=truncation, padding=padding)
        hf = huggingface(settings)
        for _ in range(3):
            texts = [" ".join("abcxyz"[: rng.randrange(7)]) for _ in range(4)]
            pairs = [(text, "a b") for text in texts]
            for rows, theirs in (([(text, None) for text in texts], texts), (pairs, pairs)):
                ours = [fields(row) for row in encode_batch(settings, rows)]
                assert ours == [fields(row) for row in hf.encode_batch(theirs)]
        assert fields(encode(settings, "a")) == fields(hf.encode("a"))
        assert encode_batch(settings, []) == hf.encode_batch([]) == []


def test_offsets_are_trimmed_as_by_roberta():
    rng = random.Random(7)
    for trim_offsets, add_prefix_space in itertools.product((True, False), repeat=2):
        assert TEMPLATES["roberta"] is not None
        template = replace(
            TEMPLATES["roberta"], trim_offsets=trim_offsets, add_prefix_space=add_prefix_space
        )
        for normalizer in (Normalizer(), NORMALIZERS[-1]):
            settings = Settings(
                VOCAB | {"Ġa": len(VOCAB), "Ġ": len(VOCAB) + 1},
                normalizer=normalizer,
                added_tokens=(
                    AddedToken("<m>", len(VOCAB) + 2, lstrip=True, rstrip=True),
                    AddedToken(" ", VOCAB[" "]),
                ),
                template=template,
            )
            hf = huggingface(settings)
            for _ in range(40):
                parts = rng.choices((" ", "  ", "\t", "<m>", "a", "Ġa", "Ġ"), k=6)
                assert_same(settings, hf, "".join(parts[:3]), "".join(parts[3:]))


@pytest.mark.parametrize("cleanup", [True, False])
@pytest.mark.parametrize("mark", ["##", "@@@", "n"])
def test_decoding_gives_the_text_of_tokenizers(cleanup, mark):
    short = [".", "?", "!", ",", "'", "n't", "'m", "do", "not", "do not", "'s", "'ve", "'re", "t"]
    short += ["' .", "a ' b", "I do not", " ", "", "[CLS]", "<x>"]
    pieces = dict.fromkeys([*(p for s in short for p in (s, mark + s)), *WORDS])
    vocab = {piece: 2 * index for index, piece in enumerate(pieces)}
    settings = Settings(
        vocab,
        mark=mark,
        cleanup=cleanup,
        added_tokens=(
            AddedToken("[CLS]", vocab["[CLS]"], special=True),
            AddedToken("<x>", vocab["<x>"]),
        ),
    )
    hf = huggingface(settings)
    rng = random.Random(8)
    for _ in range(300):
        ids = [rng.randrange(2 * len(vocab)) for _ in range(rng.randrange(8))]
        for skip in (True, False):
            assert decode(settings, ids, skip) == hf.decode(ids, skip_special_tokens=skip)


def test_the_examples_of_the_specification():
    jamo = ["ᄒ", "##ᅡ", "##ᆫ", "##ᄀ", "##ᅮ", "##ᆨ"]
    pieces = ["[UNK]", "cafe", "x", "naive", "abc", "ab", "中", "国", "a", *jamo]
    settings = Settings({piece: index for index, piece in enumerate(pieces)})
    expected = {
        "cafe\u0301 x": [("cafe", (0, 4)), ("x", (6, 7))],
        "nai\u0308ve": [("naive", (0, 6))],
        "\u0301abc": [("abc", (1, 4))],
        "a\u200bb": [("ab", (0, 3))],
        "한국": list(zip(jamo, [(0, 1)] * 3 + [(1, 2)] * 3, strict=True)),
        "中国a": [("中", (0, 1)), ("国", (1, 2)), ("a", (2, 3))],
        "a" * 101: [("[UNK]", (0, 101))],
        "": [],
        "\0\u200b\ufeff": [],
    }
    for text, tokens in expected.items():
        row = encode(settings, text)
        assert list(zip(row.tokens, row.offsets, strict=True)) == tokens


def test_tf_text_isolates_the_ideographs_that_hf_leaves_in_words():
    settings = Settings({"[UNK]": 0, "a": 1, "\U0002b820": 2})
    tf_text = replace(settings, normalizer=Normalizer(compat="tf-text"))
    assert encode(settings, "a\U0002b820").tokens == ["[UNK]"]
    assert encode(tf_text, "a\U0002b820").tokens == ["a", "\U0002b820"]


def test_an_unknown_token_that_is_missing_is_named_at_the_first_word_that_needs_it():
    for unknown in ("[UNK]", None):
        settings = Settings({"a": 0}, unk_token=unknown)
        assert encode(settings, "a a").ids == [0, 0]
        with pytest.raises(SettingsError, match="word 'b'"):
            encode(settings, "a b")


def test_a_special_token_that_is_missing_is_named_when_the_template_needs_it():
    settings = Settings.bert({"[UNK]": 0, "a": 1, "[SEP]": 2})
    assert encode(settings, "a", add_special_tokens=False).ids == [1]
    with pytest.raises(SettingsError, match=r"lacks \[CLS\]"):
        encode(settings, "a")


def test_max_match_takes_the_longest_piece_at_every_place():
    vocab = {piece: index for index, piece in enumerate(["a", "abcd", "##b", "##bc", "##z"])}
    assert max_match("abcz", vocab) == ["a", "##bc", "##z"]
    assert max_match("abcd", vocab) == ["abcd"]
    assert max_match("abcdz", vocab) == ["abcd", "##z"]
    assert max_match("abd", vocab) == ["[UNK]"]
    assert max_match("", vocab) == []


@pytest.mark.parametrize("mark", ["##", "", "a", "@"])
def test_max_match_cuts_words_as_the_model_of_tokenizers(mark):
    rng = random.Random(9)
    for _ in range(60):
        pieces = {"".join(rng.choices("ab#", k=rng.randrange(1, 5))) for _ in range(12)}
        pieces |= {mark + piece for piece in rng.sample(sorted(pieces), 6)}
        vocab = {piece: index for index, piece in enumerate(["[UNK]", *sorted(pieces)])}
        model = tokenizers.models.WordPiece(
            vocab, unk_token="[UNK]", continuing_subword_prefix=mark
        )
        for _ in range(40):
            word = "".join(rng.choices("ab#", k=rng.randrange(1, 12)))
            theirs = [token.value for token in model.tokenize(word)]
            assert max_match(word, vocab, mark) == theirs, (word, vocab)
