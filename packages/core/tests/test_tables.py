import bz2
import gzip
import io
import sys
import traceback
from pathlib import Path

import polars as pl
import pytest

from chapbook.core.errors import Error, TableError
from chapbook.core.tables import expand, read_table, scan_table, write_table

SCHEMA = {"id": pl.Int64, "text": pl.String, "label": pl.Int64}
ROWS = [(1, "a", 0), (2, "b\nc", 1), (3, "d", 2)]
FORMATS = ["csv", "tsv", "parquet", "ipc", "arrow", "feather", "jsonl", "ndjson", "json"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def put(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def problem(path: str, *args, **options) -> str:
    with pytest.raises(TableError) as raised:
        read_table(path, *args, **options)
    assert "\n" not in raised.value.message
    return raised.value.message


# --- tables that are right


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_table_comes_back_as_it_was_written(suffix):
    table = pl.DataFrame(ROWS, schema=SCHEMA, orient="row")
    write_table(table, f"t.{suffix}")
    assert read_table(f"t.{suffix}", SCHEMA).equals(table)


@pytest.mark.parametrize("suffix", ["csv.gz", "csv.bz2", "tsv.gz", "jsonl.gz", "json.bz2"])
def test_a_packed_table_comes_back_and_is_the_same_bytes_each_time(suffix):
    table = pl.DataFrame(ROWS, schema=SCHEMA, orient="row")
    write_table(table, f"t.{suffix}")
    first = Path(f"t.{suffix}").read_bytes()
    write_table(table, f"t.{suffix}")
    assert Path(f"t.{suffix}").read_bytes() == first
    plain_suffix = suffix.rpartition(".")[0]
    write_table(table, f"t.{plain_suffix}")
    plain = Path(f"t.{plain_suffix}").read_bytes()
    assert (gzip if suffix.endswith("gz") else bz2).decompress(first) == plain
    assert read_table(f"t.{suffix}", SCHEMA).equals(table)
    assert {str(path) for path in Path().iterdir()} == {f"t.{suffix}", f"t.{plain_suffix}"}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "ipc", "jsonl"])
def test_a_lazy_table_is_streamed_to_the_same_file(suffix):
    table = pl.DataFrame(ROWS, schema=SCHEMA, orient="row")
    write_table(table.lazy(), f"lazy.{suffix}")
    assert read_table(f"lazy.{suffix}", SCHEMA).equals(table)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "ipc", "jsonl", "json", "csv.gz"])
def test_a_scan_gives_what_a_read_gives(suffix):
    table = pl.DataFrame(ROWS, schema=SCHEMA, orient="row")
    write_table(table, f"t.{suffix}")
    assert scan_table(f"t.{suffix}", SCHEMA).collect().equals(table)
    assert scan_table(f"t.{suffix}", SCHEMA, ["label"]).collect().columns == ["label"]


def test_columns_rows_and_further_columns():
    put("t.csv", "id,text,label,more\n1,a,0,x\n2,b,1,y\n")
    assert read_table("t.csv", SCHEMA).columns == ["id", "text", "label", "more"]
    assert read_table("t.csv", columns=["text", "more"]).rows() == [("a", "x"), ("b", "y")]
    assert read_table("t.csv", rows=1).height == 1


def test_a_further_column_whose_type_shows_late_passes_through():
    put("t.csv", "id,more\n" + "1,2\n" * 500 + "1,x\n")
    table = read_table("t.csv", {"id": pl.Int64})
    assert table.schema == {"id": pl.Int64, "more": pl.String}
    assert table["more"][500] == "x"


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_optional_column_may_be_missing_or_hold_nulls(suffix):
    write_table(pl.DataFrame({"id": [1, 2]}), f"none.{suffix}")
    assert read_table(f"none.{suffix}", {"id": pl.Int64, "weight?": pl.Float64}).width == 1
    write_table(pl.DataFrame({"w": [1.5, None], "id": [1, 2]}), f"null.{suffix}")
    assert read_table(f"null.{suffix}", {"w?": pl.Float64})["w"].to_list() == [1.5, None]
    assert "w is empty" in problem(f"null.{suffix}", {"w": pl.Float64})


