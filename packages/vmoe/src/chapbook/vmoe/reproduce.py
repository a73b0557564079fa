"""The claims: priority keeps accuracy as capacity falls, sparse beats dense at equal cost.

On 5,000 MNIST digits, half of whose patches are blank, a model with experts in all layers is
trained as usual, and evaluated with ever less room in the experts' buffers, which are filled in the
order of the tokens or of their scores; then with other numbers of experts per token; and its routes
are held against the classes. On emoji of several artists, models with experts stand beside dense
ones of equal activated cost. Rates are chosen on validation images, nothing on those for test.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import polars as pl
import typer

from chapbook.core import cli
from chapbook.core.compilation import compiled_once
from chapbook.core.data import Source
from chapbook.core.errors import Error
from chapbook.core.run import Run
from chapbook.core.tables import read_table, write_table
from chapbook.vmoe import plots
from chapbook.vmoe.augmentation import HorizontalFlip, RandomShift, augment
from chapbook.vmoe.config import VMoEConfig
from chapbook.vmoe.cost import flops
from chapbook.vmoe.data import Images, emoji, mnist5k
from chapbook.vmoe.evaluating import sweep
from chapbook.vmoe.model import VisionTransformerMoE
from chapbook.vmoe.routes import route_table
from chapbook.vmoe.routing_analysis import class_information
from chapbook.vmoe.saving import load, save
from chapbook.vmoe.training import TrainConfig, fit

Row = tuple[str, Any, float, str, float | None, float | None]

CLAIMS = ("bpr", "adaptive-k", "routing", "sparse-vs-dense")
CAPACITIES = (4.0, 1.0, 0.5, 0.25, 0.15, 0.1, 0.05)
POWER = 5.0  # points that must be lost at the least capacity, or the experts do not matter
WIDTHS, RATES = (48, 64, 96), (1e-3, 2e-3, 4e-3)
SIZE = 32  # pixels of an emoji


def reproduce(
    path: str | Path,
    *,
    claims: Sequence[str] = CLAIMS,
    full: bool = False,
    seeds: int | None = None,
    epochs: float | None = None,
    seed: int = 0,
    fresh: bool = False,
    quiet: bool = False,
) -> None:
    """Trains, sweeps, compares and draws; what an interrupted run has finished is not done again.

    Args:
        path: The run's folder.
        claims: Which ones: `bpr`, `adaptive-k`, `routing`, and `sparse-vs-dense`, which only `full`
            has.
        full: Whether to train three seeds, for 30 epochs in place of 14, and on emoji too.
        seeds: How many, in place of the profile's.
        epochs: In place of the profile's; the table says so.
        seed: The first one.
        fresh: Whether to empty the run's folder first.
        quiet: Whether to show no progress.

    Raises:
        Error: There is no such claim.
        typer.Exit: With code 3, when a claim does not hold; when it is interrupted, with the
            signal's.
    """
    if wrong := sorted(set(claims) - set(CLAIMS)):
        raise Error(f"there is no claim {wrong[0]}; there are {', '.join(CLAIMS)}")
    count = seeds or (3 if full else 1)
    length = epochs or (30.0 if full else 14.0)
    told = {"full": full, "seeds": count, "epochs": length, "seed": seed, "claims": sorted(claims)}
    numbers = range(seed, seed + count)
    rows: list[Row] = []
    with Run(path, told, fresh=fresh) as run, compiled_once():
        single = []
        if {"bpr", "routing"} & set(claims):
            single = [_digits(run, each, 1, length, quiet) for each in numbers]
        if "bpr" in claims:
            rows += _priority(run, single, length)
        if "adaptive-k" in claims:
            rows += _adaptive(run, numbers, length, quiet)
        if "routing" in claims:
            rows += _specialisation(run, single)
        if full and "sparse-vs-dense" in claims:
            rows += _sparse(run, numbers, length, quiet)
        cli.claims(rows, run)


Digits = tuple[VisionTransformerMoE, Images]


def _digits(run: Run, seed: int, selected: int, epochs: float, quiet: bool) -> Digits:
    """Returns a model of digits with experts in all layers, and its test images."""
    train, test = mnist5k(seed)
    config = VMoEConfig.from_string(
        f"Ti/4,E=8,K={selected},every=1", image_size=28, num_classes=10, classifier="gap",
        group_size=100 * 49,
    )  # fmt: skip
    model = _trained(
        run, f"digits-K{selected}-{seed}", config, train.at(28),
        TrainConfig.preset("small", epochs=epochs), seed, augment(RandomShift(2)), quiet,
    )  # fmt: skip
    # Images that are routed together are of all classes, as in training.
    test = test.take(np.random.default_rng(seed).permutation(len(test)))
    # Small buffers are compared at their true size.
    return model.with_routing(capacity_multiple=1), test


def _trained(
    run: Run, name: str, config: VMoEConfig, train: Source, recipe: TrainConfig, seed: int,
    augmented: Any, quiet: bool,
) -> VisionTransformerMoE:  # fmt: skip
    """Trains a model, goes on with one that was interrupted, or loads a finished one."""
    folder = run.path / "models" / name
    if not (folder / "config.json").exists():
        initial, training = jax.random.split(jax.random.key(seed))
        model = eqx.filter_jit(lambda key: VisionTransformerMoE(config, key=key))(initial)
        with Run(run.path / "training" / name, {"config": str(config), "seed": seed}) as kept:
            made = fit(
                model, train, recipe, key=training, seed=seed, augment=augmented, workers=1,
                run=kept, quiet=quiet,
            )  # fmt: skip
            if made.exit_code:  # half a training is no measurement
                raise typer.Exit(made.exit_code)
        save(made.model, folder)
    return load(folder)[0]


def _kept(run: Run, name: str, make: Any) -> pl.DataFrame:
    """Returns a table that is made once."""
    path = run.path / "tables" / f"{name}.parquet"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_table(make(), path)
    return read_table(path)


def _priority(run: Run, models: Sequence[Digits], epochs: float) -> list[Row]:
    """Returns the claims about Batch Priority Routing."""
    found = pl.concat(
        [
            _kept(run, f"bpr-{number}", lambda model=model, test=test: sweep(
                model, test.at(28), capacities=CAPACITIES, priorities=(False, True)
            )).with_columns(pl.lit(number).alias("seed"))
            for number, (model, test) in enumerate(models)
        ]
    )  # fmt: skip
    write_table(found, run.path / "bpr.csv")
    curve = found.group_by("capacity_factor", "batch_priority").agg(
        (pl.col("accuracy") * 100).mean(), (pl.col("accuracy") * 100).std(ddof=0).alias("std"),
        pl.col("dropped").mean(), pl.col("actual_capacity").mean(),
    ).sort("capacity_factor", "batch_priority")  # fmt: skip
    plots.capacity_curve(run.plots / "bpr.png", curve)
    at = {(c, b): a for c, b, a in curve.select(pl.nth(0, 1, 2)).iter_rows()}
    rows: list[Row] = [("epochs of a training", 30, epochs, "", None, None)]
    lost = at[1.0, False] - at[CAPACITIES[-1], False]
    rows.append(("power: accuracy lost from C = 1 to 0.05", None, lost, "points", POWER, None))
    if lost < POWER:  # experts do not matter in this model, and nothing can be claimed of them
        return [*rows, ("no power: experts do not matter here", None, lost, "points", POWER, None)]
    for capacity in CAPACITIES:
        for first in (False, True):
            name = "BPR" if first else "vanilla"
            rows.append((f"accuracy at C = {capacity:g}, {name}", None, at[capacity, first], "%",
                         None, None))  # fmt: skip
    middle = statistics.mean(at[c, True] - at[c, False] for c in (0.5, 0.25, 0.15))
    rows.append(("BPR over vanilla, mean of C = 0.5, 0.25, 0.15", None, middle, "points", 2.0,
                 None))  # fmt: skip
    least = min(at[c, True] - at[c, False] for c in CAPACITIES if c <= 1)
    # The order at every capacity is claimed of a mean over seeds.
    bound = 0.0 if len(models) >= 3 else None
    rows.append(("BPR over vanilla, least of all C up to 1", None, least, "points", bound, None))
    half = at[1.0, True] - at[0.5, True]
    rows.append(("BPR, lost from C = 1 to 0.5", None, half, "points", None, 2.0))
    model, test = models[0]
    images = {n: test.picture(n) for n in range(6)}
    pixels = test.at(28)[np.arange(100)]["image"]
    routed = {
        c: route_table(model.with_routing(capacity_factor=c, batch_priority=True), pixels)
        for c in (1.0, 0.5, 0.15)
    }
    for layer in (0, len(model.blocks) - 1):
        plots.kept_patches(run.plots / f"kept_patches_{layer}.png", images, routed, layer)
    return rows


def _adaptive(run: Run, seeds: Sequence[int], epochs: float, quiet: bool) -> list[Row]:
    """Returns what another K at inference does to a model trained with K = 2; not judged."""
    parts = []
    for seed in seeds:
        model, test = _digits(run, seed, 2, epochs, quiet)
        parts.append(_kept(run, f"adaptive-k-{seed}", lambda model=model, test=test: sweep(
            model, test.at(28), capacities=(4.0,), selected=(1, 2, 3), normalize=("none", "before"),
        )))  # fmt: skip
    found = pl.concat(parts)
    write_table(found, run.path / "adaptive-k.csv")
    mean = found.group_by("num_selected_experts", "normalize").agg(
        (pl.col("accuracy") * 100).mean()
    )
    return [
        (f"trained with K = 2: accuracy at K = {k}, weights {name}", None, value, "%", None, None)
        for k, name, value in mean.sort("num_selected_experts", "normalize").iter_rows()
    ]


def _specialisation(run: Run, models: Sequence[Digits]) -> list[Row]:
    """Returns the claim that deep layers' routing knows more of the class than the first's."""
    ratios = []
    for number, (model, test) in enumerate(models):

        def routes(model: VisionTransformerMoE = model, test: Images = test) -> pl.DataFrame:
            pixels = test.at(28)[np.arange(len(test))]["image"]
            return route_table(model.with_routing(capacity_factor=4.0), pixels, test.labels)

        table = _kept(run, f"routes-{number}", routes)
        told = class_information(table)
        write_table(told, run.path / f"information-{number}.csv")
        by_layer = told.sort("layer")["information"]
        ratios.append(by_layer[-1] / by_layer[0])
        if not number:
            plots.heat_maps(run.plots, table, experts=model.config.num_experts)
            plots.load_histogram(run.plots / "loads.png", table, experts=model.config.num_experts)
            plots.expert_patches(
                run.plots / "experts.png", {n: test.picture(n) for n in range(6)}, table
            )
    ratio = statistics.mean(ratios)
    return [("I(expert; class), last layer over first", None, ratio, "x", 1.5, None)]


def _sparse(run: Run, seeds: Sequence[int], epochs: float, quiet: bool) -> list[Row]:
    """Returns the claim that experts beat a dense model of the same activated cost, on emoji."""
    parts = emoji(SIZE)
    classes = len(parts["train"].names)

    def config(width: int, sparse: bool) -> VMoEConfig:
        placed = ",E=8,K=1,every=2" if sparse else ""
        return VMoEConfig.from_string(
            f"Ti/4,width={width},mlp={2 * width}{placed}", image_size=SIZE, num_classes=classes,
            classifier="gap",
        )  # fmt: skip

    def accuracy(part: str, width: int, sparse: bool, rate: float, seed: int) -> float:
        name = f"emoji-{'sparse' if sparse else 'dense'}-{width}-{rate:g}-{seed}"

        def made() -> pl.DataFrame:
            recipe = TrainConfig.preset("small", epochs=epochs, learning_rate=rate)
            model = _trained(
                run, name, config(width, sparse), parts["train"].at(SIZE), recipe, seed,
                augment(RandomShift(2), HorizontalFlip()), quiet,
            )  # fmt: skip
            return pl.concat(
                [sweep(model, parts[each].at(SIZE), capacities=(4.0,)).with_columns(
                    pl.lit(each).alias("part")) for each in ("valid", "test")]
            )  # fmt: skip

        found = _kept(run, name, made)
        return 100 * found.filter(pl.col("part") == part)["accuracy"][0]

    points: list[dict[str, Any]] = []
    for width in WIDTHS:
        for sparse in (False, True):
            rate = max(RATES, key=lambda r, w=width, s=sparse: accuracy("valid", w, s, r, seeds[0]))
            tests = [accuracy("test", width, sparse, rate, seed) for seed in seeds]
            points.append({
                "width": width, "sparse": sparse, "learning_rate": rate,
                "gflops": flops(config(width, sparse)).flops / 1e9,
                "accuracy": statistics.mean(tests), "std": statistics.pstdev(tests),
            })  # fmt: skip
    table = pl.DataFrame(points)
    write_table(table, run.path / "sparse-vs-dense.csv")
    plots.cost_curve(run.plots / "sparse-vs-dense.png", table)
    dense, sparse = (table.filter(sparse=each)["accuracy"].to_list() for each in (False, True))
    gains = [b - a for a, b in zip(dense, sparse, strict=True)]
    rows: list[Row] = [
        (f"emoji, width {width}: sparse over dense", None, gain, "points", None, None)
        for width, gain in zip(WIDTHS, gains, strict=True)
    ]
    no_worse = sum(1.0 for gain in gains if gain >= 0)
    rows.append(("emoji: widths at which sparse is no worse", None, no_worse, "of 3", 2.0, None))
    rows.append(("emoji: sparse over dense, mean of the widths", None, statistics.mean(gains),
                 "points", 0.5, None))  # fmt: skip
    return rows
