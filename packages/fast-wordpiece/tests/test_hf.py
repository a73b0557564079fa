"""The tokenizer answers calls as `transformers` does, and as `tokenizers` below it."""

import json
import pickle
import random
import warnings

import numpy as np
import pytest

from chapbook.core.errors import MissingExtra
from chapbook.fast_wordpiece import Padding, Settings, Template, Tokenizer, Truncation
from chapbook.fast_wordpiece.hf import BatchEncoding, HFTokenizer

PIECES = [
    *(
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "hello",
        "world",
        "##s",
        "a",
        "##b",
        "c",
        "##c",
    ),
    *("un", "##aff", "##able", ",", ".", "!", "中", "国", "e", "the"),
]
VOCAB = {piece: number for number, piece in enumerate(PIECES)}
TEXTS = [
    "hello worlds",
    "",
    "unaffable, abc! 中国 é the hello world abc abc abc abc",
    "[MASK] hello",
    "a b c",
    "zzz",
]
PAIRS = ["the", "hello worlds abc", "", "a b c a b c a b c a b c a b c", "c", "[SEP]"]
WORDS = [text.split() for text in TEXTS]
PAIR_WORDS = [text.split() for text in PAIRS]
FIELDS = ("ids", "tokens", "type_ids", "offsets", "word_ids", "sequence_ids")
FIELDS += ("special_tokens_mask", "attention_mask")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_vocab(PIECES)


@pytest.fixture(scope="module")
def ours(tokenizer):
    return tokenizer.as_hf(model_max_length=16)


@pytest.fixture(scope="module")
def theirs():
    transformers = pytest.importorskip("transformers")
    return transformers.BertTokenizerFast(vocab=dict(VOCAB), model_max_length=16)


@pytest.fixture(scope="module")
def backend(tokenizer, tmp_path_factory):
    """The same tokenizer in the library below `transformers`."""
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("backend") / "tokenizer.json"
    tokenizer.save(path)
    return tokenizers.Tokenizer.from_file(str(path))


def same(a, b):
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and (a == b).all()
    return a == b


def plain(values):
    values = values.tolist() if isinstance(values, np.ndarray) else values
    return [tuple(value) if isinstance(value, list) else value for value in values]


# ------------------------------------------------------------------ beside transformers itself

INPUTS = [
    (TEXTS[0], None, False),
    (TEXTS[2], None, False),
    ("", None, False),
    (TEXTS[2], PAIRS[3], False),
    (TEXTS[0], "", False),
    (TEXTS, None, False),
    ([TEXTS[0]], None, False),
    (TEXTS, PAIRS, False),
    (tuple(zip(TEXTS, PAIRS, strict=True)), None, False),
    (WORDS[2], None, True),
    (WORDS[2], PAIR_WORDS[3], True),
    (WORDS[2:], None, True),
    (WORDS, PAIR_WORDS, True),
]
OPTIONS = {
    "add_special_tokens": [True, False],
    "padding": [False, True, "longest", "max_length", "do_not_pad"],
    "truncation": [None, True, False, "only_first", "only_second", "do_not_truncate"],
    "max_length": [None, 9, 12],
    "stride": [0, 2],
    "pad_to_multiple_of": [None, 4],
    "padding_side": [None, "left"],
    "return_tensors": [None, None, "np"],
    "return_token_type_ids": [None, True, False],
    "return_attention_mask": [None, True, False],
    "return_overflowing_tokens": [False, True],
    "return_special_tokens_mask": [False, True],
    "return_offsets_mapping": [False, True],
    "return_length": [False, True],
    "split_special_tokens": [False, False, True],
}


