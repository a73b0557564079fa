"""Tokenizers survive their files, mean what Hugging Face means, and broken files say where."""

import copy
import json
import random
import re
import warnings
from dataclasses import replace

import pytest

from chapbook.core.errors import Error
from chapbook.fast_wordpiece import Tokenizer
from chapbook.fast_wordpiece.files import (
    UnsupportedTokenizerError,
    canonical,
    fingerprint,
    from_hf,
    read,
    write,
)
from chapbook.fast_wordpiece.settings import (
    AddedToken,
    Normalizer,
    Padding,
    Settings,
    Template,
    Truncation,
)

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "c", "É", "中"]
VOCAB = {piece: number for number, piece in enumerate(PIECES)}
DOCUMENT = {
    "version": "1.0",
    "truncation": {
        "direction": "Left",
        "max_length": 9,
        "strategy": "OnlyFirst",
        "stride": 2,
    },
    "padding": {
        "strategy": {"Fixed": 12},
        "direction": "Left",
        "pad_to_multiple_of": 8,
        "pad_id": 0,
        "pad_type_id": 1,
        "pad_token": "[PAD]",
    },
    "added_tokens": [
        {
            "id": 4,
            "content": "[MASK]",
            "single_word": False,
            "lstrip": True,
            "rstrip": False,
            "normalized": False,
            "special": True,
        },
        {
            "id": 10,
            "content": "<new>",
            "single_word": True,
            "lstrip": False,
            "rstrip": True,
            "normalized": True,
            "special": False,
        },
    ],
    "normalizer": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": False,
        "strip_accents": True,
        "lowercase": False,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [
            {"Sequence": {"id": "B", "type_id": 3}},
            {"SpecialToken": {"id": "both", "type_id": 1}},
            {"Sequence": {"id": "A", "type_id": 2}},
        ],
        "special_tokens": {
            "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
            "both": {"id": "both", "ids": [2, 3], "tokens": ["[CLS]", "[SEP]"]},
        },
    },
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 50,
        "vocab": VOCAB,
    },
}
TEMPLATE = Template(
    single=(("[CLS]", (2,), 0), ("A", 0)),
    pair=(("B", 3), ("both", (2, 3), 1), ("A", 2)),
)
SETTINGS = Settings(
    VOCAB,
    max_input_chars_per_word=50,
    normalizer=Normalizer(handle_chinese_chars=False, strip_accents=True, lowercase=False),
    added_tokens=(
        AddedToken("[MASK]", 4, special=True, lstrip=True),
        AddedToken("<new>", 10, normalized=True, single_word=True, rstrip=True),
    ),
    template=TEMPLATE,
    truncation=Truncation(9, 2, "only_first", "left"),
    padding=Padding(12, 8, "left", 0, 1, "[PAD]"),
    cleanup=False,
)
TEXTS = ["a", "ab cab", "É é 中a", "ab [MASK]  a <new> x", "[CLS] a", "", "abb , a!" * 6]


def changed(place, value, document=DOCUMENT):
    """Returns the document with another value at a place such as `model.type`."""
    document = copy.deepcopy(document)
    *parents, last = re.findall(r"[^.\[\]]+", place)
    node = document
    for name in parents:
        node = node[int(name) if isinstance(node, list) else name]
    if value is ...:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return document


def saved(folder, document, name="tokenizer.json"):
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def vocabulary(folder, content, name="vocab.txt"):
    path = folder / name
    path.write_bytes(content)
    return path


# ------------------------------------------------------------------------------- tokenizer.json


def test_every_component_of_a_tokenizer_json_is_honoured(tmp_path):
    assert read(saved(tmp_path, DOCUMENT)) == SETTINGS


def test_limits_can_be_left_out(tmp_path):
    settings = read(saved(tmp_path, DOCUMENT), ignore_limits=True)
    assert settings == replace(SETTINGS, truncation=None, padding=None)


def test_a_minimal_file_has_no_limits_template_or_added_tokens(tmp_path):
    kept = {name: DOCUMENT[name] for name in ("pre_tokenizer", "decoder", "model")}
    settings = read(saved(tmp_path, kept))
    nothing = Normalizer(False, False, False, False)
    plain = Settings(VOCAB, max_input_chars_per_word=50, normalizer=nothing, cleanup=False)
    assert settings == plain


