import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from chapbook.core.tables import write_table
from chapbook.fast_wordpiece import Tokenizer, cli

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", ",", ".", "'"]
COMMANDS = ["encode", "decode", "count", "train", "explain", "inspect", "compare", "verify"]
COMMANDS += ["convert", "bench", "reproduce"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a tokenizer and a text, which is the current one."""
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.from_vocab([*PIECES, *LETTERS, *(f"##{each}" for each in LETTERS)])
    tokenizer.save("tok.json")
    Path("d.txt").write_text("Hello, world\nab c\n\n中 x\n")
    return tmp_path


@pytest.fixture
def run(capsys):
    """Runs a command line; gives the exit code, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, said.out, said.err

    return call


def test_encode_and_decode_come_back(folder, run):
    assert run("encode", "d.txt", "-t", "tok.json", "-o", "o.parquet", "--quiet")[0] == 0
    tokenizer = Tokenizer.from_file("tok.json")
    texts = ["Hello, world", "ab c", "", "中 x"]
    ids = [tokenizer.encode_ids(text).tolist() for text in texts]
    assert pl.read_parquet("o.parquet")["ids"].to_list() == ids
    code, out, _ = run("decode", "o.parquet", "-t", "tok.json")
    assert (code, out.splitlines()) == (0, ["hello, world", "ab c", "", "x"])
    assert run("decode", "o.parquet", "-t", "tok.json", "-o", "o.jsonl")[0] == 0
    assert json.loads(Path("o.jsonl").read_text().splitlines()[0]) == {"text": "hello, world"}


@pytest.mark.parametrize("output", ["o.jsonl", "o.arrow", "bin", "lines.txt"])
def test_decode_reads_every_kind_of_ids(folder, run, output):
    if output == "lines.txt":
        Path(output).write_text("2 5 6 3\n\n")
    else:
        words = ["--format", "bin"] if output == "bin" else []
        assert run("encode", "d.txt", "-t", "tok.json", "-o", output, *words)[0] == 0
    _, out, _ = run("decode", output, "-t", "tok.json", "--with-special-tokens")
    assert out.splitlines()[0].startswith("[CLS] hello")


def test_decode_refuses_what_another_tokenizer_has_encoded(folder, run):
    Tokenizer.from_file("tok.json").add_tokens(["new"]).save("other.json")
    run("encode", "d.txt", "-t", "tok.json", "-o", "o.parquet")
    code, _, err = run("decode", "o.parquet", "-t", "other.json")
    assert code == 2 and "was encoded by another tokenizer" in err
    assert run("decode", "o.parquet", "-t", "other.json", "--unchecked")[0] == 0


def test_stdin_to_stdout(folder):
    command = [sys.executable, "-m", "chapbook.fast_wordpiece.cli", "encode", "-", "-t"]
    command += ["tok.json", "-o", "-", "--on-error", "null"]
    done = subprocess.run(command, input=b"a\n\xff\nb", capture_output=True, timeout=60)
    rows = [json.loads(line)["ids"] for line in done.stdout.splitlines()]
    assert rows == [[2, 10, 3], None, [2, 11, 3]]
    assert done.returncode == 3 and b"rejected: -:2: byte 2 of the file" in done.stderr


def test_json_tells_what_was_done(folder, run):
    _, out, _ = run("encode", "d.txt", "-t", "tok.json", "-o", "o.parquet", "--json")
    told = json.loads(out)
    assert told["documents"] == told["rows"] == 4 and told["rejected"] == 0
    assert told["fingerprint"] == Tokenizer.from_file("tok.json").fingerprint
    code, out, _ = run("encode", "d.txt", "-t", "tok.json", "-o", "o.parquet", "--resume")
    assert (code, out) == (0, "o.parquet was whole already\n")


def test_rejected_documents_exit_with_3_and_are_told(folder, run):
    Path("d.jsonl").write_text('{"text": "a"}\n{"text": 1}\n{"text": "b"}\n')
    command = ["encode", "d.jsonl", "-t", "tok.json", "-o", "o.parquet"]
    code, _, err = run(*command, "--on-error", "skip")
    assert code == 3 and "rejected: d.jsonl:2: text is 1, not a string" in err
    assert pl.read_parquet("o.parquet")["document"].to_list() == [0, 2]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["encode", "none.txt", "-t", "tok.json", "-o", "o.parquet"], "none.txt: No such file"),
        (["encode", "d.txt", "-t", "none.json", "-o", "o.parquet"], "none.json: No such file"),
        (["encode", "d.txt", "-t", "tok.json", "-o", "o.xyz"], ".xyz is no kind of output"),
        (["encode", "d.txt", "-t", "tok.json", "-o", "o.parquet", "--keep", "n"], "no columns"),
        (["encode", "d.txt", "-t", "tok.json", "-o", "o.parquet", "--dtype", "int8"], "int8"),
        (["encode", "d.txt", "-t", "tok.json", "-o", "o.parquet", "--shard", "8/8"], "0/8 to 7/8"),
        (
            ["encode", "d.txt", "-t", "tok.json", "-o", "o.parquet", "--max-length", "1"],
            "than the 2",
        ),
        (["encode", "d.txt", "-t", "tok.json", "-o", "o.parquet", "--batch-bytes", "x"], "no size"),
        (["encode", "d.txt", "-t", "tok.json", "-o", "-", "--format", "bin"], "stdout"),
        (
            ["encode", "-", "-t", "tok.json", "-o", "o.parquet", "--resume"],
            "cannot read stdin again",
        ),
        (["encode", "d.txt", "-o", "o.parquet"], "--tokenizer"),
        (["decode", "d.txt", "-t", "tok.json"], "d.txt:1: these are no ids"),
        (["train", "d.txt", "-o", "vocab.csv"], "vocab.csv must end in"),
        (["train", "d.txt", "-o", "vocab.txt", "--vocab-size", "3"], "raise it to"),
        (["inspect", "."], "holds neither tokenizer.json nor vocab.txt"),
        (["convert", "tok.json", "tok.bin"], "ends in neither"),
        (["verify", "d.txt", "-t", "tok.json", "--against", "other"], "--against other is unknown"),
        (["explain", "a", "-t", "d.parquet"], "d.parquet: No such file"),
    ],
)
def test_what_the_user_can_mend_is_one_clear_line(folder, run, words, what):
    code, out, err = run(*words)
    assert code == 2 and out == "" and what in err
    lines = err.splitlines()
    assert lines[0].startswith("error: ") and len(lines) <= 2 and "Traceback" not in err
    assert not list(folder.glob("crash-*"))