def test_types_that_lose_nothing_are_converted():
    write_table(pl.DataFrame({"a": pl.Series([1, 2], dtype=pl.Int8), "b": [1.0, 2.0]}), "t.parquet")
    table = read_table("t.parquet", {"a": pl.Float32, "b": pl.Int64})
    assert table.schema == {"a": pl.Float32, "b": pl.Int64}
    put("t.jsonl", '{"when": "2024-05-31", "n": "7", "text": 5, "label": "a"}\n')
    schema = {"when": pl.Date, "n": pl.Int64, "text": pl.String, "label": pl.Enum(["a"])}
    assert read_table("t.jsonl", schema).schema == schema


# --- tables that are wrong: text for text

BAD_LABEL = [(1, "a", "0"), (2, "b\nc", "1"), (3, "d", "posi")]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("t.csv", "t.csv:5"),
        ("t.tsv", "t.tsv:5"),
        ("t.csv.gz", "t.csv.gz:5"),
        ("t.csv.bz2", "t.csv.bz2:5"),
        ("t.jsonl", "t.jsonl:3"),
        ("t.json", "t.json: row 2"),
        ("t.parquet", "t.parquet: row 2"),
        ("t.ipc", "t.ipc: row 2"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_place(name, place):
    write_table(pl.DataFrame(BAD_LABEL, schema=["id", "text", "label"], orient="row"), name)
    assert problem(name, SCHEMA) == f'{place}: label "posi" is not an integer'
    assert problem(name, SCHEMA, private=["label"]) == f"{place}: label is not an integer"
    with pytest.raises(TableError) as raised:
        read_table(name, SCHEMA)
    assert raised.value.column == "label"
    assert str(raised.value.row) == place.split(":")[-1].removeprefix(" row ")
    assert str(raised.value.path) == name


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_missing_column_is_answered_with_the_nearest(suffix):
    write_table(pl.DataFrame({"id": [1], "txt": ["a"], "label": [0]}), f"t.{suffix}")
    expected = (
        f't.{suffix}: no column "text"; it has id, txt, label. '
        "Did you mean txt? Pass --text-column txt"
    )
    assert problem(f"t.{suffix}", SCHEMA) == expected
    assert problem(f"t.{suffix}", columns=["text"]) == expected
    with pytest.raises(TableError, match='no column "text"'):
        scan_table(f"t.{suffix}", SCHEMA)
    far = f't.{suffix}: no column "zzzz"; it has id, txt, label.'
    assert problem(f"t.{suffix}", {"zzzz": pl.Int64}) == far


@pytest.mark.parametrize(
    ("suffix", "place"),
    [("csv", ":3"), ("tsv", ":3"), ("jsonl", ":2"), ("json", ": row 1"), ("parquet", ": row 1")],
)
def test_a_null_where_none_may_be_is_named(suffix, place):
    write_table(pl.DataFrame({"label": [1, None, 3], "id": [1, 2, 3]}), f"t.{suffix}")
    assert problem(f"t.{suffix}", {"label": pl.Int64}) == f"t.{suffix}{place}: label is empty"


@pytest.mark.parametrize(
    ("suffix", "place"), [("csv", ":4"), ("jsonl", ":3"), ("json", ": row 2"), ("ipc", ": row 2")]
)
def test_a_repeated_key_is_named(suffix, place):
    write_table(pl.DataFrame({"id": [7, 8, 7], "day": ["a", "a", "b"]}), f"t.{suffix}")
    expected = f't.{suffix}{place}: id "7" is there already; it must be unique'
    assert problem(f"t.{suffix}", key="id") == expected
    private = f"t.{suffix}{place}: id is there already; it must be unique"
    assert problem(f"t.{suffix}", key="id", private=["id"]) == private
    assert read_table(f"t.{suffix}", key=["id", "day"]).height == 3
    assert problem(f"t.{suffix}", key="ids").startswith(f't.{suffix}: no column "ids"; it has id')


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_file_is_named(suffix):
    assert problem(put(f"t.{suffix}", ""), SCHEMA) == f"t.{suffix} is empty"


def test_a_file_of_blank_lines_or_noise_is_named():
    assert problem(put("t.csv", "\n\n\n")).startswith("t.csv")
    assert problem(put("t.csv", b"\xef\xbb\xbf")).startswith("t.csv cannot be read as csv")
    assert problem(put("t.jsonl", "\n\n")).startswith("t.jsonl")
    assert problem(put("t.parquet", "PAR1")).startswith("t.parquet is not a whole parquet file")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_text_that_is_not_utf8_is_named_with_its_byte(suffix):
    text = "id,text\n1,café\n" if suffix in ("csv", "tsv") else '[{"id": 1, "text": "café"}]'
    text = text.strip("[]") if suffix == "jsonl" else text
    data = text.encode("latin-1")
    put(f"t.{suffix}", data)
    at = data.index(b"\xe9")
    expected = f"t.{suffix}: byte {at} is not UTF-8; save it as UTF-8"
    assert problem(f"t.{suffix}") == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["1,a", "2,b,c"], "t.csv:3: the line has 3 fields, the header has 2"),
        (["1,a", "2"], "t.csv:3: the line has 1 fields, the header has 2"),
        (["1,a", "", "2,b"], "t.csv:3: the line is blank"),
        (["1,a\u2028b", "2"], "t.csv:3: the line has 1 fields, the header has 2"),
        (["1,a", '2,"b', "3,c"], "t.csv:3: unexpected end of data (is a quote left open?)"),
    ],
)
def test_a_ragged_line_is_named(lines, expected):
    put("t.csv", "\n".join(["id,text", *lines]) + "\n")
    assert problem("t.csv") == expected