def test_bert_processing_is_the_template_of_bert(tmp_path):
    document = changed(
        "post_processor", {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    )
    assert read(saved(tmp_path, document)).template == Settings.bert(VOCAB).template


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ("model.vocab", {**VOCAB, "\u0120a": 20}, r"'Ġa'"),
        ("added_tokens[0].normalized", True, r"'\[MASK\]'"),
        ("post_processor.add_prefix_space", True, r"'\[MASK\]'"),
    ],
)
def test_offsets_that_would_be_trimmed_otherwise_are_refused(tmp_path, place, value, named):
    roberta = {
        "type": "RobertaProcessing",
        "sep": ["[SEP]", 3],
        "cls": ["[CLS]", 2],
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    document = changed("post_processor", roberta)
    document = changed("added_tokens", document["added_tokens"][:1], document)
    template = read(saved(tmp_path, document)).template
    assert template is not None
    assert template.trim_offsets
    with pytest.raises(UnsupportedTokenizerError, match=f"trim_offsets is true.* token {named}"):
        read(saved(tmp_path, changed(place, value, document)))


def test_ids_of_the_vocabulary_may_have_gaps(tmp_path):
    document = changed("model.vocab", {"[CLS]": 2, "[SEP]": 3, "x": 70})
    settings = read(saved(tmp_path, changed("added_tokens", [], document)))
    assert settings.vocab["x"] == 70


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("model.type", "BPE", 'model is "BPE", and only WordPiece is supported'),
        ("model", {"vocab": {}, "merges": []}, 'model is "no type"'),
        ("normalizer", {"type": "NFKC"}, 'normalizer is "NFKC", and only BertNormalizer'),
        ("pre_tokenizer", {"type": "Whitespace"}, 'pre_tokenizer is "Whitespace"'),
        ("pre_tokenizer", None, "pre_tokenizer is null, and only BertPreTokenizer"),
        ("decoder", None, "decoder is null, and only WordPiece"),
        ("decoder.prefix", "@@", "decoder.prefix is \"@@\", and only the model's '##'"),
        ("post_processor", {"type": "ByteLevel"}, 'post_processor is "ByteLevel"'),
        ("version", "2.0", 'version is "2.0", and only version 1.0'),
        ("surprise", 1, "surprise is no part of a tokenizer.json"),
        (
            "post_processor.single[0]",
            {"Image": {}},
            'post_processor.single[0] is {"Image": {}}, and only a SpecialToken or a Sequence',
        ),
    ],
)
def test_a_component_that_is_not_supported_is_named_with_its_place(tmp_path, place, value, told):
    path = saved(tmp_path, changed(place, value))
    with pytest.raises(UnsupportedTokenizerError, match=re.escape(f"{path}: {told}")):
        read(path)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("model", ..., "model is missing"),
        ("model.vocab", [], "model.vocab is [], which is not an object"),
        ("model.vocab.a", "5", 'model.vocab.a is "5", which is not a whole number'),
        ("model.vocab.a", True, "model.vocab.a is true, which is not a whole number"),
        ("model.vocab.a", -1, "model.vocab.a is -1, which is not from 0 to 2147483647"),
        ("model.vocab.a", 2**31, "model.vocab.a is 2147483648, which is not from 0 to"),
        ("model.vocab.a", 6, "model.vocab gives 'a' and '##b' the id 6"),
        ("model.vocab", {"\ud800": 1}, "model.vocab holds a piece with half a surrogate pair"),
        ("model.unk_token", None, "model.unk_token is null, which is not a string"),
        ("model.max_input_chars_per_word", 1.5, "model.max_input_chars_per_word is 1.5, which"),
        ("normalizer.lowercase", 1, "normalizer.lowercase is 1, which is not true or false"),
        ("normalizer.clean_text", ..., "normalizer.clean_text is missing"),
        ("added_tokens[1].id", "x", 'added_tokens[1].id is "x", which is not a whole number'),
        ("added_tokens[0].lstrip", ..., "added_tokens[0].lstrip is missing"),
        ("truncation.strategy", "first", 'truncation.strategy is "first", which is not Longest'),
        ("truncation.stride", 9, "truncation: stride 9 must be less than max_length 9"),
        ("padding.strategy", "Longest", 'padding.strategy is "Longest", which is not BatchLongest'),
        ("padding.pad_id", None, "padding.pad_id is null, which is not a whole number"),
        (
            "post_processor.pair[2].Sequence.id",
            "C",
            'post_processor.pair[2].Sequence.id is "C", which is not A or B',
        ),
        ("post_processor.single", [], "post_processor: the template for single must hold A"),
        (
            "post_processor.special_tokens.both",
            ...,
            'post_processor.pair[1].SpecialToken.id is "both", which special_tokens beside it',
        ),
        (
            "post_processor.special_tokens.both.ids[1]",
            4,
            "post_processor.special_tokens.both.ids[1] is 4, and '[SEP]' has id 3",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_place(tmp_path, place, value, told):
    path = saved(tmp_path, changed(place, value))
    with pytest.raises(Error, match=re.escape(f"{path}: {told}")):
        read(path)


def test_broken_json_is_located(tmp_path):
    text = json.dumps(DOCUMENT, indent=1)
    path = saved(tmp_path, text[:200])
    with pytest.raises(Error, match=r"tokenizer\.json: line \d+, column \d+: "):
        read(path)
    with pytest.raises(Error, match="line 2, column 1: Expecting property name"):
        read(saved(tmp_path, "{\n"))
    with pytest.raises(Error, match="nested too deeply"):
        read(saved(tmp_path, "[" * 100_000))
    with pytest.raises(Error, match=r"the document is \[\], which is not an object"):
        read(saved(tmp_path, "[]"))


def test_bytes_that_are_not_utf8_are_located(tmp_path):
    path = vocabulary(tmp_path, b"[UNK]\na\nb\xff\n")
    with pytest.raises(Error, match="line 3, byte 9 of the file: this is not UTF-8"):
        read(path)


def test_a_lowercase_that_the_file_contradicts_is_refused(tmp_path):
    path = saved(tmp_path, DOCUMENT)
    assert read(path, lowercase=False) == SETTINGS
    with pytest.raises(Error, match="says lowercase=False, not True"):
        read(path, lowercase=True)


def random_document(rng):
    tokens = [
        {
            "id": rng.randint(0, 20),
            "content": rng.choice(["a", "c", "[MASK]", "x", "y", "z", ""]),
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            "special": rng.random() < 0.5,
        }
        for _ in range(rng.randint(0, 6))
    ]
    ids = rng.sample(range(1, 15), 5)
    pieces = ["[UNK]", *rng.sample(["a", "c", "[MASK]", "d", "e", "f"], 5)]
    document = changed("model.vocab", dict(zip(pieces, [0, *ids], strict=True)))
    return changed("post_processor", None, changed("added_tokens", tokens, document))


def test_added_tokens_get_the_ids_that_hugging_face_gives_them(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    rng = random.Random(0)
    read_alike = 0
    for _ in range(300):
        document = random_document(rng)
        theirs = tokenizers.Tokenizer.from_str(json.dumps(document))
        contents = {token["content"] for token in document["added_tokens"]} - {""}
        wanted = {content: theirs.token_to_id(content) for content in contents}
        special = {
            token.content: token.special for token in theirs.get_added_tokens_decoder().values()
        }
        path = saved(tmp_path, document)
        if len(set(wanted.values())) < len(wanted):
            with (
                pytest.raises(Error, match="shares its id"),
                warnings.catch_warnings(action="ignore"),
            ):
                read(path)
            continue
        with warnings.catch_warnings(action="ignore"):
            ours = read(path).added_tokens
        assert {token.content: token.id for token in ours} == wanted
        assert {token.content: token.special for token in ours} == special
        read_alike += 1
    assert read_alike > 200


def test_ids_that_hugging_face_would_not_use_are_told(tmp_path):
    document = changed("added_tokens[1].id", 77)
    with pytest.warns(UserWarning, match="'<new>' has the id 10 instead of 77"):
        assert read(saved(tmp_path, document)) == SETTINGS


def test_an_added_token_that_hides_a_piece_is_told(tmp_path):
    document = changed("model.vocab", {**VOCAB, "gap": 20})
    document = changed("added_tokens[1].id", 11, document)
    read(saved(tmp_path, document))
    document = changed("model.vocab.gap", 11, document)
    with pytest.warns(UserWarning, match="'<new>' has the id 11 of the piece 'gap'"):
        read(saved(tmp_path, document))


POST_PROCESSORS = [
    None,
    DOCUMENT["post_processor"],
    {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
    {
        "type": "RobertaProcessing",
        "sep": ["[SEP]", 3],
        "cls": ["[CLS]", 2],
        "trim_offsets": True,
        "add_prefix_space": False,
    },
]
FRAGMENTS = [*PIECES, "ab", "abc", " ", "  ", "é", "e\u0301", "<new>", "<New>", "\u200b", "!", ","]


def random_tokenizer(rng):
    """A document with any value of every option."""

    def chance():
        return rng.random() < 0.5

    contents = [c for c in ("[MASK]", "[CLS]", "<new>", "ab", "É", "!") if chance()]
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    document = changed(
        "added_tokens",
        [{"id": 0, "content": c, **{flag: chance() for flag in flags}} for c in contents],
    )
    for name in ("clean_text", "handle_chinese_chars", "lowercase"):
        document["normalizer"][name] = chance()
    document["normalizer"]["strip_accents"] = rng.choice([None, True, False])
    document["post_processor"] = rng.choice(POST_PROCESSORS)
    document["truncation"]["strategy"] = rng.choice(["LongestFirst", "OnlyFirst", "OnlySecond"])
    document["truncation"]["stride"] = 0  # A longer one than the window makes it panic.
    document["truncation"]["direction"] = rng.choice(["Left", "Right"])
    document["padding"]["strategy"] = rng.choice(["BatchLongest", {"Fixed": 12}])
    document["padding"]["direction"] = rng.choice(["Left", "Right"])
    document["model"]["max_input_chars_per_word"] = rng.choice([3, 100])
    for name in ("truncation", "padding", "normalizer"):
        if rng.random() < 0.3:
            document[name] = None
    return document


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_tokenizers_encode_as_in_hugging_face(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    rng = random.Random(1)
    compared = refused = 0
    for _ in range(50):
        path = saved(tmp_path, random_tokenizer(rng))
        theirs = tokenizers.Tokenizer.from_file(str(path))
        try:
            ours = Tokenizer.from_file(path)
        except UnsupportedTokenizerError as fault:
            assert "trim_offsets" in fault.message
            continue
        for pairs in (False, True):
            rows = [
                tuple("".join(rng.choices(FRAGMENTS, k=rng.randint(0, 9))) for _ in range(2))
                for _ in range(4)
            ]
            firsts, seconds = ([row[half] for row in rows] for half in (0, 1))
            try:
                wanted = theirs.encode_batch(rows if pairs else firsts)
            except Exception:
                # A sequence is too short to be cut.
                with pytest.raises(ValueError, match="truncat"):
                    ours.encode_batch(firsts, seconds if pairs else None)
                refused += 1
                continue
            got = ours.encode_batch(firsts, seconds if pairs else None, offsets=True)
            for a, b in zip(got, wanted, strict=True):
                assert a.ids.tolist() == b.ids
                assert [tuple(span) for span in a.offsets.tolist()] == b.offsets
                assert a.word_ids == b.word_ids
                assert a.type_ids.tolist() == b.type_ids
                assert a.attention_mask.tolist() == b.attention_mask
                compared += 1
    assert compared > 150
    assert refused > 5


# ------------------------------------------------------------------------------------ vocab.txt


def test_a_vocabulary_alone_is_berts_tokenizer(tmp_path):
    path = vocabulary(tmp_path, "\n".join(PIECES).encode())
    assert read(path) == Settings.bert(VOCAB)
    assert read(path, lowercase=False) == Settings.bert(VOCAB, lowercase=False)


def test_special_tokens_may_be_missing_from_a_vocabulary(tmp_path):
    settings = read(vocabulary(tmp_path, b"a\n##b\n"))
    assert settings.added_tokens == ()
    assert settings.template is not None
    with pytest.raises(Error, match=r"lacks \[CLS\] and \[SEP\]"):
        settings.template.added(is_pair=False)


ODD = {
    "CRLF": b"[UNK]\r\na\r\n##b\r\n",
    "byte order mark": b"\xef\xbb\xbf[UNK]\na\n",
    "blank lines": b"[UNK]\n\na\n\n",
    "repeated lines": b"[UNK]\na\nb\na\n",
    "trailing spaces": "[UNK] \na\t\nb\u3000\nc\u2028\nd\x85\r\n".encode(),
    "other separators": "[UNK]\na\x1c\nb\x1f\nc\x0b\nd\u2028d\n\x85e".encode(),
    "no last line feed": b"[UNK]\na",
    "carriage returns alone": b"[UNK]\ra\rb\n",
    "leading spaces": b"[UNK]\n a\n",
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_odd_vocabulary_is_read_as_hugging_face_reads_it(tmp_path, case):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.models.WordPiece.read_file(str(vocabulary(tmp_path, ODD[case])))
    theirs = {piece.removeprefix("\ufeff"): number for piece, number in theirs.items()}
    assert read(tmp_path / "vocab.txt").vocab == theirs


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("CRLF", "lines 1, 2, 3 end in CR LF$"),
        ("byte order mark", "the byte order mark on line 1 was removed$"),
        ("blank lines", "lines 2, 4 are blank; lines 2 are repeated later"),
        ("repeated lines", "lines 2 are repeated later, and the later line gives the id$"),
        ("trailing spaces", "lines 5 end in CR LF; lines 1, 2, 3, 4, 5 end in white space"),
    ],
)
def test_an_odd_vocabulary_gives_one_warning_that_names_the_lines(tmp_path, case, told):
    with pytest.warns(UserWarning, match=f"vocab.txt: {told}") as record:
        read(vocabulary(tmp_path, ODD[case]))
    assert len(record) == 1
    assert record[0].filename == __file__


def test_a_clean_vocabulary_gives_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(vocabulary(tmp_path, "\n".join(PIECES).encode()))


def test_an_empty_vocabulary_is_refused(tmp_path):
    with pytest.raises(Error, match=r"vocab\.txt holds no pieces"):
        read(vocabulary(tmp_path, b""))


# -------------------------------------------------------------------------------------- folders


def test_a_folder_is_its_tokenizer_json(tmp_path):
    vocabulary(tmp_path, b"other\n")
    saved(tmp_path, DOCUMENT)
    assert read(tmp_path) == SETTINGS


def test_a_folder_with_a_vocabulary_is_as_its_configuration_says(tmp_path):
    vocabulary(tmp_path, "\n".join(PIECES).encode())
    config = {
        "do_lower_case": False,
        "strip_accents": True,
        "tokenize_chinese_chars": False,
        "tokenizer_class": "BertTokenizerFast",
        "unk_token": {"content": "[UNK]", "lstrip": False},
        "cls_token": "[CLS]",
        "model_max_length": 512,
    }
    saved(tmp_path, config, "tokenizer_config.json")
    wanted = Settings.bert(VOCAB, False, True, handle_chinese_chars=False)
    assert read(tmp_path) == wanted
    assert read(tmp_path, lowercase=True) == Settings.bert(
        VOCAB, True, True, handle_chinese_chars=False
    )


def test_a_configuration_of_another_tokenizer_is_refused(tmp_path):
    vocabulary(tmp_path, b"[UNK]\n")
    for config, told in [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, 'tokenizer_class is "BertJapanese'),
        ({"cls_token": "<s>"}, 'cls_token is "<s>", and beside a vocab.txt only'),
        ({"sep_token": {"content": "<sep>"}}, 'sep_token.content is "<sep>"'),
    ]:
        saved(tmp_path, config, "tokenizer_config.json")
        with pytest.raises(UnsupportedTokenizerError, match=told):
            read(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(Error, match=r"holds neither tokenizer\.json nor vocab\.txt"):
        read(tmp_path)


# ---------------------------------------------------------------------------------------- write


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        Settings.bert(VOCAB),
        replace(SETTINGS, template=None, truncation=None, padding=None, added_tokens=()),
        replace(
            SETTINGS,
            added_tokens=SETTINGS.added_tokens[:1],
            template=Template(
                (("[CLS]", (2,), 0), ("A", 0), ("[SEP]", (3,), 0)),
                (
                    *(("[CLS]", (2,), 0), ("A", 0), ("[SEP]", (3,), 0)),
                    *(("[SEP]", (3,), 0), ("B", 0), ("[SEP]", (3,), 0)),
                ),
                roberta=True,
                trim_offsets=True,
            ),
        ),
    ],
    ids=["everything", "bert", "nothing", "roberta"],
)
def test_a_written_tokenizer_json_is_the_same_tokenizer_here_and_there(tmp_path, settings):
    path = tmp_path / "new.json"
    write(settings, path)
    assert read(path) == settings
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(path))
    assert from_hf(theirs) == settings
    again = json.loads(theirs.to_str())
    assert again == json.loads(path.read_text())


