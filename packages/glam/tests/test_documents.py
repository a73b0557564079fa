import gzip
import json
import random
from pathlib import Path

import polars as pl
import pytest
import zstandard

from chapbook.core.errors import Error, TableError
from chapbook.glam import documents
from chapbook.glam.documents import find_files, read_documents, write_documents

ROWS = [
    {"id": "a", "text": "plain", "score": 1},
    {"id": "b", "text": 'two\nlines, "quoted"', "score": 2},
    {"id": "c", "text": "Füße \u2028 é\u0301 😀", "score": 3},
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def put(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix == ".zst":
        half = len(content) // 2  # two frames, as pzstd writes them
        content = zstandard.compress(content[:half]) + zstandard.compress(content[half:])
    path.write_bytes(content)
    return path


def jsonl(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read(*paths, **options) -> pl.DataFrame:
    return pl.concat(read_documents(list(paths), **options))


def problem(*paths, **options) -> str:
    with pytest.raises(Error) as raised:
        read(*paths, **options)
    assert "\n" not in raised.value.message
    return raised.value.message


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_rows_come_back_from_every_text_format(kind, packed):
    separator = {"csv": ",", "tsv": "\t"}.get(kind, "")
    table = pl.DataFrame(ROWS)
    content = jsonl(ROWS) if kind == "jsonl" else table.write_csv(separator=separator)
    found = read(put(f"t.{kind}{packed}", content))
    wanted = table if kind == "jsonl" else table.cast(pl.String)
    assert found.equals(wanted)


def test_rows_come_back_from_parquet_in_batches(monkeypatch):
    monkeypatch.setattr(documents, "BATCH_ROWS", 7)
    table = pl.DataFrame({"n": range(50), "body": [f"text {i}" for i in range(50)]})
    table.write_parquet("t.parquet")
    batches = list(read_documents("t.parquet", text="body"))
    assert max(batch.height for batch in batches) <= 7
    found = pl.concat(batches)
    assert found.columns == ["id", "text", "n"]
    assert found["text"].equals(table["body"].alias("text"))
    assert found["id"].n_unique() == 50


def test_batches_are_bounded_by_rows_and_by_characters(monkeypatch):
    monkeypatch.setattr(documents, "BATCH_ROWS", 4)
    monkeypatch.setattr(documents, "BATCH_CHARACTERS", 100)
    put("t.jsonl", jsonl([{"text": "x"}] * 9 + [{"text": "y" * 60}] * 4))
    heights = [batch.height for batch in read_documents("t.jsonl")]
    assert heights == [4, 4, 3, 2]


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_a_txt_file_is_one_document(packed):
    text = "First line.\r\n\nÄ second one.\n"
    assert read(put(f"a.txt{packed}", text))["text"].to_list() == [text]


def test_a_folder_gives_its_files_by_name_and_ids_survive_a_move():
    for name in ("b.txt", "a/z.txt", "a/c.jsonl", "note.md", ".hidden.txt"):
        put(f"here/{name}", '{"text": "row"}' if name.endswith("l") else name)
    found = read("here")
    assert found["text"].to_list() == ["row", "a/z.txt", "b.txt"]
    assert found["id"].n_unique() == 3
    Path("there").mkdir()
    Path("here").rename("there/moved")
    assert read("there/moved").equals(found)


def test_letters_cut_by_the_border_of_a_block_are_whole(monkeypatch):
    text = "".join(random.Random(0).choices("aé€😀\n", k=500))
    put("t.txt", text)
    for block in (1, 2, 3, 7):
        monkeypatch.setattr(documents, "BLOCK", block)
        assert read("t.txt")["text"].item() == text


def test_a_byte_that_is_not_utf8_is_named_or_replaced(monkeypatch):
    monkeypatch.setattr(documents, "BLOCK", 4)
    put("t.txt", b"0123\xc3\xa9567\xff9")
    assert problem("t.txt") == "t.txt: byte 9 is not UTF-8"
    assert read("t.txt", errors="replace")["text"].item() == "0123é567\ufffd9"
    put("cut.txt", "abcé".encode()[:-1])
    assert problem("cut.txt") == "cut.txt: byte 3 is not UTF-8"


def test_a_nul_is_named_or_replaced(monkeypatch):
    monkeypatch.setattr(documents, "BLOCK", 4)
    put("t.txt", b"012345\x00")
    assert problem("t.txt") == "t.txt: byte 6 is NUL"
    assert read("t.txt", errors="replace")["text"].item() == "012345\ufffd"
    put("t.jsonl", '{"text": "fine"}\n\n{"text": "a\\u0000"}\n')
    assert problem("t.jsonl") == "t.jsonl:3: text holds a NUL"
    assert read("t.jsonl", errors="replace")["text"].to_list() == ["fine", "a\ufffd"]
    pl.DataFrame({"text": ["fine", "\0"]}).write_parquet("t.parquet")
    assert problem("t.parquet") == "t.parquet: row 1: text holds a NUL"


def test_half_a_surrogate_pair_is_named_or_replaced():
    put("t.jsonl", '{"text": "\\ud83d\\ude00"}\n{"text": "\\ud83d!"}\n')
    assert problem("t.jsonl") == "t.jsonl:2: text holds half of a surrogate pair"
    assert read("t.jsonl", errors="replace")["text"].to_list() == ["😀", "\ufffd!"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.jsonl", '{"body": "x", "n": 1}\n', 't.jsonl:1: no column "text"; it has body, n'),
        ("t.jsonl", '{"text": "x"}\n{"text": 1}\n', "t.jsonl:2: text is not text"),
        ("t.jsonl", '{"text": "x"}\n{"text": \n', "t.jsonl:2: not JSON: Expecting value"),
        ("t.jsonl", "[1]\n", "t.jsonl:1: no JSON object"),
        ("t.jsonl", '{"text": "x", "id": null}\n', "t.jsonl:1: id is empty"),
        ("t.csv", "body,n\nx,1\n", 't.csv: no column "text"; it has body, n'),
        ("t.csv", 'text,n\n"x\ny",1\nz\n', "t.csv:4: the line has 1 fields, the header has 2"),
        ("t.csv", 'text\nx\n"y\n', "is a quote left open?"),
        ("t.jsonl.zst", "", "t.jsonl.zst: no documents there"),
        ("t.csv", "text\n", "t.csv: no documents there"),
        ("t.md", "x", "t.md: no kind of document that is known"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(name, content, told):
    assert told in problem(put(name, content))


def test_columns_of_parquet_are_named_when_the_text_is_missing():
    pl.DataFrame({"body": ["x"], "n": [1]}).write_parquet("t.parquet")
    assert 't.parquet: no column "text"; it has body, n' in problem("t.parquet")
    put("cut.parquet", Path("t.parquet").read_bytes()[:-20])
    assert "cut.parquet" in problem("cut.parquet")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_that_was_cut_is_not_read_as_whole(suffix):
    content = jsonl([{"text": f"{random.Random(i).random()}"} for i in range(2000)])
    whole = put(f"t.jsonl{suffix}", content).read_bytes()
    Path(f"t.jsonl{suffix}").write_bytes(whole[:-5])
    with pytest.raises(TableError, match=f"t.jsonl{suffix} is not a whole {suffix[1:]} file"):
        read(f"t.jsonl{suffix}")


@pytest.mark.parametrize("name", ["o.parquet", "o.csv", "o.jsonl", "o.jsonl.gz", "o.jsonl.zst"])
def test_what_is_written_reads_back(name):
    table = pl.DataFrame(ROWS)
    assert write_documents(table.iter_slices(2), name) == 3
    assert read(name).equals(table.cast(pl.String) if name == "o.csv" else table)


def test_frames_of_other_columns_go_into_jsonl_alone():
    frames = [pl.DataFrame({"id": ["a"], "text": ["x"], "n": [n]}) for n in (1, "one")]
    assert write_documents(frames, "o.jsonl") == 2
    with pytest.raises(Error, match="after columns id String, text String, n Int64 came"):
        write_documents(frames, "o.parquet")
    with pytest.raises(Error, match="no documents to write"):
        write_documents([], "o.parquet")
    assert not Path("o.parquet").exists()


def test_paths_that_give_nothing_are_told():
    Path("empty").mkdir()
    put("a.txt", "x")
    for paths, told in [
        ("empty", "empty: no documents there"),
        ("nowhere.txt", "nowhere.txt: no such file"),
        ("web/*.txt", "web/*.txt: no documents there"),
        ([], "no files of documents"),
        (["a.txt", "./a.txt"], "is given twice"),
    ]:
        with pytest.raises(Error) as raised:
            find_files(paths)
        assert told in raised.value.message
    assert find_files("*.txt") == [Path("a.txt")]
