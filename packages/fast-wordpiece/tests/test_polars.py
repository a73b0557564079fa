"""The expressions do in Polars what the tokenizer does with Python strings."""

import pickle
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal, assert_series_equal

import chapbook.fast_wordpiece.polars  # noqa: F401 - registers the namespace
from chapbook.fast_wordpiece.tokenizer import Tokenizer

WORDS = ["hello", "world", "##s", "tokeniz", "##ation", "café", "日", "本", "🙂", "a", "##a", "!"]
TEXTS = ["hello worlds!", None, "", "日本 hello 🙂🙂 café!", "tokenization " * 9, "what?"]
ENGINES = ["in-memory", "streaming"]
SPANS = pl.List(pl.Struct({"start": pl.UInt32, "end": pl.UInt32}))
Engine = Any


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return Tokenizer.from_vocab(special + WORDS, lowercase=False)


def text(name: str = "text") -> Any:
    """A column, untyped: type checkers do not know of namespaces that are registered."""
    return pl.col(name)


def wanted(tok: Tokenizer, texts: list[str | None] = TEXTS) -> pl.DataFrame:
    """What the expressions must give, made of Python strings one by one."""
    rows: list[dict[str, Any]] = []
    for each in texts:
        if each is None:
            rows.append(dict.fromkeys(["ids", "count", "chars", "bytes"]))
            continue
        spans = {}
        for unit in ("char", "byte"):
            offsets = tok.encode_batch([each], offsets=True, offset_unit=unit).offsets
            spans[unit] = [{"start": start, "end": end} for start, end in offsets.tolist()]
        ids = tok.encode(each).ids.tolist()
        rows.append({"ids": ids, "count": len(ids), "chars": spans["char"], "bytes": spans["byte"]})
    schema = {"ids": pl.List(pl.Int32), "count": pl.UInt32, "chars": SPANS, "bytes": SPANS}
    return pl.DataFrame(rows, schema)


def expressions(tok: Tokenizer) -> dict[str, pl.Expr]:
    wordpiece = text().wordpiece
    return {
        "ids": wordpiece.encode(tok),
        "count": wordpiece.count(tok),
        "chars": wordpiece.offsets(tok),
        "bytes": wordpiece.offsets(tok, unit="byte"),
    }


def test_a_frame_gets_what_python_strings_get(tok: Tokenizer) -> None:
    frame = pl.DataFrame({"text": TEXTS})
    assert_frame_equal(frame.select(**expressions(tok)), wanted(tok))


@pytest.mark.parametrize("engine", ENGINES)
def test_lazy_queries_know_their_schema_and_keep_it(tok: Tokenizer, engine: Engine) -> None:
    query = pl.LazyFrame({"text": TEXTS}).select(**expressions(tok))
    assert query.collect_schema() == wanted(tok).schema
    assert_frame_equal(query.collect(engine=engine), wanted(tok))


@pytest.mark.parametrize("engine", ENGINES)
def test_files_flow_through(tok: Tokenizer, engine: Engine, tmp_path: Path) -> None:
    texts = [None if n % 7 == 0 else f"hello {'worlds ' * (n % 5)}{n}" for n in range(5000)]
    path, out = tmp_path / "texts.parquet", tmp_path / "ids.parquet"
    pl.DataFrame({"text": texts}).write_parquet(path, row_group_size=700)
    query = pl.scan_parquet(path).select(**expressions(tok))
    assert_frame_equal(query.collect(engine=engine), wanted(tok, texts))
    query.sink_parquet(out, engine=engine)
    assert_frame_equal(pl.read_parquet(out), wanted(tok, texts))