@pytest.mark.parametrize("number", range(len(INPUTS)))
def test_calls_give_what_transformers_gives(ours, theirs, number):
    rng = random.Random(number)
    text, pair, split = INPUTS[number]
    equal = refused = ragged = 0
    for _ in range(150):
        options = {name: rng.choice(values) for name, values in OPTIONS.items()}
        with warnings.catch_warnings(action="ignore"):
            try:
                wanted = theirs(text, pair, is_split_into_words=split, **options)
            except BaseException as fault:
                # Options that contradict each other, or a sequence too short to be cut; a stride
                # that is too long makes the library panic, which is no Exception.
                if not isinstance(fault, Exception) and type(fault).__name__ != "PanicException":
                    raise
                with pytest.raises(ValueError):
                    ours(text, pair, is_split_into_words=split, **options)
                refused += 1
                continue
            if any(isinstance(v, np.ndarray) and v.dtype.hasobject for v in wanted.values()):
                with pytest.raises(ValueError, match="make no array"):
                    ours(text, pair, is_split_into_words=split, **options)
                ragged += 1
                continue
            got = ours(text, pair, is_split_into_words=split, **options)
        assert list(got) == list(wanted), options
        for name in wanted:
            a, b = got[name], wanted[name]
            if isinstance(a, np.ndarray) and not a.size:
                a = a.reshape(b.shape)  # The offsets of no tokens lack their last axis there.
            assert same(a, b), (name, options)
        assert len(got.encodings) == len(wanted.encodings)
        for a, b in zip(got.encodings, wanted.encodings, strict=True):
            for field in FIELDS:
                assert plain(getattr(a, field)) == plain(getattr(b, field)), (field, options)
        equal += 1
    assert equal >= 50


def test_alignment_is_that_of_transformers(ours, theirs):
    options = {"padding": True, "truncation": True, "padding_side": "left"}
    a, b = ours(TEXTS, PAIRS, **options), theirs(TEXTS, PAIRS, **options)
    assert a.n_sequences == b.n_sequences == 2
    for row in range(len(TEXTS)):
        assert a.tokens(row) == b.tokens(row)
        assert a.word_ids(row) == b.word_ids(row)
        assert a.sequence_ids(row) == b.sequence_ids(row)
        for token in range(16):
            assert a.token_to_chars(row, token) == b.token_to_chars(row, token)
            assert a.token_to_word(row, token) == b.token_to_word(row, token)
            assert a.token_to_sequence(row, token) == b.token_to_sequence(row, token)
        for sequence in (0, 1):
            for number in range(30):
                found = a.char_to_token(row, number, sequence)
                assert found == b.char_to_token(row, number, sequence)
                assert a.char_to_word(row, number, sequence) == b.char_to_word(
                    row, number, sequence
                )
                span = b.word_to_tokens(row, number, sequence)
                assert a.word_to_tokens(row, number, sequence) == span
                if span is not None:
                    chars = b.word_to_chars(row, number, sequence)
                    assert a.word_to_chars(row, number, sequence) == chars
    assert a.word_to_tokens(0) == b.word_to_tokens(0)
    assert a.char_to_token(0) == b.char_to_token(0)


def test_attributes_are_those_of_transformers(ours, theirs):
    assert len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert set(ours.all_special_ids) == set(theirs.all_special_ids)
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    for name in ("unk", "sep", "pad", "cls", "mask", "bos", "eos"):
        assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token")
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    for name in ("model_max_length", "padding_side", "truncation_side", "model_input_names"):
        assert getattr(ours, name) == getattr(theirs, name)
    for pair in (False, True):
        assert ours.num_special_tokens_to_add(pair) == theirs.num_special_tokens_to_add(pair)
    assert ours.convert_tokens_to_ids("c") == theirs.convert_tokens_to_ids("c")
    assert ours.convert_tokens_to_ids(["a", "?"]) == theirs.convert_tokens_to_ids(["a", "?"])
    assert ours.convert_ids_to_tokens(5) == theirs.convert_ids_to_tokens(5)
    for skip in (False, True):
        a, b = (t.convert_ids_to_tokens([2, 5, 99, 3], skip) for t in (ours, theirs))
        assert a == b
    assert ours.tokenize(TEXTS[2]) == theirs.tokenize(TEXTS[2])
    a, b = (t.encode("hello world", "a", max_length=4, truncation=True) for t in (ours, theirs))
    assert a == b
    mask = theirs.get_special_tokens_mask([2, 5, 3], already_has_special_tokens=True)
    assert ours.get_special_tokens_mask([2, 5, 3], already_has_special_tokens=True) == mask


