import gzip
import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from chapbook.core import io
from chapbook.core.errors import Error
from chapbook.core.tables import write_table
from chapbook.fast_wordpiece import Tokenizer, token_files
from chapbook.fast_wordpiece.documents import Input, Reading, documents
from chapbook.fast_wordpiece.stream import Output, count_files, encode_files

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = ["Hello, world", "", "naïve café", "中国 hello", 'a "quoted" b', "\u200b", "z" * 300, "b"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", ",", '"', "中", "国"]
    return Tokenizer.from_vocab([*pieces, *LETTERS, *(f"##{letter}" for letter in LETTERS)])


def expected(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [tokenizer.encode_ids(text).tolist() for text in texts]


def encoded(path: Path) -> list[list[int] | None]:
    """The ids in an output of any kind."""
    if path.is_dir() and (path / "ids.npy").exists():
        ids = np.load(path / "ids.npy", mmap_mode="r")
        return [row.tolist() for row in np.split(ids, np.load(path / "row_offsets.npy")[1:-1])]
    if path.is_dir():
        return pl.read_parquet(path / "*.parquet")["ids"].to_list()
    if path.suffix == ".jsonl":
        return [json.loads(line)["ids"] for line in path.read_text().splitlines()]
    return (pl.read_parquet if path.suffix == ".parquet" else pl.read_ipc)(path)["ids"].to_list()


def write_inputs(folder: Path, texts: list[str]) -> dict[str, Path]:
    """The same texts in a file of every kind."""
    table = pl.DataFrame({"id": range(len(texts)), "text": texts})
    lines = "".join(f"{text}\n" for text in texts).encode()
    files = {name: folder / f"d.{name}" for name in ("txt", "txt.gz", "jsonl", "csv", "tsv")}
    files["txt"].write_bytes(lines)
    files["txt.gz"].write_bytes(gzip.compress(lines))
    for name in ("jsonl", "csv", "tsv", "parquet", "ipc", "csv.gz", "csv.zst"):
        files[name] = folder / f"d.{name}"
        write_table(table, files[name])
    return files


# ------------------------------------------------------------------------------ files in, files out


def test_every_kind_of_input_gives_the_same_ids(tokenizer, tmp_path):
    for name, path in write_inputs(tmp_path, TEXTS).items():
        output = tmp_path / f"{name}.parquet"
        report = encode_files([path], output, tokenizer)
        assert encoded(output) == expected(tokenizer, TEXTS), name
        assert report.documents == report.rows == len(TEXTS)
        assert report.tokens == sum(map(len, expected(tokenizer, TEXTS)))
        assert report.bytes == len("".join(TEXTS).encode())


@pytest.mark.parametrize("name", ["o.parquet", "o.arrow", "o.jsonl", "folder", "bin"])
def test_every_kind_of_output_holds_the_same_ids(tokenizer, tmp_path, name):
    path = write_inputs(tmp_path, TEXTS)["txt"]
    for part_bytes in (1, 1 << 20):
        output = tmp_path / str(part_bytes) / name
        kind = "bin" if name == "bin" else None
        reading = Reading(batch_bytes=7)
        encode_files([path], output, tokenizer, reading, format=kind, part_bytes=part_bytes)
        assert encoded(output) == expected(tokenizer, TEXTS)
        assert not output.with_name(f"{output.name}.parts").exists()


def test_flat_arrays_of_16_bits_can_be_mapped(tokenizer, tmp_path):
    path = write_inputs(tmp_path, TEXTS)["parquet"]
    encode_files([path], tmp_path / "o", tokenizer, wanted=Output(dtype="uint16"), format="bin")
    ids = np.load(tmp_path / "o" / "ids.npy", mmap_mode="r")
    assert ids.dtype == np.uint16 and isinstance(ids, np.memmap)
    about = json.loads((tmp_path / "o" / "about.json").read_text())
    assert about["fingerprint"] == tokenizer.fingerprint and about["tokens"] == len(ids)


def test_a_vocabulary_beyond_16_bits_is_refused(tokenizer, tmp_path):
    wide = Tokenizer.from_vocab([*tokenizer.get_vocab(), *(f"token{n}" for n in range(70_000))])
    path = write_inputs(tmp_path, TEXTS)["txt"]
    with pytest.raises(Error, match="uint16 holds ids up to 65535, and the vocabulary has 70"):
        encode_files([path], tmp_path / "o.parquet", wide, wanted=Output(dtype="uint16"))


@pytest.mark.parametrize("name", ["txt", "txt.gz", "csv", "csv.zst", "jsonl", "parquet"])
def test_the_size_of_blocks_changes_nothing(tokenizer, tmp_path, name):
    texts = [*TEXTS, "two\nlines", "c\r\nd"] if name in ("csv", "jsonl", "parquet") else TEXTS
    path = write_inputs(tmp_path, texts)[name]
    for size in (1, 2, 3, 5, 8, 50, 1000):
        blocks = list(documents([Input(path)], Reading(batch_bytes=size)))
        assert [text for block in blocks for text in block.strings()] == texts
        assert [number for block in blocks for number in block.numbers] == list(range(len(texts)))
        for block in blocks[:-1]:
            rest = documents([Input(path)], Reading(batch_bytes=size), block.place)
            done = int(block.numbers[-1]) + 1
            assert [text for each in rest for text in each.strings()] == texts[done:]


def test_documents_may_be_separated_by_anything(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("one\ntwo<|end|>three<|end|><|end|>four", newline="")
    for size in (1, 4, 100):
        reading = Reading(separator="<|end|>", batch_bytes=size)
        texts = [text for block in documents([Input(path)], reading) for text in block.strings()]
        assert texts == ["one\ntwo", "three", "", "four"]


def test_lines_lose_their_carriage_returns_and_files_their_byte_order_mark(tmp_path):
    path = tmp_path / "d.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rtwo\r\n\r\nthree")
    blocks = documents([Input(path)], Reading())
    assert [t for block in blocks for t in block.strings()] == ["one", "two\rtwo", "", "three"]


def test_offsets_word_ids_windows_and_padding_are_the_tokenizers_own(tokenizer, tmp_path):
    texts = ["hello a b c d e", "x", "中国中国中国 q"]
    path = write_inputs(tmp_path, texts)["jsonl"]
    wanted = Output(offsets=True, word_ids=True, max_length=5, stride=1, pad=True)
    encode_files([path], tmp_path / "o.parquet", tokenizer, Reading(batch_bytes=1), wanted)
    table = pl.read_parquet(tmp_path / "o.parquet")
    limited = tokenizer.with_truncation(5, stride=1).with_padding(5)
    batch = limited.encode_batch(texts, offsets=True, overflow=True)
    assert table["ids"].to_list() == [row.ids.tolist() for row in batch]
    assert table["attention_mask"].to_list() == [row.attention_mask.tolist() for row in batch]
    assert table["document"].to_list() == batch.samples.tolist()
    spans = [[(span["start"], span["end"]) for span in row] for row in table["offsets"]]
    assert spans == [[(a, b) for a, b in row.offsets.tolist()] for row in batch]
    words = [[-1 if word is None else word for word in row.word_ids] for row in batch]
    assert table["word_ids"].to_list() == words


def test_pairs_and_kept_columns_come_along(tokenizer, tmp_path):
    table = pl.DataFrame(
        {"id": [7, 8, 9], "text": ["a b", None, "c"], "other": ["hello", "x", "world a"]}
    )
    reading = Reading(pair_column="other", keep=("id",))
    for name in ("d.parquet", "d.jsonl", "d.arrow"):
        write_table(table, tmp_path / name)
        output = tmp_path / f"{name}.o.parquet"
        encode_files([tmp_path / name], output, tokenizer, reading)
        made = pl.read_parquet(output)
        batch = tokenizer.encode_batch(["a b", "c"], ["hello", "world a"])
        first, second = ([row.ids.tolist(), row.type_ids.tolist()] for row in batch)
        assert made.rows() == [(7, *first), (8, None, None), (9, *second)]


def test_null_stays_null(tokenizer, tmp_path):
    write_table(pl.DataFrame({"text": ["a", None, ""]}), tmp_path / "d.parquet")
    encode_files([tmp_path / "d.parquet"], tmp_path / "o.parquet", tokenizer)
    assert encoded(tmp_path / "o.parquet") == [[2, 11, 3], None, [2, 3]]


def test_no_documents_make_an_empty_table(tokenizer, tmp_path):
    (tmp_path / "d.txt").write_bytes(b"")
    encode_files([tmp_path / "d.txt"], tmp_path / "o.parquet", tokenizer)
    table = pl.read_parquet(tmp_path / "o.parquet")
    assert table.height == 0 and table.schema == {"ids": pl.List(pl.Int32)}


def test_the_outputs_of_all_shards_are_the_whole(tokenizer, tmp_path):
    texts = [f"a{'b' * (number % 7)} c" for number in range(100)]
    paths = []
    for number in range(0, 100, 20):
        paths.append(tmp_path / f"d{number}.parquet")
        write_table(pl.DataFrame({"text": texts[number : number + 20]}), paths[-1])
    for count in (2, 3, 5, 8, 33):
        rows = []
        for share in range(count):
            output = tmp_path / f"{share}-{count}.parquet"
            encode_files(paths, output, tokenizer, shard=(share, count))
            rows += encoded(output)
        assert rows == expected(tokenizer, texts)
    (tmp_path / "d.txt").write_text("a")
    with pytest.raises(Error, match=r"--shard 0/2 needs 2 files or files with rows; .*d.txt"):
        encode_files([tmp_path / "d.txt"], tmp_path / "o.parquet", tokenizer, shard=(0, 2))


def test_counts_are_the_lengths_of_the_rows(tokenizer, tmp_path):
    path = write_inputs(tmp_path, TEXTS)["csv"]
    lengths = [len(row) for row in expected(tokenizer, TEXTS)]
    limited = tokenizer.with_truncation(4)  # which a count leaves out
    counts = count_files([path], limited, Reading(keep=("id",)), output=tmp_path / "o.parquet")
    table = pl.read_parquet(tmp_path / "o.parquet")
    assert table["tokens"].to_list() == lengths and table["id"].to_list() == list("01234567")
    assert counts.report.tokens == sum(lengths)
    assert counts.mean == pytest.approx(np.mean(lengths))
    assert counts.quantile(0.5) == sorted(lengths)[3] and counts.quantile(1) == max(lengths)
    assert counts.longer_than(5) == sum(length > 5 for length in lengths)


# ------------------------------------------------------------------------------------- bad input


def reject(tokenizer, path: Path, on_error: str, **options):
    reading = Reading(on_error=on_error, batch_bytes=30, **options)  # type: ignore[arg-type]
    output = path.with_name(f"{on_error}.parquet")
    return encode_files([path], output, tokenizer, reading), encoded(output)


@pytest.mark.parametrize(
    ("name", "content", "fault", "good"),
    [
        ("d.txt", b"a\nb\xffb\nc\n", ":2: byte 3 of the file is not UTF-8", "ac"),
        ("d.jsonl", b'{"text":"a"}\n{"text":\n{"text":"c"}', ":2: not JSON", "ac"),
        ("d.jsonl", b'{"text":"a"}\n{"text":12}\n{"text":"c"}', ":2: text is 12, not a str", "ac"),
        ("d.jsonl", b'{"text":"a"}\n{"text":"\\ud800"}\n{"text":"c"}', ":2: half a surr", "ac"),
        ("d.jsonl", b'{"text":"a"}\n[1]\n{"text":"c"}', ":2: not a JSON object", "ac"),
        ("d.csv", b"n,text\n1,a\n2\n3,c\n", ", record 2: 1 fields, the header has 2", "ac"),
        ("d.csv", b"n,text\n1,a\n2,b,b\n3,c\n", ", record 2: 3 fields, the header has 2", "ac"),
        ("d.csv", b'n,text\n1,a\n2,"\xff"\n3,c\n', ", record 2: byte 14 of the file", "ac"),
    ],
)
def test_a_document_that_cannot_be_read_is_named_and_left_out_or_null(
    tokenizer, tmp_path, name, content, fault, good
):
    path = tmp_path / name
    path.write_bytes(content)
    first, last = expected(tokenizer, list(good))
    with pytest.raises(Error) as problem:
        reject(tokenizer, path, "fail")
    assert fault in problem.value.message and str(path) in problem.value.message
    shutil.rmtree(tmp_path / "fail.parquet.parts")
    report, rows = reject(tokenizer, path, "skip")
    assert rows == [first, last] and report.rejected == 1 and fault in report.faults[0]
    report, rows = reject(tokenizer, path, "null")
    assert rows == [first, None, last] and report.rejected == 1 and report.documents == 3


def test_half_written_and_missing_files_among_many_are_told_by_name(tokenizer, tmp_path):
    texts = [" ".join(random.Random(number).choices(LETTERS, k=40)) for number in range(2000)]
    whole = gzip.compress("\n".join(texts).encode())
    (tmp_path / "a.txt.gz").write_bytes(whole[: len(whole) // 2])
    write_table(pl.DataFrame({"text": texts}), tmp_path / "b.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:2000])
    (tmp_path / "c.txt").write_text("hello\n")
    paths = [tmp_path / name for name in ("a.txt.gz", "none.txt", "b.parquet", "c.txt")]
    reading = Reading(on_error="skip", batch_bytes=1000)
    report = encode_files(paths, tmp_path / "o.parquet", tokenizer, reading)
    table = pl.read_parquet(tmp_path / "o.parquet")
    assert report.rejected == 3
    for fault, path in zip(report.faults, paths, strict=False):
        assert str(path) in fault
    assert "cannot be read to its end" in report.faults[0]
    assert table["file"].to_list()[-1] == str(paths[3])
    assert table["ids"].to_list()[-1] == expected(tokenizer, ["hello"])[0]
    half = table.filter(pl.col("file") == str(paths[0]))
    assert 100 < half.height < 2000
    assert half["ids"].to_list() == expected(tokenizer, texts[: half.height])
    for path in (paths[0], paths[2]):
        with pytest.raises(Error, match=path.name):
            encode_files([path], tmp_path / f"{path.name}.parquet", tokenizer)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        # Workers must agree on the names of the tests: no time of day in a parameter.
        (gzip.compress(b"a", mtime=0), "packed by gzip; its name must end in .gz"),
        ("a".encode("utf-16"), "UTF-16; save it as UTF-8"),
        (b"PAR1....", "a parquet file"),
        (b"\x00\x01\x02" * 2000, "holds binary data"),
    ],
)
def test_a_file_of_another_kind_is_detected_early(tokenizer, tmp_path, content, what):
    (tmp_path / "d.txt").write_bytes(content)
    with pytest.raises(Error, match=what):
        encode_files([tmp_path / "d.txt"], tmp_path / "o.parquet", tokenizer)


def test_invalid_bytes_may_be_replaced(tokenizer, tmp_path):
    (tmp_path / "d.txt").write_bytes(b"a\xff\nb\xe4\xb8\n")
    reading = Reading(errors="replace")
    encode_files([tmp_path / "d.txt"], tmp_path / "o.parquet", tokenizer, reading)
    assert encoded(tmp_path / "o.parquet") == expected(tokenizer, ["a\ufffd", "b\ufffd"])


def test_a_column_that_is_not_there_is_named_with_the_nearest(tokenizer, tmp_path):
    for name in ("d.csv", "d.jsonl", "d.parquet"):
        write_table(pl.DataFrame({"texts": ["a"], "n": [1]}), tmp_path / name)
        with pytest.raises(Error, match=r'no column "text"; it has texts, n\. Did you mean texts'):
            encode_files([tmp_path / name], tmp_path / f"{name}.parquet", tokenizer)
        with pytest.raises(Error, match=r'column "n" is Int64, not text|no column "m"'):
            column = "n" if name == "d.parquet" else "m"
            encode_files([tmp_path / name], tmp_path / "x.parquet", tokenizer, Reading(column))
        shutil.rmtree(tmp_path / f"{name}.parquet.parts")
        shutil.rmtree(tmp_path / "x.parquet.parts")


def test_kept_columns_of_two_types_are_refused(tokenizer, tmp_path):
    write_table(pl.DataFrame({"text": ["a"], "n": [1]}), tmp_path / "a.parquet")
    write_table(pl.DataFrame({"text": ["a"], "n": ["x"]}), tmp_path / "b.parquet")
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    with pytest.raises(Error, match='column "n" is Int64 in one file and String in another'):
        encode_files(paths, tmp_path / "o.parquet", tokenizer, Reading(keep=("n",)))


def test_lengths_that_cannot_be_are_refused_before_anything_is_written(tokenizer, tmp_path):
    path = write_inputs(tmp_path, TEXTS)["txt"]
    for wanted, what in (
        (Output(max_length=1), "max_length 1 is less than the 2 tokens"),
        (Output(max_length=5, stride=5), "stride 5 must be less than max_length 5"),
        (Output(stride=2), "--stride needs --max-length"),
        (Output(pad=True), "--pad needs --max-length"),
    ):
        with pytest.raises(Error, match=what):
            encode_files([path], tmp_path / "o.parquet", tokenizer, wanted=wanted)
    assert not list(tmp_path.glob("o.parquet*"))


# ---------------------------------------------------------------------------- kills and resumption

CHILD = """
import signal, sys
from pathlib import Path
from chapbook.fast_wordpiece import Tokenizer
from chapbook.fast_wordpiece.documents import Reading
from chapbook.fast_wordpiece.stream import Output, encode_files
first, second, output, vocab, delay = sys.argv[1:]
tokenizer = Tokenizer.from_file(vocab)
reading = Reading(batch_bytes=2000, on_error="skip")
# The kernel ends the process wherever it is, as by kill -9.
signal.signal(signal.SIGALRM, signal.SIG_DFL)
signal.setitimer(signal.ITIMER_REAL, float(delay))
resume = Path(output + ".parts").exists() or Path(output).exists()
wanted = Output(stride=1, max_length=9)
encode_files([first, second], output, tokenizer, reading, wanted, part_bytes=6000, resume=resume)
"""


@pytest.mark.parametrize("name", ["o.parquet", "o.jsonl"])
def test_kills_at_random_moments_lose_and_double_nothing(tokenizer, tmp_path, name):
    rng = random.Random(name)
    lines = [" ".join(rng.choices(LETTERS, k=rng.randrange(30))) for _ in range(12_000)]
    lines[7] = lines[11_500] = "\udcff"
    sources, output, vocab = [tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / name, "vocab.txt"
    for source, some in zip(sources, (lines[:9000], lines[9000:]), strict=True):
        source.write_bytes("\n".join(some).encode(errors="surrogateescape"))
    tokenizer.save(tmp_path / vocab)
    kills = 0
    for _ in range(40):
        delay = rng.uniform(0.01, 0.12) if kills < 4 else 60
        command = [sys.executable, "-c", CHILD, *sources, output, tmp_path / vocab, str(delay)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        # JSON lines have no room for the job: what was whole when the kill came is not touched.
        is_whole = name == "o.jsonl" and "does not tell that it was made of" in done.stderr
        if done.returncode == 0 or is_whole:
            break
        assert done.returncode == -signal.SIGALRM, done.stderr
        kills += 1
    assert kills >= 2
    whole = tmp_path / f"whole-{name}"
    wanted = Output(stride=1, max_length=9)
    encode_files(sources, whole, tokenizer, Reading(on_error="skip"), wanted)
    read = pl.read_parquet if name.endswith("parquet") else pl.read_ndjson
    assert read(output).equals(read(whole))
    assert not (tmp_path / f"{name}.parts").exists()


def stopped(tokenizer, path: Path, output: Path, after: int, **options) -> None:
    """Encodes until so many documents are through, and stops there as Ctrl-C does."""

    def progress(report) -> None:
        if report.documents >= after:
            raise KeyboardInterrupt

    reading = Reading(batch_bytes=100)
    with pytest.raises(KeyboardInterrupt):
        encode_files(
            [path], output, tokenizer, reading, part_bytes=200, progress=progress, **options
        )


def test_a_stop_keeps_finished_parts_and_a_resumption_reads_no_document_twice(tokenizer, tmp_path):
    texts = [f"hello {LETTERS[number % 26]}" for number in range(500)]
    path, output = tmp_path / "d.txt", tmp_path / "o.parquet"
    path.write_text("\n".join(texts))
    stopped(tokenizer, path, output, 300)
    assert len(list((tmp_path / "o.parquet.parts").glob("part-*"))) > 5
    seen = []
    report = encode_files(
        [path],
        output,
        tokenizer,
        Reading(batch_bytes=100),
        resume=True,
        progress=lambda report: seen.append(report.documents),
    )
    assert 200 < report.resumed <= 300 and min(seen) > report.resumed
    assert report.documents == 500
    assert encoded(output) == expected(tokenizer, texts)


def test_a_resumption_is_held_to_the_tokenizer_the_options_and_the_inputs(tokenizer, tmp_path):
    path, output = tmp_path / "d.txt", tmp_path / "o.parquet"
    path.write_text("hello\n" * 500)
    stopped(tokenizer, path, output, 300)
    reading = Reading(batch_bytes=100)
    with pytest.raises(Error, match="holds an encoding that is not finished") as problem:
        encode_files([path], output, tokenizer, reading)
    assert problem.value.hint is not None and "--resume" in problem.value.hint
    other = tokenizer.add_tokens(["new"])
    with pytest.raises(Error, match="begun with another tokenizer"):
        encode_files([path], output, other, reading, resume=True)
    with pytest.raises(Error, match="begun otherwise: options was"):
        encode_files([path], output, tokenizer, reading, Output(offsets=True), resume=True)
    path.write_text("hello\n" * 501)
    with pytest.raises(Error, match="the input files are others, or have changed since"):
        encode_files([path], output, tokenizer, reading, resume=True)


def test_a_full_disk_keeps_finished_parts(tokenizer, tmp_path, monkeypatch):
    path, output = tmp_path / "d.txt", tmp_path / "o.parquet"
    path.write_text("hello\n" * 500)
    write, calls = token_files._write, []

    def full(table, part, kind, metadata):
        calls.append(part)
        part.write_bytes(b"torn")
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        write(table, part, kind, metadata)

    monkeypatch.setattr(token_files, "_write", full)
    with pytest.raises(OSError, match="No space left") as problem:
        encode_files([path], output, tokenizer, Reading(batch_bytes=100), part_bytes=200)
    assert "part-00003" in problem.value.filename
    monkeypatch.setattr(token_files, "_write", write)
    report = encode_files([path], output, tokenizer, Reading(batch_bytes=100), resume=True)
    assert report.resumed > 0 and encoded(output) == expected(tokenizer, ["hello"] * 500)


@pytest.mark.parametrize("name", ["o.parquet", "o.jsonl", "bin"])
@pytest.mark.parametrize("mark_is_written", [False, True])
def test_a_kill_between_publishing_and_tidying_up_is_made_good_by_the_next(
    tokenizer, tmp_path, monkeypatch, name, mark_is_written
):
    path, output = tmp_path / "d.txt", tmp_path / name
    path.write_text("hello\n" * 50)
    options = {"format": "bin" if name == "bin" else None, "part_bytes": 100}

    def killed(file, value):
        if "published" not in value or mark_is_written:
            io.write_json(file, value)
        if "published" in value:
            raise KeyboardInterrupt

    monkeypatch.setattr(token_files, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        encode_files([path], output, tokenizer, Reading(batch_bytes=50), **options)
    monkeypatch.undo()
    assert output.exists() and output.with_name(f"{name}.parts").exists()
    report = encode_files(
        [path], output, tokenizer, Reading(batch_bytes=50), resume=True, **options
    )
    assert report.documents == 50
    assert encoded(output) == expected(tokenizer, ["hello"] * 50)
    assert not output.with_name(f"{name}.parts").exists()


def test_an_output_that_is_there_is_not_written_over(tokenizer, tmp_path):
    path, output = write_inputs(tmp_path, TEXTS)["txt"], tmp_path / "o.parquet"
    encode_files([path], output, tokenizer)
    with pytest.raises(Error, match=r"o.parquet exists$"):
        encode_files([path], output, tokenizer)
    assert encode_files([path], output, tokenizer, resume=True).was_whole
    with pytest.raises(Error, match="does not tell that it was made of this"):
        encode_files([path], output, tokenizer, wanted=Output(offsets=True), resume=True)


def test_a_folder_of_parts_is_told_whole_or_gone_on_with(tokenizer, tmp_path):
    path, output = tmp_path / "d.txt", tmp_path / "folder"
    path.write_text("hello\n" * 500)
    output.mkdir()
    stopped(tokenizer, path, output, 300)
    reading = Reading(batch_bytes=100)
    report = encode_files([path], output, tokenizer, reading, resume=True)
    assert report.resumed > 200 and not report.was_whole
    assert encoded(output) == expected(tokenizer, ["hello"] * 500)
    assert encode_files([path], output, tokenizer, reading, resume=True).was_whole
    with pytest.raises(Error, match="folder holds an encoding"):
        encode_files([path], output, tokenizer, reading)


def test_parquet_tells_which_tokenizer_made_it(tokenizer, tmp_path):
    path = write_inputs(tmp_path, TEXTS)["txt"]
    for part_bytes in (1, 1 << 20):
        output = tmp_path / f"{part_bytes}.parquet"
        encode_files([path], output, tokenizer, Reading(batch_bytes=5), part_bytes=part_bytes)
        metadata = pl.read_parquet_metadata(output)
        assert metadata["fast_wordpiece.fingerprint"] == tokenizer.fingerprint
        token_files.check_fingerprint(output, tokenizer.fingerprint)
        with pytest.raises(Error, match="was encoded by another tokenizer"):
            token_files.check_fingerprint(output, "0" * 64)


def test_two_processes_do_not_write_one_output(tokenizer, tmp_path):
    path, output = write_inputs(tmp_path, TEXTS)["txt"], tmp_path / "o.parquet"

    def again(report) -> None:
        with pytest.raises(Error, match=r"o.parquet is in use by pid \d+"):
            encode_files([path], output, tokenizer, resume=True)

    encode_files([path], output, tokenizer, progress=again)
    assert encoded(output) == expected(tokenizer, TEXTS)
