"""The paper's claims at desk scale, on public text and through the public API alone.

Notable choices:
- The paper's 1,000 sentences of Wikipedia in 82 languages are here 1,000 paragraphs of the
  Universal Declaration of Human Rights in 91 languages of large Wikipedias; the vocabulary is the
  paper's, multilingual BERT's.
- All systems run in one process on one thread, in turn, round after round; judged is the median of
  the processor time, which a busy machine disturbs least. Wall time stands beside it.
- "Cold" is a new tokenizer's first pass over the text, "warm" a later one. HuggingFace's
  `tokenizers` keeps no words, so that it has no such difference.
- Every system gets the list of Python strings and gives its own kind of result: HuggingFace an
  `Encoding` for each text, nanotoken and this package flat arrays, TensorFlow Text ragged tensors.
- LinMaxMatch and the two older ways of cutting words run in the same compiled core over the same
  pieces, so that the algorithm is told apart from the engineering around it.
"""

import contextlib
import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from chapbook.core import cli
from chapbook.core.errors import Error
from chapbook.core.io import write_atomic
from chapbook.core.run import Run
from chapbook.core.tables import write_table
from chapbook.fast_wordpiece import _core, data
from chapbook.fast_wordpiece.compiled import compile_settings
from chapbook.fast_wordpiece.encoding import EncodingBatch
from chapbook.fast_wordpiece.huggingface import huggingface
from chapbook.fast_wordpiece.settings import Settings
from chapbook.fast_wordpiece.tokenizer import Tokenizer

Claim = tuple[str, Any, float, str, float | None, float | None]

HF, HF_FAST = "HuggingFace encode_batch", "HuggingFace encode_batch_fast"
TF_TEXT = "TensorFlow Text"
COLD, WARM = "fast-wordpiece, cold", "fast-wordpiece, warm"
# The names of the compiled core, and what they are.
ALGORITHMS = {
    "linmaxmatch": "LinMaxMatch",
    "rollback": "trie with rollback",
    "substring": "substring MaxMatch",
}
LENGTHS = (10, 30, 100, 200, 400, 700, 1000, 2000, 4000, 7000, 10_000)
FITTED = 100  # shorter words take as long as the call


class Side(NamedTuple):
    """A system: what comes before the clock starts, what is timed, and the ids in its result."""

    prepare: Callable[[], Any]
    encode: Callable[[Any], Any]
    ids: Callable[[Any], list[list[int]]]


class Figures(NamedTuple):
    """Seconds of each round."""

    wall: list[float]
    cpu: list[float]


