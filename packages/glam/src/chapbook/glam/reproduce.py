"""The claims: at equal cost a sparse model learns more from the same text, and from better text.

The text is that of manuals, books and quotations which Debian packages hold; a part is held out by
document. Models with eight experts, two for each token, are trained beside the dense ones that
compute as much for a token, on the same tokens in the same order. Then models with other numbers of
experts; one on filtered text beside one on unfiltered; questions about manual pages, without and
with an example in front; the paper's tables of sizes and energy; and trainings into which trouble
is injected. Nothing is chosen by the text that is held out; rates are
chosen by another part of it.
"""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import polars as pl
import typer

from chapbook.core import cli
from chapbook.core.compilation import compiled_once
from chapbook.core.data import Batches, Source
from chapbook.core.errors import Error
from chapbook.core.io import read_jsonl, write_json
from chapbook.core.run import Run
from chapbook.core.tables import read_table, write_table
from chapbook.glam import corpus
from chapbook.glam.accounting import cost, ladder, power
from chapbook.glam.config import GLaMConfig
from chapbook.glam.evaluating import evaluate
from chapbook.glam.model import GLaM
from chapbook.glam.packing import PackedDataset, write_shards
from chapbook.glam.pareto import pareto_sample
from chapbook.glam.quality import QualityClassifier
from chapbook.glam.questions import manual_tasks, quotation_task, territory_task
from chapbook.glam.saving import load, save
from chapbook.glam.tokenizer import train_tokenizer
from chapbook.glam.training import TrainConfig, evaluation, fit

Row = tuple[str, Any, float, str, float | None, float | None]

CLAIMS = ("sizes", "sparse-vs-dense", "experts", "quality", "few-shot", "stability")
VOCABULARY, CONTEXT = 2048, 256
RATES = (0.01, 0.02, 0.04)
EXPERTS = (1, 2, 4, 8, 16)
DESK = f"desk/8E,vocab={VOCABULARY},context={CONTEXT}"
SHOWN = 8  # points of a learning curve


@dataclasses.dataclass(frozen=True)
class Profile:
    """How long it takes.

    Attributes:
        tokens: Of a training.
        seeds: Of each comparison.
        rates: That are compared on a part of the text.
    """

    tokens: int
    seeds: int
    rates: tuple[float, ...]


QUICK = Profile(400_000, 1, (0.02,))
FULL = Profile(3_000_000, 3, RATES)


def reproduce(
    path: str | Path,
    *,
    claims: Sequence[str] = CLAIMS,
    full: bool = False,
    tokens: int | None = None,
    seeds: int | None = None,
    budget: float | None = None,
    seed: int = 0,
    fresh: bool = False,
    quiet: bool = False,
) -> None:
    """Trains, compares and draws; what an interrupted run has finished is not done again.

    Args:
        path: The run's folder.
        claims: Which ones: `sizes`, `sparse-vs-dense`, `experts`, which only `full` has, `quality`,
            `few-shot` and `stability`.
        full: Whether to train three seeds on 3 million tokens each, with rates from a grid, in
            place of one on 400,000.
        tokens: Of a training, in place of the profile's.
        seeds: How many, in place of the profile's.
        budget: Minutes that all trainings on text may take; their tokens are as many as a short
            training and an evaluation say that this machine does in them.
        seed: The first one.
        fresh: Whether to empty the run's folder first.
        quiet: Whether to show no progress.

    Raises:
        Error: There is no such claim, the text cannot be fetched, or the budget is too small.
        typer.Exit: With code 3, when a claim does not hold.
    """
    if wrong := sorted(set(claims) - set(CLAIMS)):
        raise Error(f"there is no claim {wrong[0]}; there are {', '.join(CLAIMS)}")
    if tokens is not None and budget is not None:
        raise Error("both tokens and a budget are given", "one follows from the other")
    profile = FULL if full else QUICK
    profile = dataclasses.replace(
        profile, tokens=tokens or profile.tokens, seeds=seeds or profile.seeds
    )
    told = dataclasses.asdict(profile) | {
        "seed": seed, "claims": sorted(claims), "full": full, "budget": budget,
    }  # fmt: skip
    numbers = range(seed, seed + profile.seeds)
    rows: list[Row] = []
    with Run(path, told, fresh=fresh) as run, compiled_once():
        if "sizes" in claims:
            rows += _sizes(run)
        if {"sparse-vs-dense", "experts", "quality", "few-shot"} & set(claims):
            text = _Text(run)
            desk = _Desk(run, text, profile, quiet)
            count = _trainings(claims, profile, full)
            if budget is not None and count:
                found = _affordable(desk, budget, count)
                desk = dataclasses.replace(desk, profile=dataclasses.replace(profile, tokens=found))
            if "sparse-vs-dense" in claims:
                rows += _sparse(desk, numbers)
            if full and "experts" in claims:
                rows += _experts(desk, numbers)
            if "quality" in claims:
                rows += _quality(desk, numbers)
            if "few-shot" in claims:
                rows += _few_shot(desk, numbers)
        if "stability" in claims:
            rows += _stability(run, numbers)
        cli.claims(rows, run)


