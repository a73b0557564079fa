import json
import logging

import numpy as np
import polars as pl
import pytest

from chapbook.core.data import Batches, arrays
from chapbook.core.errors import Error
from chapbook.glam.mixture import BLOCK, MixtureSampler, read_mixture
from chapbook.glam.packing import write_shards
from chapbook.glam.tokenizer import ByteTokenizer, train_tokenizer


def source(kind: int, rows: int):
    return arrays(kind=np.full(rows, kind), row=np.arange(rows))


def mixture(rows: int = 5000, seed: int = 0, **weights: float) -> MixtureSampler:
    weights = weights or {"a": 0.5, "b": 0.3, "c": 0.2}
    sources = {name: (source(i, 100 * (i + 1)), w) for i, (name, w) in enumerate(weights.items())}
    return MixtureSampler(sources, rows=rows, seed=seed)


def walk(sampler: MixtureSampler, batch: int = 8) -> Batches:
    return Batches(sampler, batch, shuffle=False, epochs=1)


def drawn(sampler: MixtureSampler) -> dict[str, np.ndarray]:
    return sampler[np.arange(len(sampler))]


@pytest.mark.parametrize("rows", [1, 7, BLOCK, 5000])
def test_shares_are_held_to_within_a_row_for_each_block(rows):
    for seed in range(3):
        sampler = mixture(rows, seed)
        counts = np.bincount(drawn(sampler)["kind"], minlength=3)
        whole, rest = divmod(rows, BLOCK)
        # A part of a shuffled block is a sample without replacement.
        spread = 2 * (whole + 1) + 4 * np.sqrt(rest * 0.25)
        assert np.abs(counts - rows * np.array([0.5, 0.3, 0.2])).max() <= spread
        assert sampler.epochs() == {n: counts[i] / (100 * (i + 1)) for i, n in enumerate("abc")}


def test_a_rare_source_comes_as_often_as_its_weight_says():
    rare = 0.0003  # a third of a row in a block
    counts = [
        (drawn(mixture(10 * BLOCK, seed, web=1 - rare, rare=rare))["kind"] == 1).sum()
        for seed in range(100)
    ]
    mean = 10 * BLOCK * rare
    assert abs(np.mean(counts) - mean) < 4 * np.sqrt(mean / 100)


def test_the_order_within_a_block_is_mixed():
    kinds = drawn(mixture(BLOCK, a=0.5, b=0.5))["kind"]
    changes = (kinds[1:] != kinds[:-1]).sum()
    assert abs(changes - BLOCK / 2) < 5 * np.sqrt(BLOCK) / 2


def test_each_pass_over_a_source_has_every_row_once_in_another_order():
    found = drawn(mixture(1000, a=1.0, b=1.0))
    rows = found["row"][found["kind"] == 0]
    first, second = rows[:100], rows[100:200]
    assert sorted(first) == sorted(second) == list(range(100))
    assert not np.array_equal(first, second)


def test_the_same_seed_gives_the_same_rows_whatever_the_length_and_the_batches():
    rows = drawn(mixture(5000, 4))
    again = mixture(3000, 4)
    shuffled = np.random.default_rng(0).permutation(3000)
    for name, values in again[shuffled].items():
        assert np.array_equal(values, rows[name][:3000][shuffled])
    for size in (8, 10):
        batches = [batch["row"] for batch in walk(again, size)]
        assert np.array_equal(np.concatenate(batches), rows["row"][:3000])
    assert not np.array_equal(drawn(mixture(5000, 5))["kind"], rows["kind"])


def test_a_walk_stops_and_goes_on_anywhere():
    whole = [batch["row"] for batch in walk(mixture())]
    for stop in (0, 3, 200):
        first = walk(mixture())
        for _ in range(stop):
            next(first)
        again = walk(mixture())
        again.set_state(json.loads(json.dumps(first.get_state())))
        assert np.array_equal(
            np.concatenate([b["row"] for b in again]), np.concatenate(whole[stop:])
        )


def test_processes_share_a_batch_between_them():
    whole, parts = walk(mixture()), [walk(mixture()) for _ in range(2)]
    for _ in range(5):
        halves = [part.take(np.arange(4) + 4 * i)["row"] for i, part in enumerate(parts)]
        assert np.array_equal(np.concatenate(halves), next(whole)["row"])