def test_hugging_face_encodes_alike_with_the_old_and_the_rewritten_file(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    write(read(saved(tmp_path, DOCUMENT)), tmp_path / "new.json")
    old, new = (
        tokenizers.Tokenizer.from_file(str(tmp_path / name))
        for name in ("tokenizer.json", "new.json")
    )
    for a in TEXTS:
        one, other = old.encode(a), new.encode(a)
        assert (one.ids, one.tokens, one.offsets) == (other.ids, other.tokens, other.offsets)
        assert old.decode(one.ids) == new.decode(other.ids)
        one, other = old.encode("abb a " * 5 + a, "c"), new.encode("abb a " * 5 + a, "c")
        assert (one.ids, one.type_ids) == (other.ids, other.type_ids)
        assert [w.ids for w in one.overflowing] == [w.ids for w in other.overflowing]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            replace(SETTINGS, normalizer=Normalizer(compat="tf-text")),
            "tokenizer.json cannot say compat='tf-text'",
        ),
        (replace(SETTINGS, encode_special_tokens=True), "cannot say encode_special_tokens=True"),
        (
            replace(SETTINGS, added_tokens=(AddedToken("<new>", 70),)),
            "tokenizer.json cannot hold the added_tokens of this tokenizer",
        ),
        (Settings.bert({"a": 0}), "cannot hold the post_processor of this tokenizer"),
    ],
)
def test_what_a_tokenizer_json_cannot_hold_is_not_written(tmp_path, settings, told):
    path = tmp_path / "new.json"
    with pytest.raises(Error, match=re.escape(told)):
        write(settings, path)
    assert not path.exists()


