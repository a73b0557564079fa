import json
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from chapbook.glam.cli import main
from chapbook.glam.packing import PackedDataset


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code if isinstance(end.value.code, int) else 1


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def texts(words: str, count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(words.split(), k=30)) for _ in range(count)]


@pytest.fixture
def corpus():
    """A good book and a raw web, in which every second page is like the book."""
    good, bad = "a calm river ran through green hills", "click buy now free offer login a"
    Path("book.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in texts(good, 300, 0))
    )
    raw = [t for pair in zip(texts(good, 300, 1), texts(bad, 300, 2), strict=True) for t in pair]
    pl.DataFrame({"id": [f"w{i}" for i in range(600)], "body": raw, "n": range(600)}).write_parquet(
        "web.parquet"
    )
    pl.DataFrame({"text": texts(bad, 300, 3)}).write_csv("spam.csv")


def printed(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def told(capsys, *arguments: object) -> str:
    assert run(*arguments) == 2
    found = capsys.readouterr()
    assert not found.out
    assert "Traceback" not in found.err
    return found.err


def test_raw_text_becomes_filtered_shards(corpus, capsys):
    assert (
        run("filter", "fit", "--good", "book.jsonl", "--bad", "spam.csv", "--bits", 16, "--json")
        == 0
    )
    fitted = printed(capsys)
    assert (fitted["good"], fitted["bad"]) == (300, 300)
    assert fitted["area_under_curve"] > 0.95

    classifier = ["--classifier", fitted["classifier"]]
    score = ["filter", "score", "web.parquet", *classifier, "--text-column", "body"]
    assert run(*score, "--output", "scored.parquet") == 0
    scored = pl.read_parquet("scored.parquet")
    assert scored.columns == ["id", "text", "n", "score"]
    halves = scored.group_by(pl.col("n") % 2).agg(pl.col("score").mean()).sort("n")["score"]
    assert halves[0] > 0.9 > 0.1 > halves[1]

    capsys.readouterr()
    assert run("filter", "sample", "scored.parquet", "--output", "kept.jsonl.zst", "--json") == 0
    sampled = printed(capsys)
    assert sampled["documents"] == 600
    assert 200 < sampled["kept"] < 320

    assert run("tokenizer", "kept.jsonl.zst", "--vocab-size", 270, "--json") == 0
    assert printed(capsys)["tokens"] == 270
    prepare = ["prepare", "kept.jsonl.zst", "--tokenizer", "tokenizer.json", "--held-out", 0.2]
    assert run(*prepare, "--output", "shards", "--json") == 0
    packed = printed(capsys)
    assert packed["train_documents"] + packed["held_out_documents"] == sampled["kept"]
    assert PackedDataset("shards", 16, "held_out").documents().collect().height > 10
    assert "holds whole shards already" in told(capsys, *prepare, "--output", "shards")


def test_figures_are_lines_without_json(capsys):
    Path("a.txt").write_text("some text")
    assert run("prepare", "a.txt", "--tokenizer", "bytes", "--output", "s") == 0
    assert "train tokens 10\n" in capsys.readouterr().out


def test_repeats_and_overlap_with_an_evaluation_are_left_out(capsys):
    question = "which of the rivers that cross the green hills is the longest one"
    texts = ["plain text", f"leaked: {question.upper()}?", "plain text", "other text"]
    pl.DataFrame({"text": texts}).write_parquet("web.parquet")
    Path("questions.jsonl").write_text(json.dumps({"text": question}))
    prepare = ["prepare", "web.parquet", "--tokenizer", "bytes", "--json"]
    for options, kept in [
        ([], 4),
        (["--drop-duplicates"], 3),
        (["--drop-duplicates", "--exclude", "questions.jsonl"], 2),
    ]:
        assert run(*prepare, *options, "--output", f"s{kept}") == 0
        assert printed(capsys)["train_documents"] == kept


def test_of_pages_that_are_nearly_the_same_the_first_stays(capsys):
    page = " ".join(texts("a calm river ran through green hills", 3, 0))
    rows = {"id": ["a", "b", "c"], "text": [page, f"{page} Printed.", "another page"]}
    pl.DataFrame(rows).write_parquet("web.parquet")
    to = ("--output", "kept.parquet", "--json")
    assert run("filter", "near-duplicates", "web.parquet", *to) == 0
    found = printed(capsys)
    assert (found["documents"], found["kept"]) == (3, 2)
    assert pl.read_parquet("kept.parquet")["id"].to_list() == ["a", "c"]


def test_what_the_user_can_mend_is_one_line_and_exit_2(corpus, capsys):
    Path("bad.txt").write_bytes(b"abc\xff")
    Path("empty").mkdir()
    to = ["--vocab-size", 300]
    for arguments, line in [
        (["tokenizer", "bad.txt", *to], "error: bad.txt: byte 3 is not UTF-8\n"),
        (["tokenizer", "empty", *to], "error: empty: no documents there"),
        (["tokenizer", "web.parquet", *to], 'no column "text"; it has id, body, n'),
        (["tokenizer", "spam.csv", "--vocab-size", 90000], "vocab_size=90000 is larger"),
        (["tokenizer", "spam.csv", *to, "--errors", "hide"], "--errors hide is unknown"),
        (["prepare", "spam.csv", "--tokenizer", "no.json", "--output", "s"], "no such tokenizer"),
        (["filter", "sample", "web.parquet", "--output", "o.csv"], 'no column "score"'),
        (["filter", "score", "spam.csv", "--classifier", "q", "--output", "o.csv"], "error: "),
    ]:
        assert line in told(capsys, *arguments)
    assert run("tokenizer", "bad.txt", "--errors", "replace", *to) == 2  # too little text
    assert "is larger than the documents allow" in capsys.readouterr().err


def test_a_column_of_scores_is_not_overwritten(corpus, capsys):
    fit = [
        "filter",
        "fit",
        "--good",
        "book.jsonl",
        "--bad",
        "spam.csv",
        "--bits",
        10,
        "--validation",
        0,
    ]
    assert run(*fit) == 0
    assert "area under curve None" in capsys.readouterr().out
    score = ["filter", "score", "web.parquet", "--text-column", "body", "--output", "o.parquet"]
    line = told(capsys, *score, "--classifier", "quality.safetensors", "--score-column", "n")
    assert "have a column n already" in line
    assert not Path("o.parquet").exists()


LINE = "desk/4E,context=32,layers=2,width=16,hidden=24,heads=2,head=8"


def test_text_becomes_a_model_that_writes_scores_and_answers(capsys):
    book = "the cat sat on the mat. the dog lay on the rug. " * 12
    pl.DataFrame({"text": [book] * 20}).write_parquet("book.parquet")
    prepare = ("prepare", "book.parquet", "--tokenizer", "bytes", "--held-out", 0.2)
    assert run(*prepare, "--output", "shards") == 0
    train = ("train", "--data", "shards", "--config", LINE, "--tokens", 10_240, "--batch", 8,
             "--lr", 0.05, "--out", "run", "--quiet", "--json")  # fmt: skip
    capsys.readouterr()
    assert run(*train, "--ladder", 1) == 0
    rung, found = map(json.loads, capsys.readouterr().out.splitlines())
    assert (rung["model"], rung["steps"]) == ("run-8/model", 40)
    assert json.loads(Path("run-8/model/config.json").read_text())["glam"]["hidden"] == 12
    assert found["steps"] == 40 and found["valid/bits_per_byte"] < 4
    # The same command has nothing left to do, and says the same.
    assert run(*train) == 0
    assert printed(capsys)["valid/bits_per_byte"] == found["valid/bits_per_byte"]

    assert run("convert", "run", "half", "--precision", "bfloat16", "--json") == 0
    assert printed(capsys)["bytes"] < 0.6 * Path("run/model/weights.safetensors").stat().st_size
    assert run("convert", "run", "last", "--step", 40, "--tokenizer", "bytes") == 0
    same = [Path(each, "weights.safetensors").read_bytes() for each in ("run/model", "last")]
    assert same[0] == same[1]
    capsys.readouterr()
    both = []
    for each in ("last", "half"):
        assert run("score", each, "book.parquet", "--quiet", "--json") == 0
        both.append(printed(capsys)["bits_per_byte"])
    assert both[0] == pytest.approx(both[1], rel=0.02) and both[0] != both[1]
    assert "no step 7; it has" in told(capsys, "convert", "run", "other", "--step", 7)
    assert "name another folder" in told(capsys, "convert", "run", "run/model")
    assert "no folder of a training" in told(capsys, "convert", "shards", "other")
    assert not Path("other").exists()

    assert run("generate", "run", "the c", "--max-new-tokens", 4, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["prompt"] == "the c" and 0 < len(row["text"]) <= 4
    assert run("score", "run", "book.parquet", "--quiet", "--json") == 0
    scored = printed(capsys)
    table = pl.read_parquet("scores.parquet")
    assert scored["documents"] == table.height == 20
    assert 0 < scored["bits_per_byte"] < 4
    pl.DataFrame({"q": ["the cat sat on"], "a": ["the mat"]}).write_parquet("q.parquet")
    Path("task.yaml").write_text(
        "name: mats\nsource: q.parquet\nprompt: '{{q}}'\nchoices: [the mat, qzxqzxq]\n"
        "gold: a\nmetric: accuracy\n"
    )
    assert run("evaluate", "run", "--task", "task.yaml", "--shots", "0", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["task"], row["metric"], row["value"], row["n"]) == ("mats", "accuracy", 100, 1)
    routes = ("routes", "run", "book.parquet", "--limit", 2, "--plot", "experts.png", "--quiet")
    assert run(*routes, "--json") == 0
    experts = json.loads(capsys.readouterr().out)
    assert sum(each["load"] for each in experts) == pytest.approx(1)
    assert Path("experts.png").stat().st_size > 1000
    assert pl.read_parquet("routes.parquet").height == 2 * 31 * 2


def test_a_vocabulary_that_is_not_the_tokenizers_is_refused_with_both_sizes(capsys):
    pl.DataFrame({"text": ["some words " * 20]}).write_parquet("book.parquet")
    assert run("prepare", "book.parquet", "--tokenizer", "bytes", "--output", "shards") == 0
    capsys.readouterr()
    wrong = told(capsys, "train", "--data", "shards", "--config", f"{LINE},vocab=100", "--tokens",
                 512, "--out", "run")  # fmt: skip
    assert "100" in wrong and "257" in wrong
    train = ("train", "--data", "shards", "--tokens", 512, "--batch", 4, "--out", "run", "--quiet")
    Path("model.toml").write_text(
        "num_layers = 2\nembed = 8\nhidden = 16\nnum_heads = 1\nhead_dim = 8\nnum_experts = 2\n"
        "context = 32\nactivation = 'relu'\n"
    )
    config = ("--config", "model.toml")
    wrong = told(capsys, *train, *config, "--set", "vocab_size=100")
    assert "100" in wrong and "257" in wrong
    assert "Did you mean hidden?" in told(capsys, *train, *config, "--set", "hiden=3")
    assert run(*train, *config) == 0
    held = json.loads(Path("run/model/config.json").read_text())["glam"]
    assert (held["activation"], held["num_experts"], held["vocab_size"]) == ("relu", 2, 257)


def test_sizes_and_costs_are_printed(capsys):
    assert run("cost", "64B/64E", "--tokens", 6e11, "--chips", 1024, "--json") == 0
    found = printed(capsys)
    assert found["activated"] / 1e9 == pytest.approx(96.6, abs=0.05)
    assert run("sizes", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 22
    assert "is no SIZE" in told(capsys, "cost", "small")


def test_help_starts_without_jax():
    for command in ([], ["filter", "score"]):
        code = (
            "import sys\n"
            "from chapbook.glam.cli import main\n"
            f"try:\n    main([*{command}, '--help'])\n"
            "finally:\n    assert 'jax' not in sys.modules\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Usage: glam" in done.stdout