def reproduce(
    run_dir: str | Path,
    *,
    full: bool = False,
    parts: Sequence[str] = ("sentences", "words", "growth", "equality"),
    fresh: bool = False,
    quiet: bool = False,
) -> None:
    """Runs the parts, writes tables and pictures, and prints which claims hold.

    Args:
        run_dir: The folder for tables, pictures and `results.json`.
        full: More rounds, and equality over every text instead of every fourth.
        parts: Which parts to run.
        fresh: Empty the folder first, if it holds a run.
        quiet: Show no progress.

    Raises:
        Error: `tokenizers`, which everything is compared with, is not installed.
        typer.Exit: With code 3, when a claim does not hold.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise Error(f"part {unknown[0]} is none of {', '.join(PARTS)}")
    if importlib.util.find_spec("tokenizers") is None:
        raise Error(
            "this compares with HuggingFace's tokenizers, which is not installed",
            'pip install "chapbook-fast-wordpiece[reproduce]"',
        )
    with Run(run_dir, {"full": full, "parts": list(parts)}, fresh=fresh) as run:
        claims: list[Claim] = []
        for part in parts:
            claims += PARTS[part](run, full, quiet)
        cli.claims(claims, run)


def sentences(run: Run, full: bool, quiet: bool) -> list[Claim]:
    """Times 1,000 paragraphs in 91 languages end to end, and compares the ids."""
    settings = Settings.bert(data.multilingual_vocabulary(), lowercase=False)
    sides = _sides(settings, data.wikipedia_languages_sample(1000))
    with _one_thread():
        figures = _interleaved(sides, rounds=21 if full else 9, quiet=quiet)
        ids = {name: side.ids(side.encode(side.prepare())) for name, side in sides.items()}
    rows = []
    for name, (wall, cpu) in figures.items():
        per_text = 1e6 / len(ids[HF])
        row = {
            "system": name,
            "cpu_us_median": float(np.median(cpu)) * per_text,
            "cpu_us_best": min(cpu) * per_text,
            "wall_us_median": float(np.median(wall)) * per_text,
            "wall_us_best": min(wall) * per_text,
            "times_hf": float(np.median(figures[HF].cpu) / np.median(cpu)),
            "texts_with_other_ids": sum(a != b for a, b in zip(ids[name], ids[HF], strict=True)),
        }
        rows.append(row)
    table = pl.DataFrame(rows)
    write_table(table, run.path / "sentences.parquet")
    _write_markdown(table, run.path / "table.md")

    def draw(axes: Any) -> None:
        colors = ["C0" if name in (COLD, WARM) else "C7" for name in table["system"]]
        bars = axes.barh(table["system"], 1e3 / table["cpu_us_median"], color=colors)
        axes.bar_label(bars, [f"{times:.1f}x" for times in table["times_hf"]], padding=4)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set(
            xlabel="thousand paragraphs a second on one core",
            title="Multilingual BERT, 91 languages; beside the bars: times HuggingFace",
        )

    cli.plot(run.plots / "speed.png", draw, table)
    median = dict(zip(table["system"], table["cpu_us_median"], strict=True))
    others = dict(zip(table["system"], table["texts_with_other_ids"], strict=True))
    cold, warm = (median[HF] / median[side] for side in (COLD, WARM))
    claims: list[Claim] = [
        ("1,000 paragraphs: over HuggingFace, cold", 8.2, cold, "x", 8.2, None),
        ("1,000 paragraphs: over HuggingFace, warm", 8.2, warm, "x", 8.2, None),
        ("1,000 paragraphs: with other ids than HuggingFace", 0, others[COLD], "texts", None, 0),
    ]
    for name, paper, times in (
        (TF_TEXT, 5.1, 2.0),
        ("nanotoken, cold", None, None),
        ("nanotoken, warm", None, None),
    ):
        if name in median:
            # TensorFlow Text keeps no words: what is new and what is known cost it the same.
            state = COLD if name.endswith("cold") else WARM
            ratio = median[name] / median[state]
            claims.append((f"1,000 paragraphs: over {name}", paper, ratio, "x", times, None))
    return claims


def words(run: Run, full: bool, quiet: bool) -> list[Claim]:
    """Times every distinct word of the 1,000 paragraphs, cut in three ways by the same core."""
    settings = Settings.bert(data.multilingual_vocabulary(), lowercase=False)
    model, hf = compile_settings(settings, literal_marks=True), huggingface(settings)
    found: dict[str, None] = {}
    for text in data.wikipedia_languages_sample(1000):
        normal = hf.normalizer.normalize_str(text)
        found |= dict.fromkeys(word for word, _ in hf.pre_tokenizer.pre_tokenize_str(normal))
    distinct = list(found)
    times = {name: np.full(len(distinct), np.inf) for name in ALGORITHMS}
    pieces: dict[str, list[int]] = {}
    for _ in cli.progress(range(15 if full else 7), "words", quiet=quiet):
        for name in ALGORITHMS:
            ids, bounds, _, seconds = _core.match_words(model, distinct, name, repeats=20)
            times[name] = np.minimum(times[name], seconds)
            pieces[name] = [*bounds.tolist(), *ids.tolist()]
    differing = sum(pieces[name] != pieces["linmaxmatch"] for name in ALGORITHMS)
    table = pl.DataFrame(
        {"word": distinct, "characters": list(map(len, distinct))}
        | {name: 1e9 * each for name, each in times.items()}
    )
    write_table(table, run.path / "words.parquet")
    fast = times["linmaxmatch"]
    claims: list[Claim] = [
        (f"{len(distinct):,} words: older ways with other pieces", 0, differing, "of 2", None, 0)
    ]
    for name in ("substring", "rollback"):
        slow, label = times[name], ALGORITHMS[name]
        mean, high = slow.mean() / fast.mean(), np.percentile(slow, 95) / np.percentile(fast, 95)
        judged = 1.0 if name == "substring" else None
        claims += [
            (f"words: LinMaxMatch over {label}, mean", 3.0, float(mean), "x", judged, None),
            (f"words: LinMaxMatch over {label}, p95", 4.5, float(high), "x", judged, None),
        ]
    return claims


def growth(run: Run, full: bool, quiet: bool) -> list[Claim]:
    """Fits how the time of one word grows with its length, its limit of length lifted."""
    english = data.english_vocabulary()
    trap = {"[UNK]": 0, "a": 1, "##a": 2, "##" + "a" * 100 + "b": 3}
    # Every letter of ASCII also goes on with a word, so that no word of these is unknown.
    pieces = [piece.removeprefix("##") for piece in english if piece.isascii()]
    pieces = np.array([piece for piece in pieces if piece.isalpha()], object)
    chosen = np.random.default_rng(0).choice(pieces, LENGTHS[-1])
    kinds = {
        "a repeated": (trap, "a" * LENGTHS[-1]),
        "pieces at random": (english, "".join(chosen)),
    }
    rows = []
    for kind, (vocabulary, longest) in kinds.items():
        settings = Settings(vocabulary, max_input_chars_per_word=LENGTHS[-1])
        model = compile_settings(settings, literal_marks=True)
        for name in cli.progress(ALGORITHMS, kind, quiet=quiet):
            for length in LENGTHS:
                # The same text for every length, so that it asks the same of the caches.
                words = [longest[i : i + length] for i in range(0, LENGTHS[-1], length)]
                words = [word for word in words if len(word) == length]
                seconds, steps = _word_time(model, words, name, 15 if full else 5)
                row = {"word": kind, "algorithm": name, "characters": length}
                rows.append(row | {"seconds": seconds, "steps": steps})
                # The next one would take minutes: time that grows with the cube is enough.
                if seconds > 0.3:
                    break
    table = pl.DataFrame(rows)
    write_table(table, run.path / "growth.parquet")

    def draw(axes: Any) -> None:
        for (kind, name), part in table.group_by("word", "algorithm", maintain_order=True):
            style = "-" if kind == "a repeated" else "--"
            color = f"C{list(ALGORITHMS).index(str(name))}"
            label = f"{ALGORITHMS[str(name)]}, {kind}"
            axes.plot(
                part["characters"], part["seconds"], style, marker=".", color=color, label=label
            )
        axes.set(
            xscale="log", yscale="log", xlabel="characters of the word", ylabel="seconds",
            title="Time of one word",
        )  # fmt: skip
        axes.legend(fontsize="small")

    cli.plot(run.plots / "growth.png", draw, table)
    claims: list[Claim] = []
    bounds = {"linmaxmatch": (1, None, 1.1), "substring": (2, 1.8, None)}
    for kind in kinds:
        for name, label in ALGORITHMS.items():
            part = table.filter(
                (pl.col("word") == kind)
                & (pl.col("algorithm") == name)
                & (pl.col("characters") >= FITTED)
            )
            slope = np.polyfit(np.log(part["characters"]), np.log(part["seconds"]), 1)[0]
            paper, low, high = bounds.get(name, (None, None, None))
            claims.append((f"{kind}: exponent of {label}", paper, float(slope), "", low, high))
        # Each character is taken once, and each failure link drops at least one that was taken.
        linear = table.filter((pl.col("word") == kind) & (pl.col("algorithm") == "linmaxmatch"))
        most = float((linear["steps"] / linear["characters"]).max())  # pyright: ignore[reportArgumentType]
        claims.append((f"{kind}: most steps of LinMaxMatch a character", 2, most, "", None, 2.1))
    return claims


def equality(run: Run, full: bool, quiet: bool) -> list[Claim]:
    """Compares ids, offsets and word ids with HuggingFace's over many texts and their words."""
    whole = [*(text for _, text in data.udhr_paragraphs()), *data.django_sentences()]
    texts = list(dict.fromkeys([*whole, *(word for text in whole for word in text.split())]))
    texts = texts if full else texts[::4]
    claims: list[Claim] = []
    for lowercase in (True, False):
        vocabulary = data.english_vocabulary() if lowercase else data.multilingual_vocabulary()
        for strip in (True, False):
            settings = Settings.bert(vocabulary, lowercase, strip)
            ours, theirs = Tokenizer(settings), huggingface(settings)
            case, accents = "uncased" if lowercase else "cased", "stripped" if strip else "kept"
            label = f"{case}, accents {accents}"
            starts = range(0, len(texts), 10_000)
            differing = 0
            for start in cli.progress(starts, label, quiet=quiet):
                chunk = texts[start : start + 10_000]
                batch = ours.encode_batch(chunk, offsets=True, word_ids=True)
                differing += _differing(batch, theirs.encode_batch(chunk))
            claim = f"{label}: texts of {len(texts):,} unlike HuggingFace's"
            claims.append((claim, 0, differing, "texts", None, 0))
    return claims