def test_a_written_vocabulary_reads_back(tmp_path):
    path = tmp_path / "new.txt"
    for lowercase in (True, False):
        settings = Settings.bert(VOCAB, lowercase=lowercase)
        write(settings, path)
        assert read(path, lowercase=lowercase) == settings
    assert path.read_text() == "\n".join(PIECES) + "\n"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (Settings.bert({"a": 0, "b": 2}), "there is none with id 1 before 'b' with id 2"),
        (Settings.bert({"a": 0, "b ": 1}), "cannot hold the piece 'b '"),
        (Settings.bert({"a\nb": 0}), r"cannot hold the piece 'a\nb'"),
        (Settings.bert({"\ufeffa": 0}), r"cannot hold the piece '\ufeffa'"),
        (Settings.bert(VOCAB, strip_accents=True), "cannot hold the normalizer of this"),
        (
            SETTINGS,
            "cannot hold the truncation and padding and added_tokens and normalizer and"
            " post_processor and decoder and model of this tokenizer",
        ),
    ],
)
def test_what_a_vocabulary_cannot_hold_is_not_written(tmp_path, settings, told):
    path = tmp_path / "new.txt"
    with pytest.raises(Error, match=re.escape(told)):
        write(settings, path)
    assert not path.exists()


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(Error, match=r"ends in neither \.json nor \.txt"):
        write(SETTINGS, tmp_path / "tokenizer.bin")


