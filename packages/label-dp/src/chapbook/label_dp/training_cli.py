"""The commands that train, predict, evaluate and reproduce."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from chapbook.core import cli
from chapbook.core.errors import Error

RunFolder = Annotated[Path, typer.Option("--run", metavar="FOLDER", help="A trained run's folder.")]
Input = Annotated[
    Path,
    typer.Option(
        "--input", metavar="FILE", help="A table, an npz, or a folder of images by class."
    ),
]


def add(app: typer.Typer) -> None:
    """Adds the commands to the package's app."""
    app.command()(train)
    app.command()(predict)
    app.command()(evaluate)
    app.command()(reproduce)


def train(
    input: Input,  # noqa: A002
    label: Annotated[str, typer.Option("--label", help="The private column.")],
    classes: Annotated[str, typer.Option("--classes", help="The declared classes: a,b,c.")],
    epsilon: Annotated[float, typer.Option("--epsilon", help="The budget of every label.")],
    out: Annotated[Path, typer.Option("--out", help="The run's folder; made or continued.")],
    model: Annotated[
        str, typer.Option("--model", help="mlp, convnet, resnet18 or logistic.")
    ] = "mlp",
    stages: Annotated[
        str, typer.Option("--stages", help="The share of the records in each stage.")
    ] = "0.65,0.35",
    features: Annotated[
        str, typer.Option("--features", help="Columns to learn from; all numeric ones if empty.")
    ] = "",
    ids: Annotated[
        str, typer.Option("--id-columns", help="Columns that identify a record; no features.")
    ] = "",
    image: Annotated[
        str | None, typer.Option("--image", help="A column of encoded images.")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option("--ledger", help="A ledger file; the run's own by default.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Settings as TOML.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, such as epochs=30.")
    ] = None,
    seed: cli.Seed = 0,
    noise_seed: Annotated[
        int | None, typer.Option("--noise-seed", help="Repeatable noise: NOT PRIVATE; for tests.")
    ] = None,
    mesh: cli.MeshText = "auto",
    devices: cli.Devices = None,
    quiet: cli.Quiet = False,
    as_json: cli.Json = False,
) -> None:
    """Trains a classifier on labels made private in stages; a killed run goes on.

    Example: label-dp train --input d.parquet --label clicked --classes 0,1 --epsilon 2 --out run
    """
    from chapbook.core import configure, simulate
    from chapbook.core import mesh as mesh_of

    if devices:
        simulate(devices)
    from chapbook.label_dp.runs import Settings, train_file

    settings = configure(Settings, config, sets or ())
    trained = train_file(
        input,
        out,
        label=label,
        classes=_names(classes),
        model=model,  # pyright: ignore[reportArgumentType]
        epsilon=epsilon,
        stages=_numbers("--stages", stages),
        settings=settings,
        features=_names(features),
        id_columns=_names(ids),
        image=image,
        ledger=ledger,
        seed=seed,
        noise_seed=noise_seed,
        mesh=mesh_of(mesh),
        quiet=quiet,
    )
    certificate = trained.certificate.to_dict()
    if as_json:
        _print({"run": str(out), "stages": trained.report.to_dicts(), "certificate": certificate})
    else:
        typer.echo(f"{certificate['guarantee']}; model and certificate are in {out}")
        typer.echo(str(trained.report))


def predict(
    run: RunFolder,
    input: Input,  # noqa: A002
    output: cli.TableOut,
    keep: Annotated[str, typer.Option("--keep", help="Columns to carry along: id,name.")] = "",
    as_json: cli.Json = False,
) -> None:
    """Predicts the class of each record of a file.

    Example: label-dp predict --run run --input new.parquet --output predictions.parquet
    """
    from chapbook.label_dp.runs import predict_file

    table = predict_file(run, input, output, keep=_names(keep))
    if as_json:
        _print({"output": str(output), "records": table.height})
    elif str(output) != "-":
        typer.echo(f"{table.height} predictions are in {output}")


def evaluate(
    run: RunFolder,
    input: Input,  # noqa: A002
    label: Annotated[str, typer.Option("--label", help="The column of the label.")],
    clean: Annotated[
        bool, typer.Option("--clean", help="Take the labels as they are: not private.")
    ] = False,
    private_epsilon: Annotated[
        float | None,
        typer.Option("--private-epsilon", help="Randomise each label once, at this budget."),
    ] = None,
    noise_seed: Annotated[
        int | None, typer.Option("--noise-seed", help="Repeatable noise: NOT PRIVATE; for tests.")
    ] = None,
    as_json: cli.Json = False,
) -> None:
    """Measures a model's accuracy on a file.

    Example: label-dp evaluate --run run --input test.parquet --label y --private-epsilon 1
    """
    from chapbook.label_dp.runs import evaluate_file

    if clean == (private_epsilon is not None):
        raise Error(
            "say how the labels may be looked at: --clean, which is not private, or"
            " --private-epsilon E"
        )
    found = evaluate_file(run, input, label=label, epsilon=private_epsilon, noise_seed=noise_seed)
    if as_json:
        _print(found)
        return
    kind = "private" if found["private"] else "NOT PRIVATE"
    typer.echo(
        f"accuracy {found['accuracy']:.4f} +- {found['standard_error']:.4f}"
        f" on {found['records']} records ({kind})"
    )


def reproduce(
    run: cli.RunDir = Path("label-dp-reproduce"),
    full: Annotated[bool, typer.Option("--full", help="Five seeds instead of three.")] = False,
    parts: Annotated[
        str, typer.Option("--parts", help="Of images,ratings,regression,mechanism.")
    ] = "images,ratings,regression,mechanism",
    fresh: cli.Fresh = False,
    quiet: cli.Quiet = False,
) -> None:
    """Holds the paper's claims against public data at desk scale; exits 3 if one does not hold."""
    from chapbook.label_dp.reproduce import reproduce as do

    do(run, full=full, parts=_names(parts), fresh=fresh, quiet=quiet)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise Error(f"{option} {text} is not a list of numbers such as 0.65,0.35") from None


def _print(values: Any) -> None:
    typer.echo(json.dumps(values))