def test_count_sums_up_and_prices(folder, run):
    code, out, _ = run("count", "d.txt", "-t", "tok.json", "--budget", "1000000", "--json")
    told = json.loads(out)
    lengths = [len(row) for row in _ids(["Hello, world", "ab c", "", "中 x"])]
    assert code == 0 and told["tokens"] == told["cost"] == sum(lengths)
    assert told["longest"] == max(lengths) and told["p50"] == sorted(lengths)[1]
    _, out, _ = run("count", "d.txt", "-t", "tok.json", "--max-length", "4", "-o", "o.jsonl")
    assert "cut off: 2" in out
    rows = [json.loads(line)["tokens"] for line in Path("o.jsonl").read_text().splitlines()]
    assert rows == [min(length, 4) for length in lengths]


def _ids(texts: list[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_file("tok.json")
    return [tokenizer.encode_ids(text).tolist() for text in texts]


def test_own_limits_hold_and_are_told_of(folder, run):
    Tokenizer.from_file("tok.json").with_truncation(3).with_padding(3).save("short.json")
    _, _, err = run("encode", "d.txt", "-t", "short.json", "-o", "a.parquet")
    assert "cuts rows at 3 tokens; --ignore-limits leaves that out" in err
    assert pl.read_parquet("a.parquet")["ids"].list.len().to_list() == [3, 3, 3, 3]
    run("encode", "d.txt", "-t", "short.json", "-o", "b.parquet", "--ignore-limits")
    assert pl.read_parquet("b.parquet")["ids"].to_list() == _ids(
        ["Hello, world", "ab c", "", "中 x"]
    )


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_train_writes_a_tokenizer_of_the_vocabulary_that_the_library_gives(folder, run, kind):
    from chapbook.fast_wordpiece import train_vocab

    texts = ["low lower lowest", "new newer newest wide wider"] * 5
    write_table(pl.DataFrame({"text": texts}), "c.jsonl")
    Path("c.txt").write_text("\n".join(texts))
    code, out, _ = run("train", f"c.{kind}", "-o", "new.json", "--vocab-size", "50", "--json")
    vocab = train_vocab(texts, 50)
    assert code == 0 and json.loads(out) == {"output": "new.json", "pieces": len(vocab)}
    assert Tokenizer.from_file("new.json").get_vocab() == vocab


def test_explain_prints_places_reasons_and_pieces(folder, run):
    _, out, _ = run("explain", "Hé\u200bllo z1", "-t", "tok.json", "--json")
    rows = json.loads(out)
    assert rows[0]["pieces"] == ["hello"] and "deleted control" in rows[0]["reason"]
    _, out, _ = run("explain", "a\u200b", "-t", "tok.json")
    assert "<U+200B>" in out and "deleted control" in out


def test_inspect_tells_of_the_vocabulary(folder, run):
    Path("vocab.txt").write_text("[UNK]\na\nB\na\n")
    code, out, err = run("inspect", "vocab.txt", "--unreachable")
    assert code == 0 and "pieces: 3" in out and "B: normalised to b" in out and "a: [2, 4]" in out
    assert err.startswith("warning: vocab.txt: lines 2 are repeated later")
    _, out, _ = run("inspect", "tok.json", "--json")
    assert json.loads(out)["vocabulary"]["pieces"] == len(PIECES) + 52


def test_compare_shows_where_two_tokenizers_differ_first(folder, run):
    vocab = [*Tokenizer.from_file("tok.json").get_vocab(), "ab"]
    Tokenizer.from_vocab(vocab).save("other.json")
    assert run("compare", "tok.json", "tok.json", "d.txt")[0] == 0
    code, out, _ = run("compare", "tok.json", "other.json", "d.txt", "--json")
    told = json.loads(out)
    assert code == 3 and told["differing"] == 1 and told["documents"] == 4
    first = told["differences"][0]
    assert (first["document"], first["start"], first["end"]) == (1, 0, 2)
    assert first["left"] == ["a (0, 1)", "##b (1, 2)"] and first["right"] == ["ab (0, 2)"]
    assert "d.txt, document 1, 0-2: ab c" in run("compare", "tok.json", "other.json", "d.txt")[1]


def test_verify_finds_no_difference_from_hugging_face(folder, run):
    pytest.importorskip("tokenizers")
    Path("e.txt").write_text(
        "Café na\u0308ive 中国\u200b [MASK] x\n한국 don't\n" + "a" * 101 + "\n"
    )
    code, out, _ = run("verify", "d.txt", "e.txt", "-t", "tok.json", "--json")
    told = json.loads(out)
    assert code == 0 and (told["documents"], told["differing"]) == (7, 0)
    assert told["left_tokens"] == told["right_tokens"] > 20


def test_verify_tells_of_a_difference(folder, run, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    from chapbook.fast_wordpiece import compare

    def other(path, tokenizer):
        made = tokenizers.Tokenizer.from_file(str(path))
        made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
        return made

    monkeypatch.setattr(compare, "hugging_face", other)
    code, out, _ = run("verify", "d.txt", "-t", "tok.json")
    assert code == 3 and "1 of 4 documents differ" in out
    assert "document 0, 0-5" in out and "hello (0, 5)" in out and "[UNK] (0, 5)" in out


def test_convert_goes_round_and_keeps_the_fingerprint(folder, run):
    names = ["tok.json", "a.txt", "b.fwp", "c.json"]
    for source, target in itertools.pairwise(names):
        assert run("convert", source, target)[0] == 0
    prints = {Tokenizer.from_file(name).fingerprint for name in names}
    assert len(prints) == 1


def test_bench_measures_every_way(folder, run):
    code, out, _ = run("bench", "d.txt", "-t", "tok.json", "--rounds", "1", "--json")
    rows = json.loads(out)
    assert code == 0 and {row["way"] for row in rows} >= {"ids", "ids and offsets"}
    assert all(row["mb_per_s"] > 0 for row in rows)
    Path("empty.txt").write_text("")
    assert run("bench", "empty.txt", "-t", "tok.json")[0] == 2


def test_reproduce_hands_its_options_on(folder, run, monkeypatch):
    from chapbook.fast_wordpiece import reproduce

    calls = []
    monkeypatch.setattr(reproduce, "reproduce", lambda *a, **o: calls.append((a, o)))
    assert run("reproduce", "--run", "r", "--parts", "words, growth", "--full", "--quiet")[0] == 0
    options = {"full": True, "parts": ["words", "growth"], "fresh": False, "quiet": True}
    assert calls == [((Path("r"),), options)]


def test_help_of_every_command_is_light():
    script = """
import sys
from chapbook.fast_wordpiece.cli import main
for command in sys.argv[1:]:
    try: main([command, "--help"])
    except SystemExit as end: assert end.code == 0
heavy = ("numpy", "polars", "chapbook.fast_wordpiece._core", "tokenizers", "jax")
print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script, *COMMANDS], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    for command in COMMANDS:
        assert re.search(rf"fast-wordpiece {command} \[OPTIONS\]", done.stdout), command


def test_ctrl_c_stops_at_once_and_says_how_to_go_on(folder):
    Path("d.txt").write_text("hello world a b c\n" * 1_000_000)
    words = ["encode", "d.txt", "-t", "tok.json", "-o", "o.parquet", "--part-bytes", "1MB"]
    command = [sys.executable, "-m", "chapbook.fast_wordpiece.cli", *words, "--quiet"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal = folder / "o.parquet.parts" / "journal.jsonl"
    deadline = time.monotonic() + 30
    while not journal.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert child.returncode == 130
    assert "the same command with --resume goes on" in err and "Traceback" not in err
    parts = len(list(journal.parent.glob("part-*")))
    assert 0 < parts < 18 and len(journal.read_text().splitlines()) == parts
    done = subprocess.run([*command, "--resume", "--json"], capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert told["documents"] == 1_000_000 > told["resumed"] > 0
    assert pl.scan_parquet("o.parquet").select(pl.len()).collect().item() == 1_000_000