def test_pad_fills_up_as_in_transformers(ours, theirs):
    rows = [ours(text, return_special_tokens_mask=True) for text in TEXTS]
    named = [{"input_ids": row["input_ids"], "labels": number} for number, row in enumerate(rows)]
    for options in (
        {},
        {"padding_side": "left"},
        {"padding": "max_length", "max_length": 40},
        {"padding": "max_length"},
        {"pad_to_multiple_of": 7},
        {"padding": False},
        {"return_attention_mask": False},
        {"max_length": 50, "pad_to_multiple_of": 8},
        {"return_tensors": "np"},
    ):
        for batch in (rows, named, {"input_ids": [[1, 2], [3]]}, {"input_ids": [1, 2]}):
            if options.get("return_tensors") and batch == {"input_ids": [1, 2]}:
                continue
            with warnings.catch_warnings(action="ignore"):
                copies = [dict(row) for row in batch] if isinstance(batch, list) else dict(batch)
                wanted = theirs.pad(copies, **options)
                got = ours.pad(batch, **options)
            assert set(got) == set(wanted), options
            assert all(same(got[name], wanted[name]) for name in wanted), (options, batch)


def test_decoding_is_that_of_transformers(ours, theirs):
    rng = random.Random(0)
    rows = [rng.choices(range(len(PIECES)), k=rng.randint(1, 9)) for _ in range(300)]
    for options in (
        {},
        {"skip_special_tokens": True},
        {"clean_up_tokenization_spaces": True},
        {"clean_up_tokenization_spaces": False},
    ):
        assert ours.batch_decode(rows, **options) == theirs.batch_decode(rows, **options)
        assert ours.decode(rows[0], **options) == theirs.decode(rows[0], **options)
    table = np.array([[2, 5, 3], [2, 6, 3]])
    assert ours.batch_decode(table) == theirs.batch_decode(table)
    assert ours.decode(table[0]) == theirs.decode(table[0])
    assert ours.decode(5) == theirs.decode(5)


def test_a_saved_tokenizer_loads_in_transformers(ours, tmp_path):
    transformers = pytest.importorskip("transformers")
    names = ours.save_pretrained(tmp_path / "new")
    assert [name.rsplit("/", 1)[1] for name in names] == ["tokenizer_config.json", "tokenizer.json"]
    again = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "new"))
    options = {"padding": True, "truncation": True}
    assert dict(again(TEXTS, PAIRS, **options)) == dict(ours(TEXTS, PAIRS, **options))
    assert again.model_max_length == 16
    assert again.special_tokens_map == ours.special_tokens_map
    taken = Tokenizer.from_pretrained(again)
    assert taken.settings == ours.tokenizer.settings


# ------------------------------------------------------------------------- beside tokenizers


def test_rows_are_those_of_the_library_below(ours, backend):
    for options, set_up in (
        ({}, lambda: None),
        ({"truncation": True, "max_length": 9}, lambda: backend.enable_truncation(9)),
        (
            {"truncation": "only_first", "max_length": 9, "padding": "max_length"},
            lambda: (
                backend.enable_truncation(9, strategy="only_first"),
                backend.enable_padding(length=9),
            ),
        ),
        (
            {"padding": True, "pad_to_multiple_of": 8, "padding_side": "left"},
            lambda: backend.enable_padding(direction="left", pad_to_multiple_of=8),
        ),
    ):
        backend.no_truncation()
        backend.no_padding()
        set_up()
        wanted = backend.encode_batch(TEXTS)
        got = ours(
            TEXTS,
            return_special_tokens_mask=True,
            return_offsets_mapping=True,
            return_length=True,
            **options,
        )
        assert got.input_ids == [row.ids for row in wanted]
        assert got.token_type_ids == [row.type_ids for row in wanted]
        assert got.attention_mask == [row.attention_mask for row in wanted]
        assert got.special_tokens_mask == [row.special_tokens_mask for row in wanted]
        assert got.offset_mapping == [row.offsets for row in wanted]
        assert got.length == [len(row) for row in wanted]
        for row, encoding in enumerate(wanted):
            assert got.tokens(row) == encoding.tokens
            assert got.word_ids(row) == encoding.word_ids
            assert got.sequence_ids(row) == encoding.sequence_ids
            assert [got.char_to_token(row, char) for char in range(60)] == [
                encoding.char_to_token(char) for char in range(60)
            ]