@pytest.mark.parametrize(("suffix", "cut"), [("parquet", 20), ("ipc", 20), ("parquet", 10_000)])
def test_a_truncated_file_is_named(suffix, cut):
    write_table(pl.DataFrame({"a": list(range(5000))}), f"t.{suffix}")
    data = Path(f"t.{suffix}").read_bytes()
    put(f"t.{suffix}", data[: max(8, len(data) - cut)])
    assert problem(f"t.{suffix}").startswith(f"t.{suffix} is not a whole {suffix} file: ")


@pytest.mark.parametrize("suffix", ["gz", "bz2", "zst"])
def test_a_torn_packed_file_is_named(suffix):
    data = gzip.compress(b"a\n1\n") if suffix == "gz" else bz2.compress(b"a\n1\n")
    put(f"t.csv.{suffix}", data[:-5] if suffix != "zst" else b"\x28\xb5\x2f\xfd\x04")
    assert problem(f"t.csv.{suffix}") == f"t.csv.{suffix} is not a whole {suffix} file"


def test_json_that_is_broken_is_named_with_its_line():
    put("t.jsonl", '{"a": 1}\n{"a": 2\n')
    assert problem("t.jsonl") == "t.jsonl:2: not JSON: Expecting ',' delimiter"
    put("t.json", '[{"a": 1},\n{"a": }]\n')
    assert problem("t.json") == "t.json:2: not JSON: Expecting value"


def test_numbers_that_would_change_are_refused():
    write_table(pl.DataFrame({"n": [1.0, 2.5]}), "t.parquet")
    assert problem("t.parquet", {"n": pl.Int64}) == "t.parquet: row 1: n 2.5 is not an integer"
    write_table(pl.DataFrame({"n": [1, 300]}), "t.parquet")
    expected = "t.parquet: row 1: n 300 is not an integer of type Int8"
    assert problem("t.parquet", {"n": pl.Int8}) == expected
    write_table(pl.DataFrame({"n": [True]}), "t.parquet")
    expected = 't.parquet: column "n" is Boolean, not an integer'
    assert problem("t.parquet", {"n": pl.Int64}) == expected
    with pytest.raises(TableError) as raised:
        scan_table("t.parquet", {"n": pl.Int64})
    assert raised.value.message == expected
    write_table(pl.DataFrame({"n": [[1], [2]]}), "t.parquet")
    assert "is List(Int64), not an integer" in problem("t.parquet", {"n": pl.Int64})


