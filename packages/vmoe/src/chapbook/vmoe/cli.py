"""The command `vmoe`: parses, calls the library, prints. It never imports JAX here."""

import dataclasses
import json as text
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chapbook.core import cli
from chapbook.core.errors import Error

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from chapbook.vmoe.data import Images
    from chapbook.vmoe.model import VisionTransformerMoE
    from chapbook.vmoe.training import TrainConfig

app = cli.app(
    "vmoe",
    "Vision Transformers with sparse experts, whose cost is a knob at inference.",
    version=version("chapbook-vmoe"),
)
main = cli.main(app)

_DATA = (
    "A folder with a folder for each class, a table with columns path or image and a label, an npz"
    " file, mnist5k or emoji."
)
_SET = "NAME=VALUE of the model's or the training's settings; several."
Data = Annotated[str, typer.Option("--data", metavar="SOURCE", help=_DATA)]
Line = Annotated[str, typer.Option("--config", metavar="LINE", help="Such as B/16,E=8,K=2,last=2.")]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Of the run.")]
Model = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run or a model.")]
Label = Annotated[str, typer.Option("--label", metavar="COLUMN", help="The classes of a table.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave images out that cannot be read, and list them.")
]
Epochs = Annotated[float | None, typer.Option("--epochs", min=0, help="Passes over the images.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Updates, in place of epochs.")]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="Images in an update.")]
Rate = Annotated[float | None, typer.Option("--lr", min=0, help="Peak learning rate.")]
Capacity = Annotated[
    float | None, typer.Option("--capacity", min=0, help="Room of the experts in training, C.")
]
Priority = Annotated[
    bool | None,
    typer.Option("--bpr/--no-bpr", help="Fill experts by the tokens' scores in training too."),
]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=_SET)]
Augment = Annotated[
    str,
    typer.Option("--augment", help="none, shift (2 pixels), crop (with flips) or randaugment."),
]
Validation = Annotated[
    float, typer.Option("--validation", min=0, max=0.9, help="Share of the images held back.")
]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Threads that decode.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Images computed at once.")]


@app.command()
def train(
    data: Data,
    config: Line,
    out: Out,
    image_size: Annotated[int, typer.Option("--image-size", min=1, help="Pixels of a side.")] = 224,
    recipe: Annotated[
        str, typer.Option("--recipe", help="small, pretrain, ilsvrc2012 or finetune.")
    ] = "small",
    start: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="A model to go on from.")
    ] = None,
    label: Label = "label",
    skip_bad: SkipBad = False,
    augment: Augment = "crop",
    validation: Validation = 0.1,
    epochs: Epochs = None,
    steps: Steps = None,
    batch: Batch = None,
    lr: Rate = None,
    capacity: Capacity = None,
    bpr: Priority = None,
    sets: Sets = None,
    workers: Workers = 2,
    precision: cli.Precision = "float32",
    mesh: cli.MeshText = "auto",
    devices: cli.Devices = None,
    seed: cli.Seed = 0,
    fresh: cli.Fresh = False,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Train a model on images; the same command goes on with an interrupted run.

    Example: vmoe train --data photos --config S/32,E=8,K=2,last=2 --image-size 64 --out run
    """
    on = _mesh(mesh, devices)
    import equinox as eqx
    import jax

    from chapbook.vmoe.config import VMoEConfig
    from chapbook.vmoe.model import VisionTransformerMoE
    from chapbook.vmoe.saving import load

    images = _read(data, label, skip_bad, None)
    settings, training = _split_sets(sets)
    chosen = _recipe(recipe, training, epochs, steps, batch, lr, capacity, precision)
    shape = VMoEConfig.from_string(
        config, image_size=image_size, num_classes=len(images.names), **settings
    )
    if bpr is not None:
        shape = dataclasses.replace(shape, batch_priority=bpr)
    if start is not None:
        model, _ = load(start)
        if model.config != shape:
            raise Error(f"{start} is {model.config}, not {shape}", "use vmoe finetune to change it")
    else:
        made = eqx.filter_jit(lambda key: VisionTransformerMoE(shape, key=key))
        model = made(jax.random.key(seed))
    told = {"config": str(shape), "from": start and str(start)}
    _fit(model, images, chosen, told, out, augment, validation, workers, on, seed, fresh, quiet,
         json)  # fmt: skip


@app.command()
def finetune(
    model: Model,
    data: Data,
    out: Out,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Pixels of a side; the model's own.")
    ] = None,
    label: Label = "label",
    skip_bad: SkipBad = False,
    augment: Augment = "crop",
    validation: Validation = 0.1,
    epochs: Epochs = None,
    steps: Steps = None,
    batch: Batch = None,
    lr: Rate = None,
    capacity: Capacity = None,
    bpr: Priority = None,
    sets: Sets = None,
    workers: Workers = 2,
    precision: cli.Precision = "float32",
    mesh: cli.MeshText = "auto",
    devices: cli.Devices = None,
    seed: cli.Seed = 0,
    fresh: cli.Fresh = False,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Tune a model to other classes: a new head, positions resized, the paper's recipe.

    Example: vmoe finetune run --data flowers --steps 500 --batch 64 --out tuned
    """
    on = _mesh(mesh, devices)
    from chapbook.vmoe.loading import adapt
    from chapbook.vmoe.saving import load

    images = _read(data, label, skip_bad, None)
    settings, training = _split_sets(sets)
    chosen = _recipe("finetune", training, epochs, steps, batch, lr, capacity, precision)
    held, _ = load(model)
    if image_size is not None:
        settings["image_size"] = image_size
    if bpr is not None:
        settings["batch_priority"] = bpr
    tuned = adapt(held, new_head=True, num_classes=len(images.names), representation=None,
                  **settings)  # fmt: skip
    told = {"config": str(tuned.config), "from": str(model)}
    _fit(tuned, images, chosen, told, out, augment, validation, workers, on, seed, fresh, quiet,
         json)  # fmt: skip