def _sizes(run: Run) -> list[Row]:
    """Returns the paper's tables of sizes, operations and energy beside what they should be."""
    table = ladder()
    write_table(table, run.path / "sizes.csv")
    explained = table.filter(pl.col("agrees")).height
    largest = cost(GLaMConfig.preset("64B/64E"))
    # 1,024 chips took 574 hours for the first 280 billion tokens; a chip with its part of the
    # machine draws 326 W (Patterson et al. 2022).
    used = power(574 * 600 / 280, 1024, 326, 1.11, 0.088)
    return [
        ("numbers of the paper's table of sizes that its sizes give", 22, float(explained), "",
         None, None),
        ("64B/64E, parameters", 1162.0, largest.parameters / 1e9, "B", 1161.5, 1162.5),
        ("64B/64E, activated for a token", 96.6, largest.activated / 1e9, "B", 96.55, 96.65),
        ("64B/64E, operations for a token, with the attention's at 1,024 tokens", 180.0,
         (largest.flops + largest.attention_flops) / 1e9, "GFLOP", None, None),
        ("64B/64E, energy of 600 billion tokens", 456.0, used.megawatt_hours, "MWh", 450.0, 462.0),
        ("64B/64E, carbon of 600 billion tokens", 40.2, used.tonnes, "t", 39.0, 41.0),
    ]  # fmt: skip


class _Text:
    """The text as shards: good documents, bad ones, and what is held out of the good."""

    def __init__(self, run: Run):
        self.folder = run.path / "text"
        names = ("good", "bad", "chosen", "held")
        if not all((self.folder / name / "facts.json").exists() for name in names):
            table = corpus.documents()
            good = table.filter((pl.col("kind") == "good") & ~pl.col("held"))
            tokenizer = train_tokenizer([good], VOCABULARY)
            held = table.filter((pl.col("kind") == "good") & pl.col("held"))
            # Rates are chosen by every second document, and claims made on the others.
            half = pl.int_range(pl.len()) % 2 == 0
            parts = {
                "good": good,
                "bad": table.filter((pl.col("kind") == "bad") & ~pl.col("held")),
                "chosen": held.filter(half),
                "held": held.filter(~half),
            }
            for name in names:
                if not (self.folder / name / "facts.json").exists():
                    # Documents of a source lie together, and are mixed here once and for all.
                    mixed = parts[name].sample(fraction=1, shuffle=True, seed=0)
                    write_shards([mixed], tokenizer, self.folder / name)
        self.good, self.bad, self.chosen, self.held = (
            PackedDataset(self.folder / name, CONTEXT) for name in names
        )

        self.bits = {"chosen": _bits(self.chosen), "held": _bits(self.held)}


def _bits(part: PackedDataset) -> Callable[[GLaM], float]:
    """Returns what computes a model's bits of a byte."""
    facts = part.part_facts
    # Ends are predicted too, and are no bytes of the text.
    found = evaluation(part, bytes_per_token=facts["bytes"] / facts["tokens"])
    return lambda model: found(model, jax.random.key(0))["bits_per_byte"]


