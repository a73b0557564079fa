"""The command line `label-dp`: parses, calls the library, prints. It never imports JAX here."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chapbook.core import cli
from chapbook.core.errors import Error

if TYPE_CHECKING:
    from chapbook.label_dp.certificate import Certificate
    from chapbook.label_dp.labellers import Labeller

app = cli.app(
    "label-dp",
    "Private labels with an exact guarantee, and training on them. Protected are the labels, each"
    " by itself; not the features, not who is in the table, and not what features tell of labels.",
    version=metadata.version("chapbook-label-dp"),
)
main = cli.main(app)

Input = Annotated[
    Path, typer.Option("--input", metavar="TABLE", help="A csv, tsv, parquet, ipc or jsonl file.")
]
Output = Annotated[
    Path, typer.Option("--output", metavar="TABLE", help="The file to write; it must not exist.")
]
Label = Annotated[
    str, typer.Option("--label", metavar="COLUMN", help="The private column; it is not written.")
]
Epsilon = Annotated[
    float | None,
    typer.Option("--epsilon", help="The budget of each label, or of each group of labels."),
]
CertificateOut = Annotated[
    Path | None,
    typer.Option("--certificate", metavar="FILE", help="Write the certificate as JSON."),
]
LedgerFile = Annotated[
    Path | None,
    typer.Option(
        "--ledger", metavar="FILE", help="Charge this ledger, and refuse records charged before."
    ),
]
Compose = Annotated[
    bool, typer.Option("--compose", help="Add to what records have spent in the ledger.")
]
Ids = Annotated[
    str | None,
    typer.Option("--id-column", metavar="A,B", help="Public columns that name a record."),
]
Group = Annotated[
    str | None,
    typer.Option("--group-column", metavar="COLUMN", help="Records of one value share a budget."),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", help="Repeatable noise, which is NOT private.")
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Threads that draw; one per core if unset.")
]

TrainInput = Annotated[
    Path,
    typer.Option(
        "--input", metavar="FILE", help="A table, an npz, or a folder of images by class."
    ),
]
TrainedRun = Annotated[
    Path, typer.Option("--run", metavar="FOLDER", help="A trained run's folder.")
]
NoiseSeed = Annotated[
    int | None, typer.Option("--noise-seed", help="Repeatable noise, which is NOT private.")
]


@app.command()
def privatize(
    input: Input,  # noqa: A002
    label: Label,
    output: Output,
    epsilon: Epsilon = None,
    epsilon_column: Annotated[
        str | None,
        typer.Option("--epsilon-column", metavar="COLUMN", help="A public budget per record."),
    ] = None,
    prior_columns: Annotated[
        str | None,
        typer.Option("--prior-columns", metavar="p0..p9", help="Probabilities, in class order."),
    ] = None,
    prior: Annotated[
        Path | None,
        typer.Option("--prior", metavar="TABLE", help="The same in a table: a row each, or one."),
    ] = None,
    cluster_features: Annotated[
        str | None,
        typer.Option("--cluster-features", metavar="A,B", help="Public features to cluster by."),
    ] = None,
    clusters: Annotated[
        int, typer.Option("--clusters", min=1, help="Clusters; 1 is the global histogram.")
    ] = 1,
    prior_epsilon: Annotated[
        float | None,
        typer.Option("--prior-epsilon", help="The part of epsilon that the histogram spends."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", metavar="a,b,c", help="The classes; 0..9 is a range.")
    ] = None,
    classes_from_public: Annotated[
        Path | None,
        typer.Option("--classes-from-public", metavar="FILE", help="A public list of the classes."),
    ] = None,
    accept_class_leak: Annotated[
        bool,
        typer.Option("--accept-class-leak", help="Take the classes from the private labels."),
    ] = False,
    group_column: Group = None,
    id_column: Ids = None,
    missing: Annotated[
        str,
        typer.Option("--missing", metavar="refuse|drop|class", help="What a missing label does."),
    ] = "refuse",
    normalize_prior: Annotated[
        bool, typer.Option("--normalize-prior", help="Divide rows of the prior by their sum.")
    ] = False,
    certificate: CertificateOut = None,
    ledger: LedgerFile = None,
    compose: Compose = False,
    seed: SeedOption = None,
    workers: Workers = None,
    quiet: cli.Quiet = False,
    as_json: cli.Json = False,
) -> None:
    """Write a table with private labels and a certificate of what was spent.

    label-dp privatize --input d.parquet --label y --epsilon 1 --classes 0..9
    --prior-columns p0..p9 --output private.parquet --certificate cert.json
    """
    from chapbook.label_dp.classes import Classes
    from chapbook.label_dp.labellers import ClassLabeller
    from chapbook.label_dp.sources import ClusterPrior, ColumnsPrior, FilePrior

    if missing not in ("refuse", "drop", "class"):
        raise Error(f"--missing {missing} is unknown; it is refuse, drop or class")
    sources = (prior_columns, prior, prior_epsilon)
    if sum(source is not None for source in sources) > 1:
        raise Error("give one prior: --prior-columns, --prior, or --prior-epsilon")
    if prior_epsilon is None and (cluster_features is not None or clusters != 1):
        raise Error("clusters need --prior-epsilon: their label histogram has to be noisy")
    if clusters > 1 and cluster_features is None:
        raise Error("--clusters needs --cluster-features")
    where = None
    if prior_columns is not None:
        where = ColumnsPrior(tuple(_items(prior_columns)))
    elif prior is not None:
        where = FilePrior(prior)
    elif prior_epsilon is not None:
        where = ClusterPrior(tuple(_items(cluster_features)), clusters, prior_epsilon)
    names, warnings = _classes(input, label, classes, classes_from_public, accept_class_leak)
    _privatize(
        ClassLabeller(
            Classes(names, with_missing=missing == "class"), where is not None, normalize_prior
        ),
        as_json=as_json,
        quiet=quiet,
        files=(input, output, certificate, ledger),
        compose=compose,
        workers=workers,
        label=label,
        epsilon=epsilon,
        epsilon_column=epsilon_column,
        prior=where,
        group_column=group_column,
        id_columns=tuple(_items(id_column)),
        missing="drop" if missing == "drop" else "refuse",
        seed=seed,
        warnings=warnings,
    )


@app.command("regress-privatize")
def regress_privatize(
    input: Input,  # noqa: A002
    label: Label,
    output: Output,
    range_: Annotated[
        str,
        typer.Option("--range", metavar="LOW,HIGH", help="The possible numbers, known beforehand."),
    ],
    epsilon: Epsilon = None,
    loss: Annotated[
        str,
        typer.Option(
            "--loss", metavar="squared|absolute|poisson", help="The loss that the bins minimise."
        ),
    ] = "squared",
    prior: Annotated[
        Path | None,
        typer.Option(
            "--prior", metavar="TABLE", help="A public table: value and probability, or values."
        ),
    ] = None,
    prior_epsilon: Annotated[
        float | None,
        typer.Option("--prior-epsilon", help="The part of epsilon for a histogram of the labels."),
    ] = None,
    cells: Annotated[
        int, typer.Option("--cells", min=2, help="Equal cells of the range in a histogram.")
    ] = 256,
    clip: Annotated[
        bool, typer.Option("--clip", help="Take numbers outside the range for the nearer end.")
    ] = False,
    group_column: Group = None,
    id_column: Ids = None,
    missing: Annotated[
        str, typer.Option("--missing", metavar="refuse|drop", help="What a missing label does.")
    ] = "refuse",
    certificate: CertificateOut = None,
    ledger: LedgerFile = None,
    compose: Compose = False,
    seed: SeedOption = None,
    workers: Workers = None,
    quiet: cli.Quiet = False,
    as_json: cli.Json = False,
) -> None:
    """Write a table with private numbers: randomised response on the best bins.

    label-dp regress-privatize --input d.parquet --label income --range 0,200000 --epsilon 1
    --prior-epsilon 0.1 --output private.parquet
    """
    from chapbook.core.tables import read_table
    from chapbook.label_dp.bins import Loss
    from chapbook.label_dp.numbers import NumberLabeller, public_atoms
    from chapbook.label_dp.sources import ClusterPrior

    if missing not in ("refuse", "drop"):
        raise Error(f"--missing {missing} is unknown; it is refuse or drop")
    if prior is not None and prior_epsilon is not None:
        raise Error("give one prior: --prior or --prior-epsilon")
    if epsilon is None:
        raise Error("give --epsilon")
    low, high = _range(range_)
    losses = {each.value: each for each in Loss}
    if loss not in losses:
        raise Error(f"--loss {loss} is unknown; it is {', '.join(losses)}")
    atoms, weights = None, None
    if prior is not None:
        atoms, weights = public_atoms(read_table(prior), str(prior), low, high, cells)
    _privatize(
        NumberLabeller(low, high, losses[loss], cells, atoms, weights, clip),
        as_json=as_json,
        quiet=quiet,
        files=(input, output, certificate, ledger),
        compose=compose,
        workers=workers,
        label=label,
        epsilon=epsilon,
        prior=None if prior_epsilon is None else ClusterPrior((), 1, prior_epsilon),
        group_column=group_column,
        id_columns=tuple(_items(id_column)),
        missing="drop" if missing == "drop" else "refuse",
        seed=seed,
    )


@app.command()
def plan(
    prior: Annotated[
        Path,
        typer.Option("--prior", metavar="TABLE", help="Probabilities: a row each, or one row."),
    ],
    epsilon: Annotated[
        str, typer.Option("--epsilon", metavar="0.1,1,2", help="The budgets to compare.")
    ] = "0.1,0.5,1,2,4",
    target_accuracy: Annotated[
        float | None,
        typer.Option("--target-accuracy", help="Find the budget for this share of true labels."),
    ] = None,
    prior_columns: Annotated[
        str | None,
        typer.Option("--prior-columns", metavar="p0..p9", help="Its columns; all if unset."),
    ] = None,
    normalize_prior: Annotated[
        bool, typer.Option("--normalize-prior", help="Divide rows of the prior by their sum.")
    ] = False,
    as_json: cli.Json = False,
) -> None:
    """Show what a budget would buy, before any of it is spent.

    label-dp plan --prior prior.parquet --epsilon 0.1,0.5,1,2 --target-accuracy 0.9
    """
    from chapbook.label_dp import estimation
    from chapbook.label_dp.priors import from_table

    columns = None if prior_columns is None else _items(prior_columns)
    table = from_table(prior, columns, normalize=normalize_prior)
    rows = [row._asdict() for row in estimation.plan(table, _numbers(epsilon, "--epsilon"))]
    result: dict[str, Any] = {"plan": rows}
    if target_accuracy is not None:
        result["epsilon for target"] = estimation.epsilon_for_accuracy(table, target_accuracy)
    if as_json:
        _print_json(result)
        return
    typer.echo("epsilon  expected accuracy  mean k  without prior    gain")
    for row in rows:
        typer.echo(
            f"{row['epsilon']:7g}  {row['expected_accuracy']:17.4f}  {row['mean_k']:6.2f}"
            f"  {row['without_prior']:13.4f}  {row['gain']:+.4f}"
        )
    if target_accuracy is not None:
        typer.echo(f"epsilon {result['epsilon for target']:.4g} reaches {target_accuracy:g}")


@app.command()
def verify(
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", metavar="FILE", help="A certificate, or its Parquet file."),
    ] = None,
    mechanism: Annotated[
        str | None,
        typer.Option("--mechanism", metavar="NAME", help="rr-with-prior, rr-top-k, ..."),
    ] = None,
    classes: Annotated[int, typer.Option("--classes", min=2, help="K.")] = 10,
    epsilon: Annotated[float, typer.Option("--epsilon", help="The claim.")] = 1.0,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Random priors.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", help="Of the random priors.")] = 0,
    quiet: cli.Quiet = False,
    as_json: cli.Json = False,
) -> None:
    """Check a certificate, or prove a mechanism's ratio in exact arithmetic.

    label-dp verify --certificate cert.json

    label-dp verify --mechanism rr-with-prior --classes 100 --epsilon 1 --trials 10000
    """
    if (certificate is None) == (mechanism is None):
        raise Error("give either --certificate or --mechanism")
    if certificate is not None:
        from chapbook.label_dp.certificate import Certificate
        from chapbook.label_dp.checks import verify_certificate

        found = Certificate.load(certificate)
        verify_certificate(found)
        _show(found, as_json=as_json)
        return
    from dataclasses import asdict

    from chapbook.label_dp.checks import verify_mechanism

    steps = cli.progress(range(trials), "proofs", total=trials, quiet=quiet)
    proofs = verify_mechanism(mechanism or "", classes, epsilon, steps, seed)
    if as_json:
        _print_json({**asdict(proofs), "holds": proofs.holds})
    else:
        typer.echo(
            f"{proofs.mechanism}, K = {classes}, epsilon {epsilon:g}: {proofs.held} of {trials}"
            f" exact proofs hold; largest ratio {proofs.largest_ratio:.15g}"
        )
    if not proofs.holds:
        raise typer.Exit(3)


@app.command()
def audit(
    classes: Annotated[int, typer.Option("--classes", min=2, help="K.")] = 10,
    epsilon: Annotated[float, typer.Option("--epsilon", help="The claim.")] = 1.0,
    trials: Annotated[int, typer.Option("--trials", min=2, help="Runs per label.")] = 1_000_000,
    labels: Annotated[str, typer.Option("--labels", help="The labels that differ.")] = "0,1",
    prior: Annotated[
        str | None, typer.Option("--prior", metavar="0.5,0.3,0.2", help="The record's prior.")
    ] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the bound.")] = 0.99,
    as_json: cli.Json = False,
) -> None:
    """Bound epsilon from below by running the privatiser on adjacent inputs.

    label-dp audit --classes 10 --epsilon 1 --trials 1000000
    """
    from chapbook.label_dp.checks import audit_privatizer

    pair = _numbers(labels, "--labels")
    if len(pair) != 2 or any(value != int(value) for value in pair):
        raise Error(f"--labels {labels} must be two classes, such as 0,1")
    row = None if prior is None else _numbers(prior, "--prior")
    found = audit_privatizer(
        classes,
        epsilon,
        labels=(int(pair[0]), int(pair[1])),
        prior=row,
        trials=trials,
        confidence=confidence,
    )
    refuted = found.contradicts(epsilon)
    if as_json:
        _print_json({**found._asdict(), "epsilon": epsilon, "refuted": refuted})
    else:
        typer.echo(
            f"epsilon is at least {found.epsilon_lower_bound:.4f} with confidence {confidence:g};"
            f" claimed is {epsilon:g}: {'REFUTED' if refuted else 'not refuted'}"
        )
    if refuted:
        raise typer.Exit(3)


@app.command()
def train(
    input: TrainInput,  # noqa: A002
    label: Annotated[
        str,
        typer.Option("--label", metavar="COLUMN", help="The private column; `folder` for images."),
    ],
    epsilon: Annotated[float, typer.Option("--epsilon", help="The budget of each label.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="The run's folder; made or continued.")
    ],
    classes: Annotated[
        str | None, typer.Option("--classes", metavar="a,b,c", help="The classes; 0..9 is a range.")
    ] = None,
    classes_from_public: Annotated[
        Path | None,
        typer.Option("--classes-from-public", metavar="FILE", help="A public list of the classes."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="mlp|convnet|resnet18|logistic", help="The model.")
    ] = "mlp",
    stages: Annotated[
        str, typer.Option("--stages", metavar="0.65,0.35", help="The share of records per stage.")
    ] = "0.65,0.35",
    features: Annotated[
        str | None, typer.Option("--features", metavar="A,B", help="Columns to learn from.")
    ] = None,
    id_column: Ids = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="COLUMN", help="A column of encoded images.")
    ] = None,
    ledger: LedgerFile = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings as TOML.")
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting: epochs=30.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the training; the noise is never seeded by it.")
    ] = 0,
    noise_seed: NoiseSeed = None,
    mesh: cli.MeshText = "auto",
    devices: cli.Devices = None,
    quiet: cli.Quiet = False,
    as_json: cli.Json = False,
) -> None:
    """Train a classifier in stages on labels made private; a run that was killed goes on.

    label-dp train --input d.parquet --label clicked --classes 0,1 --epsilon 2 --out run
    """
    from chapbook.core import configure, simulate
    from chapbook.core import mesh as mesh_of

    names, _ = _classes(input, label, classes, classes_from_public, accept_leak=False)
    if devices:
        simulate(devices)
    from chapbook.label_dp.runs import Settings, train_file

    trained = train_file(
        input,
        out,
        label=label,
        classes=names,
        model=model,
        epsilon=epsilon,
        stages=_numbers(stages, "--stages"),
        settings=configure(Settings, config, sets or ()),
        features=_items(features),
        id_columns=_items(id_column),
        image=image,
        ledger=ledger,
        seed=seed,
        noise_seed=noise_seed,
        mesh=mesh_of(mesh),
        quiet=quiet,
    )
    certificate = trained.certificate
    if as_json:
        report = trained.report.to_dicts()
        _print_json({"run": str(out), "stages": report, "certificate": certificate.to_dict()})
        return
    _show(certificate, as_json=False)
    for row in trained.report.iter_rows(named=True):
        typer.echo(
            f"  {row['stage']}: {row['records']} labels among {row['mean_k']:.2f} classes each,"
            f" {row['earlier_kept']} earlier ones kept"
        )
    typer.echo(f"model, certificate and ledger are in {out}")


@app.command()
def predict(
    run: TrainedRun,
    input: TrainInput,  # noqa: A002
    output: cli.TableOut,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="A,B", help="Columns to carry along.")
    ] = None,
    as_json: cli.Json = False,
) -> None:
    """Predict the class of each record of a file.

    label-dp predict --run run --input new.parquet --output predictions.parquet
    """
    from chapbook.label_dp.runs import predict_file

    table = predict_file(run, input, output, keep=_items(keep))
    if as_json:
        _print_json({"output": str(output), "records": table.height})
    elif str(output) != "-":
        typer.echo(f"{table.height} predictions are in {output}")


@app.command()
def evaluate(
    run: TrainedRun,
    input: TrainInput,  # noqa: A002
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="COLUMN", help="The label; as in training if unset."),
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Take the labels as they are, which is NOT private.")
    ] = False,
    private_epsilon: Annotated[
        float | None,
        typer.Option("--private-epsilon", help="Randomise each label once, with this budget."),
    ] = None,
    noise_seed: NoiseSeed = None,
    as_json: cli.Json = False,
) -> None:
    """Measure a model's accuracy on a file.

    label-dp evaluate --run run --input test.parquet --private-epsilon 1
    """
    from chapbook.label_dp.runs import evaluate_file

    if clean == (private_epsilon is not None):
        raise Error("give either --private-epsilon, or --clean, which is not private")
    found = evaluate_file(run, input, label=label, epsilon=private_epsilon, noise_seed=noise_seed)
    if as_json:
        _print_json(found)
        return
    kind = "private" if found["private"] else "NOT PRIVATE"
    typer.echo(
        f"accuracy {found['accuracy']:.4f} +- {found['standard_error']:.4f}"
        f" on {found['records']} records ({kind})"
    )


@app.command()
def reproduce(
    run: cli.RunDir = Path("label-dp-reproduce"),
    full: Annotated[bool, typer.Option("--full", help="Five seeds instead of three.")] = False,
    parts: Annotated[
        str, typer.Option("--parts", metavar="A,B", help="Which parts to run.")
    ] = "images,ratings,regression,mechanism",
    fresh: cli.Fresh = False,
    quiet: cli.Quiet = False,
) -> None:
    """Hold the paper's claims against public data at desk scale; exits 3 if one does not hold.

    label-dp reproduce --run reproduced
    """
    from chapbook.label_dp import reproduce as reproduction

    reproduction.reproduce(run, full=full, parts=_items(parts), fresh=fresh, quiet=quiet)


# ------------------------------------------------------------------------------- helpers


def _privatize(
    labeller: "Labeller",
    *,
    as_json: bool,
    quiet: bool,
    files: tuple[Path, Path, Path | None, Path | None],
    compose: bool,
    workers: int | None,
    **request: Any,
) -> None:
    from chapbook.label_dp.ledger import PrivacyLedger
    from chapbook.label_dp.privatize import privatize_table
    from chapbook.label_dp.request import Request

    source, output, certificate, ledger = files
    wanted = Request(labeller=labeller, **request)
    if compose and ledger is None:
        raise Error("--compose adds up in a ledger; pass --ledger too")
    with _rows(quiet) as progress:
        made = privatize_table(
            source,
            output,
            wanted,
            certificate=certificate,
            ledger=None if ledger is None else PrivacyLedger(ledger),
            compose=compose,
            workers=workers,
            progress=progress,
        )
    _show(made, as_json=as_json)


def _show(certificate: "Certificate", *, as_json: bool) -> None:
    content = certificate.to_dict()
    for warning in certificate.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        _print_json(content)
        return
    typer.echo(f"{content['guarantee']} ({content['adjacency']})")
    for spend in certificate.spends:
        typer.echo(f"  epsilon {spend.epsilon:g}: {spend.mechanism}, {spend.records} labels")
    if certificate.group:
        group = certificate.group
        typer.echo(
            f"  epsilon {certificate.epsilon:g} is shared by the records of one {group['column']},"
            f" at most {group['largest']}"
        )
    proof = certificate.verification
    typer.echo(f"  ratio holds: {proof.get('holds')} ({proof.get('method')})")


@contextmanager
def _rows(quiet: bool) -> Iterator[Callable[[int], Any]]:
    """Shows how many rows have been written, on a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} rows"), TimeElapsedColumn())
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=None)
        yield lambda rows: bar.update(task, completed=rows)