def test_slices_and_chunks_are_read_where_they_are(tok: Tokenizer) -> None:
    frame = pl.DataFrame({"text": TEXTS})
    for start in range(len(TEXTS)):
        got = frame.slice(start, 3).select(**expressions(tok))
        assert_frame_equal(got, wanted(tok).slice(start, 3))
    chunked = pl.concat([frame.slice(2), frame.slice(0, 0), frame.head(2)], rechunk=False)
    assert_frame_equal(chunked.select(**expressions(tok)), wanted(tok, TEXTS[2:] + TEXTS[:2]))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_frame_keeps_its_types(tok: Tokenizer, engine: Engine) -> None:
    empty = pl.LazyFrame(schema={"text": pl.String})
    assert_frame_equal(empty.select(**expressions(tok)).collect(engine=engine), wanted(tok, []))
    decoded = empty.select(text().wordpiece.encode(tok)).select(text().wordpiece.decode(tok))
    assert_frame_equal(decoded.collect(engine=engine), pl.DataFrame(schema={"text": pl.String}))


@pytest.mark.parametrize("dtype", [pl.String, pl.Null])
def test_a_column_of_nulls_stays_null(tok: Tokenizer, dtype: Any) -> None:
    frame = pl.DataFrame({"text": [None, None]}, schema={"text": dtype})
    assert_frame_equal(frame.select(**expressions(tok)), wanted(tok, [None, None]))


def test_binary_that_holds_utf8_is_text(tok: Tokenizer) -> None:
    frame = pl.DataFrame({"text": TEXTS}).cast(pl.Binary)
    assert_frame_equal(frame.select(**expressions(tok)), wanted(tok))


def test_groups_are_encoded_row_by_row(tok: Tokenizer) -> None:
    frame = pl.DataFrame({"key": [0, 1, 0, 1, 1, 0], "text": TEXTS})
    got = frame.group_by("key", maintain_order=True).agg(ids=text().wordpiece.encode(tok))
    ids = wanted(tok)["ids"].to_list()
    assert got["ids"].to_list() == [[ids[0], ids[2], ids[5]], [ids[1], ids[3], ids[4]]]


def test_special_tokens_can_be_left_out(tok: Tokenizer) -> None:
    wordpiece = text().wordpiece
    got = pl.DataFrame({"text": ["hello", None, ""]}).select(
        ids=wordpiece.encode(tok, add_special_tokens=False),
        count=wordpiece.count(tok, add_special_tokens=False),
        spans=wordpiece.offsets(tok, add_special_tokens=False).list.len(),
    )
    assert got["ids"].to_list() == [[5], None, []]
    assert got["count"].to_list() == got["spans"].to_list() == [1, None, 0]


def test_truncation_and_padding_of_the_tokenizer_hold(tok: Tokenizer) -> None:
    limited = tok.with_truncation(4).with_padding(6)
    frame = pl.DataFrame({"text": ["hello world hello", None, "a"]})
    got = frame.select(
        ids=text().wordpiece.encode(limited),
        count=text().wordpiece.count(limited),
        spans=text().wordpiece.offsets(limited).list.len(),
    )
    assert got["ids"].to_list() == [[2, 5, 6, 3, 0, 0], None, [2, 14, 3, 0, 0, 0]]
    assert got["count"].to_list() == [4, None, 3]
    assert got["spans"].to_list() == [6, None, 6]


def test_offsets_cut_the_tokens_out_of_the_text(tok: Tokenizer) -> None:
    frame = pl.DataFrame({"text": ["日本 hello 🙂 café!"]})
    spans = frame.with_columns(span=text().wordpiece.offsets(tok, add_special_tokens=False))
    start, end = pl.col("span").struct.field("start"), pl.col("span").struct.field("end")
    pieces = spans.explode("span").select(pl.col("text").str.slice(start, end - start))
    assert pieces["text"].to_list() == ["日", "本", "hello", "🙂", "café", "!"]