@dataclasses.dataclass(frozen=True)
class _Desk:
    """Trains models and keeps what they score."""

    run: Run
    text: _Text
    profile: Profile
    quiet: bool

    def curve(
        self, name: str, config: GLaMConfig, source: Source, rate: float, seed: int,
        tokens: int | None = None,
    ) -> pl.DataFrame:  # fmt: skip
        """Returns `tokens`, `held` and, to choose rates, `chosen`, in bits of a byte.

        The model stays in `training`.
        """
        name = f"{name}-{rate:g}-{seed}"
        path = self.run.path / "curves" / f"{name}.parquet"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_table(self._trained(name, config, source, rate, seed, tokens), path)
        return read_table(path)

    def _trained(
        self, name: str, config: GLaMConfig, source: Source, rate: float, seed: int,
        tokens: int | None,
    ) -> pl.DataFrame:  # fmt: skip
        recipe = TrainConfig(
            tokens=tokens or self.profile.tokens, batch_size=8, learning_rate=rate, warmup=20,
            constant=max((tokens or self.profile.tokens) // (8 * CONTEXT) // 4, 1),
        )  # fmt: skip
        initial, training = jax.random.split(jax.random.key(seed))
        model = eqx.filter_jit(partial(GLaM, config))(key=initial)
        steps = recipe.steps(CONTEXT)

        # One rate needs no choice.
        parts = ("chosen", "held") if len(self.profile.rates) > 1 else ("held",)

        def scores(model: GLaM, key: Any) -> dict[str, float]:
            return {name: self.text.bits[name](model) for name in parts}

        told = {"config": str(config), "seed": seed, "rate": rate, "steps": steps}
        with Run(self.run.path / "training" / name, told) as kept:
            made = fit(
                model, Batches(source, recipe.batch_size, seed=seed), recipe, key=training,
                evaluate=scores, evaluate_every=max(steps // SHOWN, 1), run=kept, quiet=self.quiet,
            )  # fmt: skip
            if made.exit_code:
                raise typer.Exit(made.exit_code)
            save(made.model, kept.path / "model", self.text.good.tokenizer)
        table = made.metrics.drop_nulls("valid/held")
        return table.select(
            (pl.col("step") * recipe.batch_size * CONTEXT).alias("tokens"),
            *(pl.col(f"valid/{name}").alias(name) for name in parts),
        )

    def best(self, name: str, config: GLaMConfig, source: Source, seed: int) -> float:
        """Returns the rate with which the first seed scores best on a part for choosing."""
        rates = self.profile.rates
        if len(rates) == 1:
            return rates[0]
        return min(rates, key=lambda r: self.curve(name, config, source, r, seed)["chosen"][-1])


def _trainings(claims: Sequence[str], profile: Profile, full: bool) -> int:
    """Returns how many trainings on text the claims take, those that choose rates among them."""
    models = {
        "sparse-vs-dense": {"sparse", "dense"}, "few-shot": {"sparse", "dense"},
        "quality": {"filtered", "unfiltered"},
        "experts": {"dense", "sparse", "2 experts", "4 experts", "16 experts"} if full else set(),
    }  # fmt: skip
    trained = set[str]().union(*(models.get(claim, set()) for claim in claims))
    count = len(trained) * profile.seeds
    if trained and len(profile.rates) > 1:  # chosen with the first seed, which needs one of them
        chosen = {"sparse"} | ({"dense"} & trained)
        count += sum(len(profile.rates) - (name in trained) for name in chosen)
    return count


def _affordable(desk: _Desk, minutes: float, trainings: int) -> int:
    """Returns the tokens of a training, if so many trainings are to take so many minutes."""
    path = desk.run.path / "budget.json"
    if not path.exists():
        config = GLaMConfig.from_string(DESK)
        model = eqx.filter_jit(partial(GLaM, config))(key=jax.random.key(0))
        recipe = TrainConfig(tokens=20 * 8 * CONTEXT, batch_size=8)
        fixed = moving = 0.0
        for _ in range(2):  # the first one compiles
            start = time.perf_counter()
            made = fit(model, Batches(desk.text.good, 8), recipe, key=jax.random.key(0), quiet=True)
            if made.exit_code:
                raise typer.Exit(made.exit_code)
            middle = time.perf_counter()
            desk.text.bits["held"](made.model)
            fixed, moving = time.perf_counter() - middle, middle - start
        share = 60 * minutes / trainings - SHOWN * fixed
        tokens = int(share * recipe.tokens / moving)
        if tokens < 8 * recipe.tokens:
            least = trainings * (SHOWN * fixed + 8 * moving) / 60
            told = f"a budget of {minutes:g} minutes is too small"
            raise Error(told, f"give {math.ceil(least)} or more")
        write_json(path, {
            "tokens": tokens, "trainings": trainings, "seconds of an evaluation": fixed,
            "seconds of 20 updates": moving,
        })  # fmt: skip
    return json.loads(path.read_text())["tokens"]


def _sparse(desk: _Desk, seeds: Sequence[int]) -> list[Row]:
    """Returns the claim that experts beat the dense model that computes as much for a token."""
    sparse = GLaMConfig.from_string(DESK)
    configs = {"sparse": sparse, "dense": sparse.dense_counterpart()}
    curves: dict[str, list[pl.DataFrame]] = {}
    rows: list[Row] = []
    for name, config in configs.items():
        rate = desk.best(name, config, desk.text.good, seeds[0])
        curves[name] = [desk.curve(name, config, desk.text.good, rate, each) for each in seeds]
        mean = statistics.mean(each["held"][-1] for each in curves[name])
        rows.append((f"{name}, bits of a byte", None, mean, "", None, None))
        rows.append((f"{name}, learning rate", None, rate, "", None, None))
        flops = cost(config)
        rows.append((f"{name}, operations for a token", None,
                     (flops.flops + flops.attention_flops) / 1e6, "MFLOP", None, None))  # fmt: skip
    gains = [
        100 * (1 - a["held"][-1] / b["held"][-1])
        for a, b in zip(curves["sparse"], curves["dense"], strict=True)
    ]
    rows.append(("sparse below dense in bits of a byte", None, statistics.mean(gains), "%",
                 1.5 if len(seeds) >= 3 else None, None))  # fmt: skip
    rows.append(("sparse below dense, least of the seeds", None, min(gains), "%", 0.0, None))
    shares = [
        100 * _reached(a, b["held"][-1]) / b["tokens"][-1]
        for a, b in zip(curves["sparse"], curves["dense"], strict=True)
    ]
    rows.append(("tokens to the dense model's last loss", None, statistics.mean(shares), "%", None,
                 85.0 if len(seeds) >= 3 else None))  # fmt: skip
    _draw(desk.run, "sparse-vs-dense", curves)
    return rows


def _reached(curve: pl.DataFrame, level: float) -> float:
    """Returns after how many tokens a curve is at a level, by lines between its points."""
    tokens, values = curve["tokens"].to_numpy(), curve["held"].to_numpy()
    below = np.flatnonzero(values <= level)
    if not len(below):
        return float("inf")
    at = below[0]
    if at == 0:
        return float(tokens[0])
    share = (values[at - 1] - level) / (values[at - 1] - values[at])
    return float(tokens[at - 1] + share * (tokens[at] - tokens[at - 1]))


def _experts(desk: _Desk, seeds: Sequence[int]) -> list[Row]:
    """Returns what more experts give at the same cost of a token; not judged beyond eight."""
    means, curves = {}, {}
    for count in EXPERTS:
        sparse = dataclasses.replace(GLaMConfig.from_string(DESK), num_experts=max(count, 2))
        config = sparse if count > 1 else sparse.dense_counterpart()
        name = {1: "dense", 8: "sparse"}.get(count, f"experts-{count}")
        rate = desk.best("sparse", GLaMConfig.from_string(DESK), desk.text.good, seeds[0])
        curves[f"{count}"] = [desk.curve(name, config, desk.text.good, rate, s) for s in seeds]
        means[count] = statistics.mean(each["held"][-1] for each in curves[f"{count}"])
    _draw(desk.run, "experts", curves)
    rows: list[Row] = [
        (f"{count} experts, bits of a byte", None, value, "", None, None)
        for count, value in means.items()
    ]
    worst = max(means[b] - means[a] for a, b in ((1, 2), (2, 4), (4, 8)))
    return [*rows, ("greatest rise from one number of experts to the next, up to 8", None, worst,
                    "bits", None, 0.02)]  # fmt: skip


def _quality(desk: _Desk, seeds: Sequence[int]) -> list[Row]:
    """Returns the claim that filtered text teaches more than the same amount of all text."""
    folder = desk.run.path / "text" / "filtered"
    whole = desk.run.path / "text" / "unfiltered"
    if not all((each / "facts.json").exists() for each in (folder, whole)):
        table = corpus.documents().filter(~pl.col("held"))
        # The classifier learns from one half, and the models from the other, which it has not seen.
        share = pl.col("id").hash(0) % 2 == 0
        known, crawl = table.filter(share), table.filter(~share)
        kinds = {kind: known.filter(pl.col("kind") == kind)["text"] for kind in ("good", "bad")}
        classifier = QualityClassifier(bits=18).fit(kinds["good"], kinds["bad"])
        scored = crawl.with_columns(pl.Series("score", classifier.score(crawl["text"])))
        scored = scored.sample(fraction=1, shuffle=True, seed=0)
        kept = pareto_sample(scored, score="score", alpha=9.0, seed=0)
        counts = {
            name: part.group_by("kind").agg(pl.len().alias("documents")).with_columns(
                pl.lit(name).alias("text")
            )
            for name, part in (("unfiltered", scored), ("filtered", kept))
        }  # fmt: skip
        write_table(pl.concat(counts.values()), desk.run.path / "filter.csv")
        for name, part in ((folder, kept), (whole, scored)):
            write_shards([part], desk.text.good.tokenizer, name)
    sparse = GLaMConfig.from_string(DESK)
    sources = {
        name: PackedDataset(place, CONTEXT)
        for name, place in (("filtered", folder), ("unfiltered", whole))
    }
    rate = desk.best("sparse", sparse, desk.text.good, seeds[0])
    curves = {
        name: [desk.curve(name, sparse, source, rate, each) for each in seeds]
        for name, source in sources.items()
    }
    gains = [
        100 * (1 - a["held"][-1] / b["held"][-1])
        for a, b in zip(curves["filtered"], curves["unfiltered"], strict=True)
    ]
    _draw(desk.run, "quality", curves)
    rows: list[Row] = [
        (f"{name} text, bits of a byte of manuals and books", None,
         statistics.mean(each["held"][-1] for each in found), "", None, None)
        for name, found in curves.items()
    ]  # fmt: skip
    return [*rows, ("filtered below unfiltered, least of the seeds", None, min(gains), "%", 0.0,
                    None)]  # fmt: skip


def _few_shot(desk: _Desk, seeds: Sequence[int]) -> list[Row]:
    """Returns how often models choose the right one of four options."""
    sparse = GLaMConfig.from_string(DESK)
    path = desk.run.path / "few-shot.csv"
    if not path.exists():
        held = corpus.documents().filter("held", pl.col("source").str.starts_with("manpages"))
        tasks = [
            *manual_tasks(held.filter(pl.col("kind") == "good")["text"].to_list()),
            quotation_task(corpus.quotations()),
            territory_task(corpus.territories()),
        ]
        parts = []
        for name, config in (("sparse", sparse), ("dense", sparse.dense_counterpart())):
            rate = desk.best(name, config, desk.text.good, seeds[0])
            for seed in seeds:
                desk.curve(name, config, desk.text.good, rate, seed)
                model = load(desk.run.path / "training" / f"{name}-{rate:g}-{seed}")
                found = evaluate(model, desk.text.good.tokenizer, tasks, shots=(0, 1))
                parts.append(found.select(pl.lit(name).alias("model"), pl.lit(seed).alias("seed"),
                                          pl.all()))  # fmt: skip
        write_table(pl.concat(parts), path)
    table = read_table(path).filter(pl.col("metric") == "accuracy_per_byte")
    mean = table.group_by("task", "shots", "model", maintain_order=True).agg(
        pl.col("value", "stderr").mean()
    )
    rows: list[Row] = [
        (f"{task}, {shots}-shot, {model}, right (standard error {error:.1f})", None, value, "%",
         None, None)
        for task, shots, model, value, error in mean.sort("task", "shots").iter_rows()
    ]  # fmt: skip
    asked = table.filter(model="sparse", task="heading", shots=0)
    least = min(value - 2 * error for value, error in asked["value", "stderr"].iter_rows())
    told = "heading, 0-shot, sparse, less two standard errors, least of the seeds"
    return [*rows, (told, None, least, "%", 25.0, None)]  # fmt: skip


def _stability(run: Run, seeds: Sequence[int]) -> list[Row]:
    """Returns the claims that a training outlives broken batches, and a divergence.

    How much another order of the same batches changes the loss tells what is noise. That is more
    than the bound, so that only means of three seeds are judged.
    """
    config = GLaMConfig.from_string("desk/4E,vocab=64,context=32,layers=2,width=32,hidden=64")
    recipe = TrainConfig(tokens=1600 * 8 * 32, batch_size=8, learning_rate=0.02, constant=100)
    troubles: dict[str, tuple[Sequence[int], Sequence[int]]] = {
        "clean": ((), ()), "other order": ((), ()), "skipped": ((170, 171), ()),
        "rewound": ((), range(200, 210)),
    }  # fmt: skip

    def trained(name: str, seed: int) -> tuple[float, list[str]]:
        broken, noise = troubles[name]
        model = eqx.filter_jit(partial(GLaM, config))(key=jax.random.key(seed))
        order = Batches(_Counting(), 8, seed=seed + 1000 * (name == "other order"))
        folder = run.path / "training" / f"stability-{name.replace(' ', '-')}-{seed}"
        with Run(folder, {"broken": list(broken), "noise": list(noise)}, fresh=True) as kept:
            made = fit(model, _Troubled(order, broken, noise), recipe, key=jax.random.key(seed),
                       run=kept, save_every=20, log_every=10, quiet=True)  # fmt: skip
        if made.exit_code:
            raise typer.Exit(made.exit_code)
        score = evaluation(_Counting(), batch_size=64)(made.model, jax.random.key(0))
        return score["nats"], [each["kind"] for each in read_jsonl(folder / "events.jsonl")]

    found = {name: [trained(name, seed) for seed in seeds] for name in troubles}

    def above(name: str) -> float:
        pairs = zip(found[name], found["clean"], strict=True)
        return statistics.mean(100 * (loss / clean - 1) for (loss, _), (clean, _) in pairs)

    def least(name: str, kind: str) -> float:
        return float(min(told.count(kind) for _, told in found[name]))

    bound = 1.0 if len(seeds) >= 3 else None
    return [
        ("batches that are not finite and skipped, of 2", None, least("skipped", "skipped"), "",
         2.0, 2.0),
        ("loss with them over the clean training's", None, above("skipped"), "%", None, bound),
        ("rewinds from ten batches of noise", None, least("rewound", "rewind"), "", 1.0, None),
        ("loss with them over the clean training's, noise", None, above("rewound"), "%", None,
         bound),
        ("loss after another order of the same batches over it", None, above("other order"), "%",
         None, None),
    ]  # fmt: skip


class _Counting:
    """Rows that count up in steps of 1 to 8, for trainings of seconds."""

    def __len__(self) -> int:
        return 64 * 8

    def __getitem__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        first, step = np.asarray(rows)[:, None] % 64, 1 + np.asarray(rows)[:, None] // 64
        tokens = (first + step * np.arange(33)) % 64
        return {"tokens": tokens.astype(np.int32), "segment": np.ones_like(tokens, np.int32)}


class _Troubled:
    """Batches of which some hold a token that no model knows, and some are noise."""

    def __init__(self, batches: Batches, broken: Sequence[int], noise: Sequence[int]):
        self.batches, self.broken, self.noise, self.place = batches, broken, noise, 0

    def __iter__(self) -> "_Troubled":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = dict(next(self.batches))
        if self.place in self.broken:
            batch["tokens"] = np.where(np.arange(33) == 5, 64, batch["tokens"])
        if self.place in self.noise:
            draw = np.random.default_rng(self.place)
            batch["tokens"] = draw.integers(0, 64, batch["tokens"].shape, np.int32)
        self.place += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"batches": self.batches.get_state(), "place": self.place}

    def set_state(self, state: dict[str, Any]) -> None:
        self.batches.set_state(state["batches"])
        self.place = state["place"]


def _draw(run: Run, name: str, curves: dict[str, list[pl.DataFrame]]) -> None:
    """Draws learning curves, the mean over seeds of each kind."""
    rows = pl.concat(
        part.with_columns(pl.lit(kind).alias("kind"))
        for kind, parts in curves.items()
        for part in parts
    )
    mean = rows.group_by("kind", "tokens", maintain_order=True).agg(pl.col("held").mean())

    def draw(axes: Any) -> None:
        for (kind,), part in mean.group_by("kind", maintain_order=True):
            axes.plot(part["tokens"], part["held"], marker="o", label=kind)
        axes.set(xlabel="tokens", ylabel="bits of a byte of held-out text", title=name)
        axes.legend()

    run.plots.mkdir(exist_ok=True)
    cli.plot(run.plots / f"{name}.png", draw, mean)