PARTS: dict[str, Callable[[Run, bool, bool], list[Claim]]] = {
    "sentences": sentences,
    "words": words,
    "growth": growth,
    "equality": equality,
}


def _sides(settings: Settings, texts: list[str]) -> dict[str, Side]:
    """Returns every system that is installed, each to encode the texts on one thread."""
    hf, ours = huggingface(settings), Tokenizer(settings)

    def encode(tokenizer: Tokenizer) -> EncodingBatch:
        return tokenizer.encode_batch(texts, num_threads=1)

    def ids(batch: EncodingBatch) -> list[list[int]]:
        return [each.ids.tolist() for each in batch]

    def hf_ids(encodings: list[Any]) -> list[list[int]]:
        return [each.ids for each in encodings]

    sides = {
        HF: Side(lambda: hf, lambda made: made.encode_batch(texts), hf_ids),
        HF_FAST: Side(lambda: hf, lambda made: made.encode_batch_fast(texts), hf_ids),
        COLD: Side(lambda: Tokenizer(settings), encode, ids),
        WARM: Side(lambda: ours, encode, ids),
    }
    if importlib.util.find_spec("nanotoken"):
        # Peers are imported by name: they need not be there when types are checked.
        Nanotoken = importlib.import_module("nanotoken").Tokenizer  # noqa: N806 - a class

        def nano_encode(made: Any) -> Any:
            return made.encode_batch(texts, parallel=False)

        def nano_ids(batch: Any) -> list[list[int]]:
            return batch.to_list()

        file = hf.to_str()
        nanotoken = Nanotoken.from_json(file)
        sides["nanotoken, cold"] = Side(lambda: Nanotoken.from_json(file), nano_encode, nano_ids)
        sides["nanotoken, warm"] = Side(lambda: nanotoken, nano_encode, nano_ids)
    if importlib.util.find_spec("tensorflow_text"):
        tf, tf_text = map(importlib.import_module, ("tensorflow", "tensorflow_text"))
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        kernel = tf_text.FastWordpieceTokenizer(list(settings.vocab), token_out_type=tf.int32)
        strings, vocab = tf.constant(texts), settings.vocab

        def tf_ids(ragged: Any) -> list[list[int]]:
            return [[vocab["[CLS]"], *row, vocab["[SEP]"]] for row in ragged.to_list()]

        sides[TF_TEXT] = Side(lambda: kernel, lambda made: made.tokenize(strings), tf_ids)
    return sides


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps HuggingFace's `tokenizers` to the calling thread for the time being."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _interleaved(sides: Mapping[str, Side], rounds: int, quiet: bool) -> dict[str, Figures]:
    """Times each side in turn, round after round; the first round is not kept."""
    figures = {name: Figures([], []) for name in sides}
    for turn in cli.progress(range(-1, rounds), "rounds", quiet=quiet):
        for name, (prepare, encode, _) in sides.items():
            prepared = prepare()
            wall, cpu = time.perf_counter(), time.process_time()
            result = encode(prepared)
            taken = time.perf_counter() - wall, time.process_time() - cpu
            del result  # which takes time too, but no system's
            if turn >= 0:
                figures[name].wall.append(taken[0])
                figures[name].cpu.append(taken[1])
    return figures