@pytest.mark.parametrize(
    ("dtype", "value", "noun"),
    [
        (pl.Float64, "x", "a number"),
        (pl.Boolean, "maybe", "true or false"),
        (pl.Date, "soon", "a date"),
        (pl.Datetime, "noon", "a date and time"),
        (pl.Enum(["yes", "no"]), "maybe", "of type Enum(categories=['yes', 'no'])"),
    ],
)
def test_each_type_has_its_noun(dtype, value, noun):
    put("t.csv", f"id,v\n1,\n2,{value}\n")
    assert problem("t.csv", {"v?": dtype}) == f't.csv:3: v "{value}" is not {noun}'


def test_the_first_bad_value_is_found_in_a_long_file():
    lines = [f"{i},{i}" for i in range(20_000)]
    lines[13_579] = "13579,oops"
    lines[17_000] = "17000,later"
    put("t.csv", "id,v\n" + "\n".join(lines) + "\n")
    assert problem("t.csv", {"v": pl.Int32}).startswith('t.csv:13581: v "oops" is not an integer')


def test_no_error_shows_a_private_value():
    put("t.csv", "id,label\n1,0\n2,secret\n")
    put("u.csv", "id,label\n1,0\n2,secret,secret\n")
    put("v.csv", 'id,label\n1,0\n2,"secret\n')
    put("w.jsonl", '{"label": 1}\n{"label": "secret"}\n{"label": "secret"\n')
    for name in ("t.csv", "u.csv", "v.csv", "w.jsonl"):
        with pytest.raises(TableError) as raised:
            read_table(name, {"label": pl.Int64}, private=["label"])
        assert "secret" not in "".join(traceback.format_exception(raised.value))


def test_unknown_formats_say_which_are_known():
    with pytest.raises(Error, match=r"t.docx: docx is no table format; known are csv, tsv"):
        read_table("t.docx")
    with pytest.raises(Error, match=r"parquet is packed inside"):
        read_table("t.parquet.gz")
    with pytest.raises(FileNotFoundError):
        read_table("nowhere.csv")


# --- many files


def test_a_pattern_reads_many_files_in_order():
    for number in (2, 1):
        write_table(pl.DataFrame({"id": [number]}), f"part{number}.parquet")
    assert read_table("part*.parquet", {"id": pl.Int64})["id"].to_list() == [1, 2]
    assert scan_table("part*.parquet").collect()["id"].to_list() == [1, 2]
    assert expand("part*.parquet") == [Path("part1.parquet"), Path("part2.parquet")]
    assert problem("none*.csv") == "none*.csv: no file matches"


@pytest.mark.parametrize("suffix", ["csv", "parquet", "ipc", "jsonl", "json"])
def test_a_file_whose_name_looks_like_a_pattern_is_one_file(suffix):
    write_table(pl.DataFrame({"id": [1]}), f"t [1].{suffix}")
    assert read_table(f"t [1].{suffix}").rows() == [(1,)]
    assert scan_table(f"t [1].{suffix}").collect().rows() == [(1,)]


def test_files_that_differ_are_both_named():
    write_table(pl.DataFrame({"id": [1], "a": [1]}), "part1.parquet")
    write_table(pl.DataFrame({"a": [1], "id": [1]}), "part2.parquet")
    expected = "part1.parquet has id Int64, a Int64, but part2.parquet has a Int64, id Int64"
    assert problem("part*.parquet") == expected
    with pytest.raises(TableError, match=r"part1\.parquet has id Int64"):
        expand("part*.parquet")


def test_a_key_must_be_unique_over_all_files():
    for number in (1, 2):
        write_table(pl.DataFrame({"id": [7]}), f"part{number}.parquet")
    expected = 'part*.parquet: row 1: id "7" is there already; it must be unique'
    assert problem("part*.parquet", key="id") == expected


# --- standard streams


def test_stdin_and_stdout_carry_tables(monkeypatch, capfdbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"id\n4\n")))
    table = read_table("-", {"id": pl.Int64}, format="csv")
    write_table(table.with_columns(twice=pl.col("id") * 2), "-", format="jsonl")
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == b'{"id":4,"twice":8}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"id\nx\n")))
    assert problem("-", {"id": pl.Int64}, format="csv") == '-:2: id "x" is not an integer'