@app.command()
def evaluate(
    model: Model,
    data: Data,
    capacity: Annotated[
        str, typer.Option("--capacity", help="Capacity factors C: 0.25,0.5,1.")
    ] = "",
    k: Annotated[str, typer.Option("--k", help="Experts of a token: 1,2.")] = "",
    bpr: Annotated[
        str, typer.Option("--bpr", help="Fill by score: yes, no or both; the model's own if unset.")
    ] = "",
    group: Annotated[
        int | None, typer.Option("--group", min=1, help="Tokens that compete for buffers.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Do not round buffers up to a multiple of 4.")
    ] = False,
    label: Label = "label",
    skip_bad: SkipBad = False,
    batch: BatchSize = 64,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="TABLE", help="Write the table here too.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="PNG", help="Draw accuracy by capacity.")
    ] = None,
    json: cli.Json = False,
) -> None:
    """Print accuracy and cost of a model, a row for each capacity, K and order of filling.

    Example: vmoe evaluate run --data photos-test --capacity 0.25,0.5,1 --bpr both
    """
    from chapbook.core.tables import write_table
    from chapbook.vmoe.evaluating import sweep
    from chapbook.vmoe.saving import load

    held, names = load(model)
    images = _read(data, label, skip_bad, names)
    orders = {"": (None,), "yes": (True,), "no": (False,), "both": (False, True)}
    if bpr not in orders:
        raise Error(f"--bpr {bpr} is none of yes, no and both")
    held = held.with_routing(group_size=group, capacity_multiple=1 if exact else None)
    table = sweep(
        held, images.at(held.config.image_size), batch_size=batch, priorities=orders[bpr],
        capacities=_numbers(capacity, "--capacity", float), selected=_numbers(k, "--k", int),
    )  # fmt: skip
    _tell(images)
    if output is not None:
        write_table(table, output)
    if plot is not None:
        from chapbook.vmoe.plots import capacity_curve

        capacity_curve(plot, table)
    _table(table, json)


@app.command()
def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Files.")],
    out: Annotated[Path, typer.Option("--out", metavar="TABLE", help="The table to write.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Classes of each image.")] = 5,
    batch: BatchSize = 64,
) -> None:
    """Write the most likely classes of image files: path, rank, class, probability.

    Example: vmoe predict run cat.jpg dog.jpg --top 3 --out predictions.parquet
    """
    import polars as pl

    from chapbook.core.tables import write_table
    from chapbook.vmoe.data import pixels
    from chapbook.vmoe.evaluating import probabilities
    from chapbook.vmoe.saving import load

    held, names = load(model)
    found = probabilities(held, pixels(images, held.config.image_size), batch_size=batch)
    top = min(top, found.shape[1])
    order = (-found).argsort(axis=1, kind="stable")[:, :top]
    told = names or [str(each) for each in range(found.shape[1])]
    rows = [
        {"path": str(path), "rank": rank + 1, "class": told[place],
         "probability": float(found[row, place])}
        for row, path in enumerate(images)
        for rank, place in enumerate(order[row])
    ]  # fmt: skip
    write_table(pl.DataFrame(rows), out)
    typer.echo(f"{len(rows)} rows in {out}", err=True)