def test_windows_of_overflow_follow_as_rows(ours, backend):
    backend.no_padding()
    backend.enable_truncation(9, stride=2)
    wanted = [
        [row, *row.overflowing]
        for row in backend.encode_batch(list(zip(TEXTS, PAIRS, strict=True)))
    ]
    got = ours(
        TEXTS, PAIRS, truncation=True, max_length=9, stride=2, return_overflowing_tokens=True
    )
    assert got.input_ids == [window.ids for row in wanted for window in row]
    assert got.token_type_ids == [window.type_ids for row in wanted for window in row]
    samples = [number for number, row in enumerate(wanted) for _ in row]
    assert got.overflow_to_sample_mapping == samples
    assert len(samples) > len(TEXTS)


# ------------------------------------------------------------------------- on its own account


def test_a_single_text_comes_back_without_the_batch(ours):
    assert ours("a c").input_ids == [2, 8, 10, 3]
    assert ours(["a c"]).input_ids == [[2, 8, 10, 3]]
    assert ours("a", return_tensors="np").input_ids.shape == (1, 3)
    assert ours("a", return_length=True).length == [3]


def test_an_empty_batch_is_empty(ours):
    assert dict(ours([])) == {"input_ids": [], "token_type_ids": [], "attention_mask": []}
    assert ours([], padding=True, return_tensors="np").input_ids.shape == (0, 0)


def test_arrays_of_jax_hold_the_same(ours):
    jax = pytest.importorskip("jax")
    arrays = ours(TEXTS, padding=True, return_tensors="jax")
    assert isinstance(arrays.input_ids, jax.Array)
    assert arrays.input_ids.tolist() == ours(TEXTS, padding=True).input_ids
    assert ours.pad({"input_ids": arrays.input_ids}).input_ids.tolist() == arrays.input_ids.tolist()


def test_tensors_of_torch_hold_the_same(ours):
    torch = pytest.importorskip("torch")
    tensors = ours(TEXTS, padding=True, return_tensors="pt")
    assert tensors.input_ids.dtype == torch.int64
    assert tensors.to("cpu").input_ids.tolist() == ours(TEXTS, padding=True).input_ids


def test_a_missing_library_is_named(ours, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingExtra, match="return_tensors='pt' needs torch"):
        ours("a", return_tensors="pt")


def test_limits_of_the_tokenizer_become_defaults(tokenizer):
    limited = tokenizer.with_truncation(5, direction="left").with_padding(7, side="left")
    hf = limited.as_hf()
    assert (hf.model_max_length, hf.truncation_side, hf.padding_side) == (5, "left", "left")
    assert hf("a a a c c c").input_ids == [2, 8, 8, 8, 10, 10, 10, 3]
    assert hf("a a a c c c", truncation=True).input_ids == [2, 10, 10, 10, 3]
    assert hf("a", padding="max_length").input_ids == [0, 0, 2, 8, 3]


def test_special_tokens_come_from_the_template():
    vocab = {piece: number for number, piece in enumerate(["<s>", "</s>", "<pad>", "[UNK]", "x"])}
    template = Template(
        single=(("<s>", (0,), 0), ("A", 0), ("</s>", (1,), 0)),
        pair=(("<s>", (0,), 0), ("A", 0), ("</s>", (1,), 0), ("B", 0), ("</s>", (1,), 0)),
    )
    hf = Tokenizer(Settings(vocab, template=template)).as_hf()
    assert (hf.cls_token, hf.sep_token, hf.pad_token_id) == ("<s>", "</s>", 2)
    assert hf.mask_token is None
    assert hf.mask_token_id is None
    assert hf(["x", "x x"], padding=True).input_ids == [[0, 4, 1, 2], [0, 4, 4, 1]]
    named = Tokenizer(Settings(vocab)).as_hf(special_tokens={"pad_token": "x"})
    assert named.special_tokens_map == {"pad_token": "x"}
    with pytest.raises(ValueError, match=r"special_tokens has \['pad'\]"):
        Tokenizer(Settings(vocab)).as_hf(special_tokens={"pad": "x"})