def _write_markdown(table: pl.DataFrame, path: Path) -> None:
    """Writes the table of systems to be read by people."""
    lines = ["| " + " | ".join(table.columns) + " |", "|---" * table.width + "|"]
    for row in table.rows():
        cells = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in row)
        lines.append("| " + " | ".join(cells) + " |")
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def _word_time(model: Any, words: list[str], algorithm: str, rounds: int) -> tuple[float, float]:
    """Returns the seconds of a word, the least mean of some rounds, and the mean steps."""
    means, steps = [], np.zeros(1)
    while len(means) < rounds and sum(means) * len(words) < 1:
        _, _, steps, seconds = _core.match_words(model, words, algorithm)
        means.append(float(seconds.mean()))
    return min(means), float(steps.mean())


def _differing(batch: EncodingBatch, encodings: list[Any]) -> int:
    """Counts the rows whose ids, offsets or word ids are not HuggingFace's."""
    ids, words, ends = (array.tolist() for array in (batch.ids, batch.word_ids, batch.row_offsets))
    offsets = list(map(tuple, batch.offsets.tolist()))
    count = 0
    for row, their in enumerate(encodings):
        place = slice(ends[row], ends[row + 1])
        their_words = [-1 if word is None else word for word in their.word_ids]
        same = (ids[place], offsets[place], words[place]) == (
            their.ids, their.offsets, their_words,
        )  # fmt: skip
        count += not same
    return count