@app.command()
def fewshot(
    model: Model,
    support: Annotated[str, typer.Option("--support", metavar="SOURCE", help=_DATA)],
    query: Annotated[str, typer.Option("--query", metavar="SOURCE", help=_DATA)],
    shots: Annotated[str, typer.Option("--shots", help="Support images per class.")] = "1,5,10,25",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Draws of the support.")] = 3,
    label: Label = "label",
    batch: BatchSize = 64,
    json: cli.Json = False,
) -> None:
    """Print how well a linear classifier on frozen features does with few images of each class.

    Example: vmoe fewshot run --support flowers --query flowers-test --shots 1,5
    """
    from chapbook.vmoe.evaluating import features
    from chapbook.vmoe.few_shot import Task, choose_penalty
    from chapbook.vmoe.few_shot import fewshot as evaluated
    from chapbook.vmoe.saving import load

    held, _ = load(model)
    first = _read(support, label, False, None)
    second = _read(query, label, False, list(first.names))
    size = held.config.image_size
    parts = (features(held, part.at(size), batch_size=batch) for part in (first, second))
    task = Task(next(parts), first.labels, next(parts), second.labels)
    counts = [each for each in _numbers(shots, "--shots", int) if each is not None]
    _table(choose_penalty(evaluated({query: task}, shots=counts, seeds=seeds)), json)


@app.command()
def routes(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="TABLE", help="The table to write.")],
    plots: Annotated[
        Path | None, typer.Option("--plots", metavar="FOLDER", help="Draw heat maps and patches.")
    ] = None,
    capacity: Annotated[
        str, typer.Option("--capacity", help="Of the pictures of kept patches: 0.25,0.5,1.")
    ] = "1,0.5,0.25",
    images: Annotated[int, typer.Option("--images", min=1, help="At most so many.")] = 1000,
    label: Label = "label",
    batch: BatchSize = 64,
    json: cli.Json = False,
) -> None:
    """Write where every patch went, and print what a choice of expert tells of the class.

    Example: vmoe routes run --data photos-test --out routes.parquet --plots pictures
    """
    from chapbook.core.tables import write_table
    from chapbook.vmoe.routes import route_table
    from chapbook.vmoe.routing_analysis import class_information
    from chapbook.vmoe.saving import load

    held, names = load(model)
    found = _read(data, label, False, names)
    size = held.config.image_size
    count = min(images, len(found))
    part = found.take(_drawn(len(found), count))
    pixels = part.at(size)[_all(count)]["image"]
    table = route_table(held, pixels, part.labels, names=found.names, batch_size=batch)
    write_table(table, out)
    if plots is not None:
        from chapbook.vmoe import plots as drawn

        few = {n: pixels[n] for n in range(min(6, count))}
        factors = [each for each in _numbers(capacity, "--capacity", float) if each is not None]
        kept = {
            c: route_table(held.with_routing(capacity_factor=c), pixels, batch_size=batch)
            for c in factors
        }
        drawn.heat_maps(plots, table, experts=held.config.num_experts)
        drawn.load_histogram(plots / "loads.png", table, experts=held.config.num_experts)
        drawn.expert_patches(plots / "experts.png", few, table)
        for layer in held.config.moe_layers:
            drawn.kept_patches(plots / f"kept_patches_{layer}.png", few, kept, layer)
    _table(class_information(table), json)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A release's prefix, an .npz file"
                                          " of a ViT, or a .safetensors file of timm.")],
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of the model to write.")],
    k: Annotated[
        int | None, typer.Option("--k", min=1, help="Experts of a token, which no shape tells.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option("--heads", min=1, help="Of timm's model, if it is not one of its.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Positions are resized to it.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", min=1, help="Of a new head, which starts at zero.")
    ] = None,
) -> None:  # fmt: skip
    """Read released weights into a folder of this package's own format.

    Example: vmoe convert vmoe_s32_last2_ilsvrc2012_randaug_light1 model --k 2
    """
    from chapbook.vmoe.loading import load_timm, load_vit_npz, load_vmoe
    from chapbook.vmoe.saving import save

    given = {"num_selected_experts": k, "image_size": image_size, "num_classes": classes}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings["new_head"] = classes is not None
    if source.endswith(".npz"):
        made = load_vit_npz(source, **settings)
    elif source.endswith(".safetensors"):
        made = load_timm(source, num_heads=heads, **settings)
    else:
        made = load_vmoe(source, **settings)
    save(made, out)
    typer.echo(f"{made.config} in {out}", err=True)


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="As for convert, or a model's"
                                          " folder.")],
    json: cli.Json = False,
) -> None:  # fmt: skip
    """Print the parameters of a checkpoint: key, name here, shape, type, whether of experts.

    Example: vmoe inspect ViT-B_16.npz
    """
    from chapbook.vmoe.loading import listed_model
    from chapbook.vmoe.official import inspect as listed

    for folder in (Path(source) / "model", Path(source)):
        if (folder / "config.json").exists():
            return _table(listed_model(folder), json)
    return _table(listed(source), json)