def test_calls_that_contradict_themselves_are_refused(ours):
    refused = [
        ({"text": ["a"], "text_pair": "b"}, "text_pair is one text"),
        (
            {"text": ["a", "b"], "text_pair": ["c"]},
            "text_pair is 1 texts, and text is a batch of 2",
        ),
        ({"text": ["a", ("b", "c")]}, "text 0 has no pair, and text 1 has one"),
        ({"text": ["a", "a a"], "return_tensors": "np"}, "rows of 3 to 4 tokens make no array"),
        ({"text": "a", "truncation": "both"}, "truncation is 'both'"),
        ({"text": "a", "padding": "widest"}, "padding is 'widest'"),
        ({"text": "a", "return_tensors": "tf"}, "return_tensors is 'tf'"),
        (
            {
                "text": "a",
                "padding": True,
                "truncation": True,
                "max_length": 9,
                "pad_to_multiple_of": 4,
            },
            "max_length 9 is no multiple of pad_to_multiple_of 4",
        ),
        ({"text": "a a a a", "truncation": True, "max_length": 1}, "max_length"),
        ({"text": "a a a a", "truncation": True, "max_length": 4, "stride": 3}, "stride"),
        ({"text": "a a a a", "truncation": "only_second", "max_length": 3}, "only_second"),
    ]
    for options, told in refused:
        with pytest.raises(ValueError, match=told):
            ours(**options)
    with pytest.raises(TypeError, match="text is a str, and split text is a list of words"):
        ours("a b", is_split_into_words=True)
    with pytest.raises(TypeError, match="1"):
        ours(["a", 7])
    with pytest.raises(ValueError, match="there are no input_ids"):
        ours.pad({"ids": [1]})
    with pytest.raises(ValueError, match="has no pad_token"):
        Tokenizer(Settings({"a": 0})).as_hf()(["a"], padding=True)


def test_an_ignored_length_is_told(ours):
    with pytest.warns(UserWarning, match="max_length is ignored") as record:
        ours("a", padding=True, max_length=9)
    assert record[0].filename == __file__


def test_models_without_a_limit_are_not_cut(tokenizer):
    hf = tokenizer.as_hf()
    assert len(hf("a " * 600, truncation=True).input_ids) == 602
    assert hf("a", padding="max_length").input_ids == [2, 8, 3]


def test_results_are_dictionaries_with_attributes(ours):
    result = ours(["a", "c"], return_offsets_mapping=True)
    assert {**result} == dict(result.items())
    assert result["input_ids"] is result.input_ids
    assert result[0].tokens == ["[CLS]", "a", "[SEP]"]
    assert result[1:][0].tokens == ["[CLS]", "c", "[SEP]"]
    assert result.is_fast
    with pytest.raises(AttributeError, match="no 'labels'"):
        _ = result.labels
    padded = ours.pad({"input_ids": [[1], [2, 3]]})
    assert padded[:1] == {"input_ids": [[1, 0]], "attention_mask": [[1, 0]]}
    assert not padded.is_fast
    with pytest.raises(ValueError, match="rows are not known"):
        padded.tokens()


def test_results_and_tokenizers_travel_between_processes(ours):
    result = pickle.loads(pickle.dumps(ours(TEXTS)))
    assert isinstance(result, BatchEncoding)
    assert result.word_ids(2) == ours(TEXTS).word_ids(2)
    again = pickle.loads(pickle.dumps(ours))
    assert isinstance(again, HFTokenizer)
    assert again(TEXTS) == ours(TEXTS)


def test_a_saved_tokenizer_holds_its_names_and_limits(tokenizer, tmp_path):
    limited = tokenizer.with_truncation(8).with_encode_special_tokens()
    limited.as_hf(padding_side="left").save_pretrained(tmp_path / "a" / "b")
    config = json.loads((tmp_path / "a" / "b" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 8
    assert config["padding_side"] == "left"
    assert config["split_special_tokens"] is True
    assert config["mask_token"] == "[MASK]"
    again = Tokenizer.from_file(tmp_path / "a" / "b")
    assert again.settings.truncation == Truncation(8)
    assert again.settings.padding is None


def test_padding_of_the_file_gives_token_and_type():
    settings = Settings.bert(VOCAB, padding=Padding(id=4, token="[MASK]", type_id=1))
    hf = Tokenizer(settings).as_hf()
    result = hf(["a", "a a"], padding=True)
    assert result.input_ids[0] == [2, 8, 3, 4]
    assert result.token_type_ids[0] == [0, 0, 0, 1]
    assert hf.pad_token == "[MASK]"