def test_repeated_sources_are_counted_and_warned_about(caplog):
    with caplog.at_level(logging.WARNING):
        sampler = mixture(1000, a=1.0, b=1.0, c=0.0)
    assert caplog.messages == ["the mixture sees a 5.0 times, b 2.5 times"]
    assert list(sampler.shares) == ["a", "b"]
    assert sampler.epochs(0) == {"a": 0, "b": 0}
    kinds = drawn(sampler)["kind"][:300]
    assert sampler.epochs(300) == {"a": (kinds == 0).sum() / 100, "b": (kinds == 1).sum() / 200}
    caplog.clear()
    mixture(50)
    assert not caplog.messages


def test_weights_that_are_no_mixture_are_refused():
    one = source(0, 10)
    for sources, told in [
        ({}, "at least one source"),
        ({"a": (one, 0.0), "b": (one, 0.0)}, "the weights of a, b sum to 0"),
        ({"a": (one, -1.0)}, "the weight of a is -1.0"),
        ({"a": (one, float("nan"))}, "the weight of a is nan"),
        (
            {"a": (one, 1.0), "b": (arrays(kind=np.zeros(3)), 1.0)},
            "differ in their rows: a has kind",
        ),
    ]:
        with pytest.raises(Error, match=told):
            MixtureSampler(sources, rows=10)
    with pytest.raises(Error, match="does not count its documents"):
        MixtureSampler({"a": (one, 1.0)}, rows=10, by="documents")
    with pytest.raises(Error, match="rows=0"):
        MixtureSampler({"a": (one, 1.0)}, rows=0)


# --- mixtures in files


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for name, words in (("short", 3), ("long", 12)):
        texts = [f"{name[0] * 4} " * words] * 300
        table = pl.DataFrame({"id": [str(i) for i in range(300)], "text": texts})
        write_shards([table], ByteTokenizer(), folder / name)
    return folder


def written(folder, text: str):
    path = folder / "mixture.yaml"
    path.write_text(text)
    return path


TWO = "sources:\n  s: {path: short, weight: 3}\n  l: {path: long, weight: 1}\n"


def test_a_file_mixes_folders_by_tokens_or_by_documents(shards):
    by_tokens = read_mixture(written(shards, TWO), 32, rows=200)
    assert by_tokens.shares == {"s": 0.75, "l": 0.25}
    assert by_tokens[np.arange(4)]["tokens"].shape == (4, 33)
    by_documents = read_mixture(written(shards, f"by: documents\n{TWO}"), 32, rows=200)
    lengths = {"s": 3 * 5 + 1, "l": 12 * 5 + 1}
    total = 3 * lengths["s"] + lengths["l"]
    assert by_documents.shares["s"] == pytest.approx(3 * lengths["s"] / total)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sources: [", "is no YAML"),
        ("[1]", "it needs sources, such as web"),
        (TWO + "seed: 1\n", "seed is unknown; it has by and sources"),
        ("by: pages\n" + TWO, "by is pages; it is tokens or documents"),
        (TWO.replace("short", "none"), "source s has a weight, but its folder .*none is missing"),
        (TWO.replace(", weight: 3", ""), "source s needs a path and a weight"),
        (TWO.replace("3", "much"), "the weight of s is much, which is no number"),
        (TWO.replace("3", "0").replace("1", "0"), "the weights of s, l sum to 0"),
        (TWO.replace("short", "."), "holds no shards"),
    ],
)
def test_a_file_that_is_no_mixture_is_told_in_one_line(shards, text, told):
    with pytest.raises(Error, match=told) as raised:
        read_mixture(written(shards, text), 32, rows=10)
    assert "\n" not in raised.value.message


def test_sources_of_different_tokenizers_do_not_mix(shards, tmp_path):
    texts = ["the other mother of another brother"] * 50
    table = pl.DataFrame({"id": [str(i) for i in range(50)], "text": texts})
    write_shards([table], train_tokenizer([table], 265), tmp_path / "other")
    text = TWO.replace("short", str(tmp_path / "other")).replace("long", str(shards / "long"))
    with pytest.raises(Error, match=r"differ in their tokenizer: s has .*, l has bytes"):
        read_mixture(written(tmp_path, text), 32, rows=10)