@pytest.mark.parametrize("engine", ENGINES)
def test_decode_undoes_encode(tok: Tokenizer, engine: Engine) -> None:
    texts = ["hello worlds!", None, "", "tokenization 日 a"]
    encoded = pl.LazyFrame({"text": texts}).select(text().wordpiece.encode(tok))
    query = encoded.select(text().wordpiece.decode(tok))
    assert query.collect_schema() == {"text": pl.String}
    assert query.collect(engine=engine)["text"].to_list() == texts
    whole = encoded.select(text().wordpiece.decode(tok, skip_special_tokens=False))
    assert whole.collect()["text"][0] == "[CLS] hello worlds! [SEP]"


@pytest.mark.parametrize("dtype", [pl.List(pl.UInt16), pl.List(pl.Int64), pl.Array(pl.Int32, 2)])
def test_decode_reads_every_list_of_integers(tok: Tokenizer, dtype: Any) -> None:
    column: Any = pl.Series("ids", [[5, 6], None, [8, 9]], dtype)
    assert column.wordpiece.decode(tok).to_list() == ["hello world", None, "tokenization"]


def test_a_series_has_the_namespace_too(tok: Tokenizer) -> None:
    column: Any = pl.Series("text", TEXTS)
    for name, series in {
        "ids": column.wordpiece.encode(tok),
        "count": column.wordpiece.count(tok),
        "chars": column.wordpiece.offsets(tok),
        "bytes": column.wordpiece.offsets(tok, "byte"),
    }.items():
        assert_series_equal(series, wanted(tok)[name].alias("text"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        (pl.Series([1, 2]), "Int64"),
        (pl.Series([["a"]]), r"List\(String\)"),
        (pl.Series(["a"], dtype=pl.Categorical), "Categorical"),
        (pl.Series(["a"], dtype=pl.Enum(["a"])), "Enum"),
    ],
)
def test_columns_that_are_no_texts_are_named(
    tok: Tokenizer, engine: Engine, column: pl.Series, dtype: str
) -> None:
    frame = column.alias("price").to_frame().lazy()
    for name in ("encode", "count", "offsets"):
        expression = getattr(text("price").wordpiece, name)(tok)
        with pytest.raises(TypeError, match=rf"column 'price' is of type {dtype}.*cast it"):
            frame.select(expression).collect(engine=engine)


def test_columns_that_are_no_ids_are_named(tok: Tokenizer) -> None:
    for column in (pl.Series("x", [1.5]), pl.Series("x", [["a"]]), pl.Series("x", [3])):
        frame = column.to_frame()
        with pytest.raises(TypeError, match=r"column 'x' is of type .* reads lists of ids"):
            frame.select(text("x").wordpiece.decode(tok))


def test_a_null_among_ids_is_named(tok: Tokenizer) -> None:
    column: Any = pl.Series("ids", [[5], [5, None]])
    with pytest.raises(ValueError, match="row 1 of column 'ids' holds a null"):
        column.wordpiece.decode(tok)


def test_bytes_that_are_not_utf8_are_named(tok: Tokenizer) -> None:
    frame = pl.DataFrame({"text": [b"hello", b"caf\xe9"]})
    with pytest.raises(ValueError, match="row 1 of the Arrow data is not UTF-8 at byte 3"):
        frame.select(text().wordpiece.encode(tok))


@pytest.mark.wrong_types
def test_mistakes_show_before_the_query_runs(tok: Tokenizer) -> None:
    with pytest.raises(TypeError, match=r"needs a Tokenizer .* not str"):
        text().wordpiece.encode("tokenizer.json")
    with pytest.raises(ValueError, match="'word' and must be 'char' or 'byte'"):
        text().wordpiece.offsets(tok, unit="word")


def test_an_expression_can_be_sent_to_another_process(tok: Tokenizer) -> None:
    pytest.importorskip("cloudpickle")
    expression = pickle.loads(pickle.dumps(text().wordpiece.encode(tok)))
    got = pl.DataFrame({"text": TEXTS}).select(ids=expression)
    assert_series_equal(got["ids"], wanted(tok)["ids"])