@app.command()
def flops(
    config: Annotated[str, typer.Argument(metavar="LINE", help="Such as B/16,E=8,K=2,every=2.")],
    image_size: Annotated[int, typer.Option("--image-size", min=1, help="Pixels of a side.")] = 224,
    classes: Annotated[int, typer.Option("--classes", min=0, help="Of the head.")] = 1000,
    sets: Sets = None,
    json: cli.Json = False,
) -> None:
    """Print what a configuration costs: parameters, activated ones, GFLOPs of an image, memory.

    Example: vmoe flops B/16,E=8,K=2,every=2 --set capacity_factor=1.5
    """
    from chapbook.vmoe.config import VMoEConfig
    from chapbook.vmoe.cost import flops as cost

    settings, _ = _split_sets(sets)
    shape = VMoEConfig.from_string(config, image_size=image_size, num_classes=classes, **settings)
    found = cost(shape)
    _show(
        {
            "config": str(shape), "parameters": found.parameters, "activated": found.activated,
            "gflops_per_image": found.flops / 1e9,
            "dense_gflops_per_image": found.dense_flops / 1e9,
            "expert_gflops_per_image": found.expert_flops / 1e9,
            "parameter_mib": found.parameter_bytes / 2**20,
        },
        json,
    )  # fmt: skip


@app.command()
def reproduce(
    run: cli.RunDir = Path("run"),
    claim: Annotated[
        list[str] | None,
        typer.Option("--claim", help="bpr, adaptive-k, routing or sparse-vs-dense; several."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Three seeds, longer, emoji too.")] = False,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="How many.")] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", min=0, help="Of a training; the table says so.")
    ] = None,
    seed: cli.Seed = 0,
    fresh: cli.Fresh = False,
    quiet: cli.Quiet = False,
) -> None:
    """Check the paper's claims on real images, and draw them.

    Example: vmoe reproduce --claim bpr --seeds 3 --run run
    """
    from chapbook.vmoe.reproduce import CLAIMS
    from chapbook.vmoe.reproduce import reproduce as check

    check(run, claims=claim or CLAIMS, full=full, seeds=seeds, epochs=epochs, seed=seed,
          fresh=fresh, quiet=quiet)  # fmt: skip