# -------------------------------------------------------------------------- objects, fingerprint


def test_a_tokenizer_object_is_taken_over():
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_str(json.dumps(DOCUMENT))
    assert from_hf(theirs) == SETTINGS
    assert from_hf(theirs, ignore_limits=True).padding is None
    theirs.encode_special_tokens = True
    assert from_hf(theirs) == replace(SETTINGS, encode_special_tokens=True)


def test_an_object_that_is_no_tokenizer_is_refused():
    with pytest.raises(Error, match=r"a builtins\.dict is no tokenizer"):
        from_hf({})


def test_the_fingerprint_is_of_what_a_tokenizer_gives(tmp_path):
    reordered = replace(
        SETTINGS,
        vocab=dict(reversed(VOCAB.items())),
        added_tokens=SETTINGS.added_tokens[::-1],
    )
    assert canonical(reordered) == canonical(SETTINGS)
    assert re.fullmatch("[0-9a-f]{64}", fingerprint(SETTINGS))
    others = [
        SETTINGS,
        replace(SETTINGS, vocab={**VOCAB, "x": 11}),
        replace(SETTINGS, encode_special_tokens=True),
        replace(SETTINGS, normalizer=replace(SETTINGS.normalizer, compat="tf-text")),
        replace(SETTINGS, padding=None),
        replace(SETTINGS, template=replace(TEMPLATE, roberta=True)),
        replace(SETTINGS, cleanup=True),
    ]
    assert len({fingerprint(settings) for settings in others}) == len(others)