def _classes(
    table: Path, label: str, classes: str | None, public: Path | None, accept_leak: bool
) -> tuple[list[str], tuple[str, ...]]:
    """Returns the declared classes, and what the certificate has to say about them."""
    from chapbook.label_dp.classes import observed_classes, read_classes

    if sum((classes is not None, public is not None, accept_leak)) > 1:
        raise Error("give one of --classes, --classes-from-public and --accept-class-leak")
    if classes is not None:
        return _items(classes), ()
    if public is not None:
        return read_classes(public), ()
    if accept_leak:
        leak = "the classes were taken from the private labels: which ones occur is not protected"
        return observed_classes(table, label), (leak,)
    raise Error(
        "the classes are not declared; the private labels themselves would show which ones occur",
        "pass --classes a,b,c or --classes-from-public FILE; --accept-class-leak takes them from"
        " the labels nevertheless",
    )


def _items(text: str | None) -> list[str]:
    """Returns the items of a list such as `a,b` or `p0..p9`."""
    items = []
    for item in (text or "").split(","):
        span = re.fullmatch(r"(.*?)(\d+)\.\.(.*?)(\d+)", item.strip())
        if span and span[1] == span[3] and int(span[2]) <= int(span[4]):
            items += [f"{span[1]}{n}" for n in range(int(span[2]), int(span[4]) + 1)]
        elif item.strip():
            items.append(item.strip())
    return items


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(item) for item in text.split(",")]
    except ValueError:
        raise Error(f"{option} {text} must be numbers with commas between them") from None


def _range(text: str) -> tuple[float, float]:
    ends = _numbers(text, "--range")
    if len(ends) != 2:
        raise Error(f"--range {text} must be LOW,HIGH")
    return ends[0], ends[1]


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content))


if __name__ == "__main__":
    main()