def _fit(
    model: "VisionTransformerMoE", images: "Images", recipe: "TrainConfig", told: dict[str, Any],
    out: Path, augment: str, validation: float, workers: int, mesh: "Mesh", seed: int, fresh: bool,
    quiet: bool, json: bool,
) -> None:  # fmt: skip
    import jax

    from chapbook.core.run import Run
    from chapbook.vmoe.data import operations
    from chapbook.vmoe.saving import save
    from chapbook.vmoe.training import fit

    size = model.config.image_size
    held_back = None
    if validation:
        images, held_back = images.split(validation, seed)
    if recipe.batch_size > len(images):
        raise Error(f"{len(images)} images are fewer than the batch of {recipe.batch_size}",
                    "take a smaller --batch")  # fmt: skip
    config = {
        **told, "model": dataclasses.asdict(model.config), "recipe": dataclasses.asdict(recipe),
        "augment": augment, "validation": validation, "seed": seed, "images": len(images),
    }  # fmt: skip
    with Run(out, config, fresh=fresh) as run:
        result = fit(
            model, images, recipe, key=jax.random.key(seed + 1), seed=seed, run=run, mesh=mesh,
            valid=None if held_back is None else held_back.at(size, workers=workers),
            augment=images.load(*operations(augment, size)), workers=workers, quiet=quiet,
        )  # fmt: skip
        if result.exit_code:  # an unfinished training leaves checkpoints, and no model
            raise typer.Exit(result.exit_code)
        save(result.model, out / "model", names=images.names)
        last = result.metrics.tail(1).to_dicts()[0] if result.metrics.height else {}
    _tell(images)
    names = ("loss", "accuracy", "dropped", "valid/accuracy", "valid/loss")
    shown = {name: last[name] for name in names if last.get(name) is not None}
    _show({"model": str(out / "model"), "steps": result.step, "reason": result.reason, **shown},
          json)  # fmt: skip


def _mesh(mesh: str, devices: int | None) -> "Mesh":
    from chapbook.core.meshes import mesh as mesh_of
    from chapbook.core.meshes import simulate

    if devices is not None:
        simulate(devices)
    return mesh_of(mesh)


def _read(data: str, label: str, skip_bad: bool, names: list[str] | None) -> "Images":
    from chapbook.vmoe.data import read_images

    return read_images(data, label=label, skip_bad=skip_bad, names=names)


def _tell(images: "Images") -> None:
    if told := images.told():
        typer.echo(told, err=True)
    for each in images.skipped:
        typer.echo(f"left out: {each}", err=True)


def _split_sets(sets: list[str] | None) -> tuple[dict[str, Any], list[str]]:
    """Returns the texts that set the model, as values, and those that set the training."""
    from chapbook.core.config import configure
    from chapbook.vmoe.config import VMoEConfig

    fields = {field.name for field in dataclasses.fields(VMoEConfig)}
    ours = [each for each in sets or [] if each.partition("=")[0].strip() in fields]
    base = VMoEConfig.from_string("Ti/16")
    made = configure(VMoEConfig, sets=ours, base=base)
    names = [each.partition("=")[0].strip() for each in ours]
    return {name: getattr(made, name) for name in names}, [e for e in sets or [] if e not in ours]


def _recipe(
    name: str, sets: list[str], epochs: float | None, steps: int | None, batch: int | None,
    lr: float | None, capacity: float | None, precision: str,
) -> "TrainConfig":  # fmt: skip
    from chapbook.core.config import configure
    from chapbook.vmoe.training import TrainConfig

    given = {
        "epochs": epochs, "steps": steps, "batch_size": batch, "learning_rate": lr,
        "capacity_factor": capacity, "precision": precision,
    }  # fmt: skip
    if epochs is not None and steps is not None:
        raise Error("--epochs and --steps both say how long; give one")
    changes = {key: value for key, value in given.items() if value is not None}
    if epochs is not None:
        changes["steps"] = None
    return configure(TrainConfig, sets=sets, base=TrainConfig.preset(name, **changes))


def _numbers(given: str, name: str, kind: type) -> list[Any]:
    """Returns the numbers of a text with commas; [None] of an empty one."""
    try:
        return [kind(each) for each in given.split(",")] if given else [None]
    except ValueError:
        raise Error(f"{name} {given} is no list of numbers such as 1,2") from None


def _all(count: int) -> Any:
    import numpy as np

    return np.arange(count)


def _drawn(count: int, wanted: int) -> Any:
    """Returns numbers of images in a random order, the same each time."""
    import numpy as np

    return np.random.default_rng(0).permutation(count)[:wanted]


def _table(table: Any, json: bool) -> None:
    import polars as pl

    if json:
        typer.echo(text.dumps(table.to_dicts()))
        return
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, fmt_str_lengths=80):
        typer.echo(str(table))


def _show(found: dict[str, Any], json: bool) -> None:
    if json:
        typer.echo(text.dumps(found))
        return
    for name, value in found.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        typer.echo(f"{name.replace('_', ' ')}: {shown}")
