"""The reproduction's frame: what it writes, what it says, and that it can see a difference."""

import importlib.util
import json
import os

import polars as pl
import pytest
import typer

from chapbook.core.errors import Error
from chapbook.fast_wordpiece import data
from chapbook.fast_wordpiece.huggingface import huggingface

pytest.importorskip("tokenizers")
pytest.importorskip("matplotlib")

from chapbook.fast_wordpiece import reproduce

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = ("a", "b", "ab", "caf", "東", "##a", "##b", "##e", "##é", "##ab", "##aab", ",")
TEXTS = ["ab, aab Ab", "Café 東京 caf\u00e9 x", "aaabab", "b" * 120, ""]


@pytest.fixture
def texts(monkeypatch):
    """A few texts and pieces in place of the published ones."""
    vocabulary = {piece: place for place, piece in enumerate(SPECIAL + PIECES)}
    monkeypatch.setattr(data, "english_vocabulary", lambda: vocabulary)
    monkeypatch.setattr(data, "multilingual_vocabulary", lambda: vocabulary)
    monkeypatch.setattr(data, "udhr_paragraphs", lambda: [("xx", text) for text in TEXTS])
    monkeypatch.setattr(data, "django_sentences", lambda: ["ab", "été"])
    monkeypatch.setattr(data, "wikipedia_languages_sample", lambda count: TEXTS[:count])
    monkeypatch.setattr(reproduce, "LENGTHS", (10, 100, 200))


def claims(run) -> dict[str, dict]:
    found = json.loads((run / "results.json").read_text())["claims"]
    return {row["claim"]: row for row in found}


def reproduced(run, *parts: str) -> dict[str, dict]:
    try:
        reproduce.reproduce(run, full=True, parts=parts, quiet=True)
    except typer.Exit as ended:  # some words are too few for speed to be held
        assert ended.exit_code == 3
    return claims(run)


def test_the_parts_leave_tables_pictures_and_claims(tmp_path, texts):
    found = reproduced(tmp_path / "run", "sentences", "words", "growth")
    assert found["1,000 paragraphs: with other ids than HuggingFace"]["ours"] == 0
    # The distinct words after BERT's pre-tokeniser; every way cuts them alike.
    assert found["11 words: older ways with other pieces"]["ours"] == 0
    assert {key for key in found if "exponent" in key} == {
        f"{kind}: exponent of {algorithm}"
        for kind in ("a repeated", "pieces at random")
        for algorithm in reproduce.ALGORITHMS.values()
    }
    for name in ("speed", "growth"):
        assert (tmp_path / f"run/plots/{name}.png").stat().st_size > 10_000
    table = pl.read_parquet(tmp_path / "run/sentences.parquet")
    assert {reproduce.HF, reproduce.COLD, reproduce.WARM} <= set(table["system"])
    assert (table["cpu_us_best"] <= table["cpu_us_median"]).all()
    assert (tmp_path / "run/table.md").read_text().count("\n") == 2 + len(table)


def test_equality_holds_for_texts_and_their_words(tmp_path, texts):
    found = reproduced(tmp_path / "run", "equality")
    assert len(found) == 4
    # Five texts, two sentences, and the words that are no text by themselves.
    assert all("texts of 14" in claim and row["held"] for claim, row in found.items()), found


def test_a_difference_is_counted_and_exits_with_three(tmp_path, texts, monkeypatch):
    honest = huggingface

    def other(settings):
        made = honest(settings)
        made.normalizer = None
        return made

    monkeypatch.setattr(reproduce, "huggingface", other)
    with pytest.raises(typer.Exit) as ended:
        reproduce.reproduce(tmp_path / "run", full=True, parts=("equality",), quiet=True)
    assert ended.value.exit_code == 3
    differing = [row["ours"] for row in claims(tmp_path / "run").values()]
    assert 0 < min(differing) <= max(differing) < 14


def test_an_unknown_part_is_named(tmp_path):
    with pytest.raises(Error, match="part speed is none of sentences, words"):
        reproduce.reproduce(tmp_path / "run", parts=("speed",))
    assert not (tmp_path / "run").exists()


def test_without_huggingface_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Error, match="tokenizers, which is not installed") as raised:
        reproduce.reproduce(tmp_path / "run")
    assert raised.value.hint == 'pip install "chapbook-fast-wordpiece[reproduce]"'
    assert not (tmp_path / "run").exists()


def test_the_number_of_threads_is_put_back(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    with reproduce._one_thread():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    with reproduce._one_thread():
        pass
    assert "TOKENIZERS_PARALLELISM" not in os.environ
