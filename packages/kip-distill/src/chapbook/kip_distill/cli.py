"""The command `kip-distill`: parses, calls the library, prints. It never imports JAX here."""

import json as text
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chapbook.core import cli
from chapbook.core.errors import Error

if TYPE_CHECKING:
    from jax.sharding import Mesh

app = cli.app(
    "kip-distill",
    "Dataset distillation with infinitely wide networks: neural kernels, KIP and Label Solve.",
    version=version("chapbook-kip-distill"),
)
main = cli.main(app)

_DATA = (
    "mnist5k, digits, fashion-mnist, npz:FILE (arrays images, labels), table:FILE or "
    "folder:FOLDER (a folder for each class)."
)
Data = Annotated[str, typer.Option("--data", metavar="SOURCE", help=_DATA)]
Label = Annotated[
    str | None, typer.Option("--label", metavar="COLUMN", help="The classes of a table.")
]
Target = Annotated[
    list[str] | None,
    typer.Option("--target", metavar="COLUMN", help="Numbers of a table to be predicted instead."),
]
Precision = Annotated[
    str, typer.Option("--precision", help="Of kernel values: float32 or float64.")
]
Arch = Annotated[
    str, typer.Option("--arch", help="FC1, FC2, ..., ConvNet, ConvNet3, Conv4, ..., Myrtle5.")
]
PerClass = Annotated[int, typer.Option("--per-class", min=1, help="Images of each class.")]
Reg = Annotated[float, typer.Option("--reg", help="Regulariser, relative to the kernel's scale.")]
Zca = Annotated[float | None, typer.Option("--zca", min=0, help="Whiten with this regulariser.")]
SetFile = Annotated[Path, typer.Option("--set", metavar="NPZ", help="A distilled set.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="What is written.")]


@app.command()
def distill(
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Of the run.")],
    arch: Arch = "FC1",
    per_class: PerClass = 10,
    label: Label = None,
    target: Target = None,
    learn_labels: Annotated[bool, typer.Option("--learn-labels", help="Learn labels too.")] = False,
    steps: Annotated[int, typer.Option("--steps", min=1)] = 1000,
    target_batch: Annotated[int, typer.Option("--target-batch", min=1)] = 5000,
    lr: Annotated[float, typer.Option("--lr", min=0, help="Adam's learning rate.")] = 0.04,
    reg: Reg = 1e-6,
    zca: Zca = None,
    augment: Annotated[
        float,
        typer.Option(
            "--augment",
            min=0,
            max=1,
            metavar="SHARE",
            help="Of every batch that is turned, shifted and tinted.",
        ),
    ] = 0.0,
    flip: Annotated[
        bool, typer.Option("--flip", help="Mirror half of the augmented images too.")
    ] = False,
    noise: Annotated[bool, typer.Option("--noise", help="Begin with noise, not images.")] = False,
    precision: Precision = "float32",
    mesh: cli.MeshText = "",
    devices: cli.Devices = None,
    seed: cli.Seed = 0,
    fresh: cli.Fresh = False,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Distil a data set into a few images; the same command goes on with an interrupted run.

    Example: kip-distill distill --data folder:photos --per-class 1 --steps 300 --out run
    """
    from chapbook.kip_distill.augmentation import Augmentation
    from chapbook.kip_distill.distilling import distil
    from chapbook.kip_distill.kernels import named

    if flip and not augment:
        raise Error("--flip mirrors augmented images; give their share by --augment")
    found = distil(
        _read(data, label, target), named(arch), run_dir=out, arch=arch, per_class=per_class,
        learn_labels=learn_labels, steps=steps, target_batch=target_batch, lr=lr, reg=reg, zca=zca,
        augmentation=Augmentation(augment, flip=flip) if augment else None, noise=noise,
        precision=precision, mesh=_mesh(mesh, devices), seed=seed, fresh=fresh, quiet=quiet,
    )  # fmt: skip
    _show({"set": str(out / "distilled.npz"), **found.facts["train"]}, json)


@app.command("label-solve")
def label_solve(
    data: Data,
    out: Out,
    arch: Arch = "ConvNet",
    per_class: PerClass = 10,
    label: Label = None,
    target: Target = None,
    reg: Reg = 1e-6,
    zca: Zca = None,
    precision: Precision = "float32",
    mesh: cli.MeshText = "",
    devices: cli.Devices = None,
    seed: cli.Seed = 0,
    json: cli.Json = False,
) -> None:
    """Find the labels with which a few real images explain all others best.

    Example: kip-distill label-solve --data mnist5k --arch FC1 --per-class 10 --out set.npz
    """
    from chapbook.kip_distill.distilling import solve_labels
    from chapbook.kip_distill.kernels import named

    found, rank = solve_labels(
        _read(data, label, target), named(arch), arch=arch, per_class=per_class, reg=reg, zca=zca,
        precision=precision, mesh=_mesh(mesh, devices), seed=seed,
    )  # fmt: skip
    found.save(out)
    _show({"set": str(out), "images": len(found.images), "rank": rank}, json)


@app.command()
def evaluate(
    distilled: SetFile,
    data: Data,
    label: Label = None,
    arch: Annotated[str | None, typer.Option("--arch", help="If the set does not tell.")] = None,
    train: Annotated[
        bool, typer.Option("--train", help="The training part of public data.")
    ] = False,
    mesh: cli.MeshText = "",
    devices: cli.Devices = None,
    json: cli.Json = False,
) -> None:
    """Score the kernel regression on a distilled set: accuracy, squared error, and each class.

    A set that predicts numbers is scored on the columns that it was made for.

    Example: kip-distill evaluate --set run/distilled.npz --data mnist5k
    """
    from chapbook.kip_distill import data as source
    from chapbook.kip_distill.distilled import DistilledSet
    from chapbook.kip_distill.distilling import scores

    held = DistilledSet.load(distilled)
    test = None if train else source.read_test(data)
    targets = held.names if held.targets is not None and not label else ()
    names = held.facts.get("names")
    examples = test or source.read(data, label=label, targets=targets, names=names)
    _show(scores(held, examples, arch=arch, mesh=_mesh(mesh, devices)), json)


@app.command()
def transfer(
    distilled: SetFile,
    data: Data,
    label: Label = None,
    arch: Annotated[
        str | None, typer.Option("--arch", help="Of the network, if not the set's own.")
    ] = None,
    width: Annotated[int, typer.Option("--width", min=1, help="Channels or units.")] = 256,
    steps: Annotated[int, typer.Option("--steps", min=1)] = 5000,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per step.")] = 100,
    lr_factor: Annotated[
        str, typer.Option("--lr-factor", help="Of the greatest stable rate; several: 0.5,1,2.")
    ] = "1",
    l2: Annotated[str, typer.Option("--l2", help="Regulariser; several: 0,0.001.")] = "0.001",
    validation: Annotated[
        float, typer.Option("--validation", help="Share of the data that chooses among several.")
    ] = 0.1,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="FOLDER", help="Of the run, new or continued.")
    ] = None,
    mesh: cli.MeshText = "",
    devices: cli.Devices = None,
    seed: cli.Seed = 0,
    fresh: cli.Fresh = False,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Train a network of finite width on a distilled set, and test it on real data.

    Example: kip-distill transfer --set run/distilled.npz --data mnist5k --width 128 --steps 500
    """
    from chapbook.kip_distill import data as source
    from chapbook.kip_distill.distilled import DistilledSet
    from chapbook.kip_distill.kernels import named
    from chapbook.kip_distill.transferring import transfer

    held = DistilledSet.load(distilled)
    name = arch or held.facts.get("arch")
    if not name:
        raise Error("the set does not tell its kernel; name that of the network by --arch")
    found = transfer(
        held, named(name), source.read(data, label=label, names=held.facts.get("names")),
        source.read_test(data), width=width, steps=steps, batch=batch,
        factors=_numbers("--lr-factor", lr_factor), l2=_numbers("--l2", l2), validation=validation,
        run_dir=run, mesh=_mesh(mesh, devices), seed=seed, fresh=fresh, quiet=quiet,
    )  # fmt: skip
    facts = {"arch": name, "width": width, "steps": steps, **found.facts}
    if not json:
        several = len(facts.pop("trials")) > 1
        for trial in found.trials if several else ():
            typer.echo(f"trial {trial}")
    _show(facts, json)


@app.command()
def predict(
    distilled: SetFile,
    source: Annotated[
        str, typer.Option("--input", metavar="SOURCE", help="npz:FILE, table:FILE, folder:FOLDER.")
    ],
    out: Out,
    arch: Annotated[str | None, typer.Option("--arch", help="If the set does not tell.")] = None,
    mesh: cli.MeshText = "",
    devices: cli.Devices = None,
) -> None:
    """Write the class that a distilled set predicts for every input, and the scores of all classes.

    Of a set that predicts numbers, these are written.

    Example: kip-distill predict --set run/distilled.npz --input folder:new --out classes.csv
    """
    from chapbook.core.tables import write_table
    from chapbook.kip_distill.data import read_inputs
    from chapbook.kip_distill.distilled import DistilledSet
    from chapbook.kip_distill.distilling import predicted

    held = DistilledSet.load(distilled)
    x, table = read_inputs(source, held.facts.get("features", ()))
    write_table(predicted(held, x, table, arch=arch, mesh=_mesh(mesh, devices)), out)


@app.command()
def inspect(
    distilled: Annotated[Path, typer.Argument(metavar="NPZ", help="A distilled set.")],
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="PNG", help="Write its images.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--table", metavar="TABLE", help="Write its rows.")
    ] = None,
    json: cli.Json = False,
) -> None:
    """Tell how a distilled set was made, and write its images as a picture or a table."""
    from chapbook.core.tables import write_table
    from chapbook.kip_distill.distilled import DistilledSet
    from chapbook.kip_distill.sheet import write_sheet

    held = DistilledSet.load(distilled)
    if sheet:
        if held.images.ndim != 4:
            raise Error(f"{distilled}: its inputs are no images; write them with --table")
        write_sheet(sheet, held.view(), held.classes)
    if table:
        write_table(held.table(), table)
    shape = {"inputs": list(held.images.shape), "labels": list(held.labels.shape)}
    _show(shape | held.facts, json)


@app.command()
def kernel(
    x: Annotated[str, typer.Option("--x", metavar="SOURCE", help="npz:FILE, table:FILE, ...")],
    out: Out,
    arch: Arch = "ConvNet",
    y: Annotated[str | None, typer.Option("--y", metavar="SOURCE", help="Other inputs.")] = None,
    get: Annotated[str, typer.Option("--get", help="ntk, nngp or both: ntk,nngp.")] = "ntk",
    rows: Annotated[int, typer.Option("--rows", min=1, help="Of a block that is kept.")] = 256,
    precision: Precision = "float32",
    mesh: cli.MeshText = "",
    devices: cli.Devices = None,
    quiet: cli.Quiet = False,
) -> None:
    """Write kernel matrices; what an interrupted command has finished is not computed again.

    Inputs are taken as they are read, without preprocessing.

    Example: kip-distill kernel --x npz:images.npz --arch ConvNet --get ntk,nngp --out K.npz
    """
    from chapbook.kip_distill.data import read_inputs
    from chapbook.kip_distill.kernels import named
    from chapbook.kip_distill.matrices import write_matrices

    first = read_inputs(x)[0]
    second = read_inputs(y)[0] if y else None
    write_matrices(
        out, named(arch), first, second, arch=arch, get=tuple(get.split(",")), rows=rows,
        precision=precision, mesh=_mesh(mesh, devices),
        watch=lambda blocks: cli.progress(blocks, "kernel", quiet=quiet),
    )  # fmt: skip


@app.command()
def reproduce(
    run: cli.RunDir = Path("run"),
    full: Annotated[bool, typer.Option("--full", help="Three seeds, more steps.")] = False,
    seed: cli.Seed = 0,
    fresh: cli.Fresh = False,
    quiet: cli.Quiet = False,
) -> None:
    """Show the paper's claim on real images: ten learned ones beat a hundred real ones."""
    from chapbook.kip_distill.reproduce import reproduce as show

    show(run, full=full, seed=seed, fresh=fresh, quiet=quiet)


def _read(data: str, label: str | None, targets: list[str] | None) -> Any:
    from chapbook.kip_distill.data import read

    return read(data, label=label, targets=targets or ())


def _numbers(option: str, given: str) -> list[float]:
    try:
        return [float(each) for each in given.split(",")]
    except ValueError:
        raise Error(f"{option} {given}: give a number, or several with commas between") from None


def _mesh(axes: str, devices: int | None) -> "Mesh | None":
    from chapbook.core.meshes import mesh, simulate

    if devices:
        simulate(devices)
    return mesh(axes) if axes else None


def _show(found: dict[str, Any], json: bool) -> None:
    if json:
        typer.echo(text.dumps(found))
        return
    for name, value in found.items():
        typer.echo(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
