"""The command `glam`: parses, calls the library, prints. It never imports JAX here."""

import dataclasses
import json as text
import math
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chapbook.core import cli
from chapbook.core.errors import Error

if TYPE_CHECKING:
    import polars as pl
    from jax.sharding import Mesh

    from chapbook.glam.config import GLaMConfig
    from chapbook.glam.model import GLaM
    from chapbook.glam.tokenizer import Tokenizer


app = cli.app(
    "glam",
    "Sparse language models with a mixture of experts, from raw text to few-shot scores.",
    version=version("chapbook-glam"),
)
filters = typer.Typer(help="Score documents by quality, and keep the better ones.")
app.add_typer(filters, name="filter")


def _faults(given: str) -> str:
    if given not in ("strict", "replace"):
        raise Error(f"--errors {given} is unknown; it is strict or replace")
    return given


DEFAULT = "desk/8E,context=256"
_FILES = "Files, folders or patterns of txt, jsonl, csv (also .gz, .zst) or parquet."
Documents = Annotated[list[Path], typer.Argument(metavar="DOCUMENTS...", help=_FILES)]
Column = Annotated[str, typer.Option("--text-column", metavar="COLUMN", help="Of the text.")]
Errors = Annotated[
    str,
    typer.Option(
        "--errors", parser=_faults, metavar="WAY",
        help="strict stops at text that is not UTF-8 or holds NUL; replace puts U+FFFD there.",
    ),
]  # fmt: skip
Score = Annotated[str, typer.Option("--score-column", metavar="COLUMN", help="Of the score.")]


@app.command()
def tokenizer(
    documents: Documents,
    vocab_size: Annotated[int, typer.Option("--vocab-size", min=1, help="Tokens, end included.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="To write.")] = Path(
        "tokenizer.json"
    ),
    text_column: Column = "text",
    errors: Errors = "strict",
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Train a byte-level BPE tokenizer.

    Example: glam tokenizer manuals 'web/*.jsonl.zst' --vocab-size 32000
    """
    from chapbook.glam.tokenizer import train_tokenizer

    made = train_tokenizer(_read(documents, text_column, errors, quiet), vocab_size)
    file = made.save(output)
    _print({"tokenizer": str(file), "tokens": vocab_size, "fingerprint": made.fingerprint}, json)


@filters.command()
def fit(
    good: Annotated[list[Path], typer.Option("--good", metavar="DOCUMENTS", help="Curated text.")],
    bad: Annotated[list[Path], typer.Option("--bad", metavar="DOCUMENTS", help="Raw text.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="To write.")] = Path(
        "quality.safetensors"
    ),
    bits: Annotated[int, typer.Option("--bits", help="Words are hashed to 2^bits bins.")] = 20,
    penalty: Annotated[float, typer.Option("--penalty", help="On the squared weights.")] = 1e-5,
    validation: Annotated[
        float, typer.Option("--validation", min=0, max=0.9, help="Share held back for the area.")
    ] = 0.1,
    text_column: Column = "text",
    errors: Errors = "strict",
    seed: cli.Seed = 0,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Fit a classifier of curated against raw text. It holds all of both in memory.

    Example: glam filter fit --good books --bad 'web/sample-*.parquet'
    """
    import polars as pl

    from chapbook.glam.hashing import uniform
    from chapbook.glam.quality import QualityClassifier, area_under_curve

    found: dict[str, Any] = {}
    used, held = [], []
    for name, paths in (("good", good), ("bad", bad)):
        frame = pl.concat(b["id", "text"] for b in _read(paths, text_column, errors, quiet))
        back = pl.Series(uniform(frame["id"], seed, f"validation of {name}") < validation)
        used.append(frame.filter(~back)["text"])
        held.append(frame.filter(back)["text"])
        found[name] = frame.height
    classifier = QualityClassifier(bits=bits, penalty=penalty).fit(*used)
    classifier.save(output)
    area = area_under_curve(*map(classifier.score, held)) if all(map(len, held)) else None
    _print({"classifier": str(output), **found, "area under curve": area}, json)


@filters.command()
def score(
    documents: Documents,
    classifier: Annotated[Path, typer.Option("--classifier", metavar="FILE", help="Of `fit`.")],
    output: cli.TableOut,
    score_column: Score = "score",
    text_column: Column = "text",
    errors: Errors = "strict",
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Write documents with a score between 0 and 1, in bounded memory.

    Example: glam filter score web --classifier quality.safetensors --output scored.parquet
    """
    import polars as pl

    from chapbook.glam.documents import write_documents
    from chapbook.glam.quality import QualityClassifier

    judge = QualityClassifier.load(classifier)

    def scored(batch: pl.DataFrame) -> pl.DataFrame:
        if score_column in batch.columns:
            told = f"the documents have a column {score_column} already"
            raise Error(told, "name another by --score-column")
        return batch.with_columns(pl.Series(score_column, judge.score(batch["text"])))

    batches = _read(documents, text_column, errors, quiet)
    rows = write_documents(map(scored, batches), output)
    _print({"table": str(output), "documents": rows}, json)


@filters.command()
def sample(
    table: cli.TableIn,
    output: cli.TableOut,
    alpha: Annotated[float, typer.Option("--alpha", help="More keeps less.")] = 9.0,
    score_column: Score = "score",
    id_column: Annotated[str, typer.Option("--id-column", metavar="COLUMN", help="Of ids.")] = "id",
    seed: cli.Seed = 0,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Keep scored documents with probability (2 - score)^-alpha, in bounded memory.

    Example: glam filter sample scored.parquet --output kept.parquet
    """
    from chapbook.core.tables import scan_table
    from chapbook.glam.documents import BATCH_ROWS, write_documents
    from chapbook.glam.pareto import pareto_sample

    batches = scan_table(table, {score_column: None, id_column: None}).collect_batches(
        chunk_size=BATCH_ROWS
    )
    seen = 0

    def kept(batch: "pl.DataFrame") -> "pl.DataFrame":
        nonlocal seen
        seen += batch.height
        return pareto_sample(batch, score_column, alpha, seed, id_column)

    shown = cli.progress(batches, "batches", quiet=quiet)
    rows = write_documents(map(kept, shown), output)
    _print({"table": str(output), "documents": seen, "kept": rows}, json)


@filters.command()
def near_duplicates(
    documents: Documents,
    output: cli.TableOut,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, help="Of the shared runs of words.")
    ] = 0.8,
    text_column: Column = "text",
    errors: Errors = "strict",
    seed: cli.Seed = 0,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Keep the first of documents that are nearly the same. It holds all of them in memory.

    Example: glam filter near-duplicates kept.parquet --output unique.parquet
    """
    import polars as pl

    from chapbook.glam.documents import write_documents
    from chapbook.glam.overlap import near_duplicates as repeated

    frame = pl.concat(_read(documents, text_column, errors, quiet), how="diagonal_relaxed")
    kept = frame.filter(pl.Series(~repeated(frame["text"], threshold=threshold, seed=seed)))
    rows = write_documents([kept], output)
    _print({"table": str(output), "documents": frame.height, "kept": rows}, json)


@app.command()
def prepare(
    documents: Documents,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="FILE", help="JSON, SentencePiece, or `bytes`.")
    ],
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="Of the shards.")],
    held_out: Annotated[
        float, typer.Option("--held-out", help="Share of the documents for evaluation.")
    ] = 0.0,
    end_token: Annotated[
        str | None, typer.Option("--end-token", metavar="TOKEN", help="That ends a document.")
    ] = None,
    exclude: Annotated[
        list[Path] | None,
        typer.Option("--exclude", metavar="DOCUMENTS", help="Evaluation text; what overlaps goes."),
    ] = None,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Keep the first of equal texts alone.")
    ] = False,
    shard_tokens: Annotated[
        int, typer.Option("--shard-tokens", min=1, help="Tokens in a file.")
    ] = 1 << 26,
    text_column: Column = "text",
    errors: Errors = "strict",
    seed: cli.Seed = 0,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Pack documents into shards of tokens; the same command goes on with a killed one.

    Example: glam prepare kept.parquet --tokenizer tokenizer.json --held-out 0.01 --output shards
    """
    import polars as pl

    from chapbook.glam import overlap
    from chapbook.glam.documents import read_documents
    from chapbook.glam.packing import write_shards
    from chapbook.glam.tokenizer import load_tokenizer

    batches = _read(documents, text_column, errors, quiet)
    if exclude:
        evaluation = pl.concat(batch["text"] for batch in read_documents(exclude))
        batches = map(overlap.EvaluationOverlap(evaluation).remove, batches)
    if drop_duplicates:
        batches = overlap.drop_duplicates(batches)
    facts = write_shards(
        batches,
        load_tokenizer(tokenizer, end=end_token),
        output,
        held_out=held_out,
        seed=seed,
        shard_tokens=shard_tokens,
    )
    parts = {
        f"{name} {what}": held[what]
        for name, held in facts["parts"].items()
        for what in ("documents", "empty", "tokens", "bytes")
    }
    _print({"shards": str(output), **parts}, json)


@app.command()
def train(
    data: Annotated[
        Path,
        typer.Option("--data", metavar="SHARDS", help="A folder of prepare, or a mixture.yaml."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Of the run.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="That the model sees in all.")],
    config: Annotated[
        str,
        typer.Option(
            "--config",
            metavar="LINE",
            help="Such as 0.1B/64E,context=512, or a TOML file of what differs from the default.",
        ),
    ] = DEFAULT,
    dense: Annotated[
        bool, typer.Option("--dense", help="The dense model that computes as much for a token.")
    ] = False,
    optimizer: Annotated[
        str, typer.Option("--optimizer", help="adafactor or adamw.")
    ] = "adafactor",
    lr: Annotated[float, typer.Option("--lr", min=0, help="While it is constant.")] = 0.01,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Updates of its rise.")] = 0,
    constant: Annotated[
        int, typer.Option("--constant", min=1, help="Updates before it falls by their root.")
    ] = 10_000,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows of an update.")] = 16,
    accumulate: Annotated[int, typer.Option("--accumulate", min=1, help="Parts of it.")] = 1,
    capacity: Annotated[
        float | None, typer.Option("--capacity-factor", min=0, help="Room of the experts.")
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Of the model; several.")
    ] = None,
    ladder: Annotated[
        int, typer.Option("--ladder", min=0, help="Smaller models, half as wide, to train before.")
    ] = 0,
    save_every: Annotated[int, typer.Option("--save-every", min=1, help="Updates.")] = 500,
    precision: cli.Precision = "float32",
    mesh: cli.MeshText = "auto",
    devices: cli.Devices = None,
    seed: cli.Seed = 0,
    fresh: cli.Fresh = False,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Train a model on shards; the same command goes on with an interrupted run.

    Shards with a part held out are evaluated on it, in bits of a byte. Models of the ladder go to
    folders named by their widths, OUT-64 say; where one diverges, the larger ones are not begun.

    Example: glam train --data shards --config desk/8E,context=256 --tokens 4000000 --out run
    """
    on = _mesh(mesh, devices)
    from functools import partial

    import equinox as eqx
    import jax

    from chapbook.core.config import configure
    from chapbook.core.data import Batches
    from chapbook.core.run import Run
    from chapbook.glam.mixture import read_mixture
    from chapbook.glam.model import GLaM
    from chapbook.glam.packing import PackedDataset
    from chapbook.glam.saving import save
    from chapbook.glam.training import TrainConfig, evaluation, fit

    sets = [*(sets or []), *([] if capacity is None else [f"capacity_factor={capacity}"])]
    context = _shape(config, sets).context
    settings = {
        "tokens": tokens, "batch_size": batch, "optimizer": optimizer, "learning_rate": lr,
        "warmup": warmup, "constant": constant, "accumulate": accumulate, "precision": precision,
    }  # fmt: skip
    recipe = configure(TrainConfig, base=TrainConfig(**settings))
    steps = recipe.steps(context)
    mixed = data.suffix in (".yaml", ".yml")
    if mixed:
        source = read_mixture(data, context, rows=steps * batch, seed=seed)
    else:
        source = PackedDataset(data, context)
    words = source.tokenizer
    shape = _shape(config, sets, words.vocab_size)
    if shape.vocab_size != words.vocab_size:
        raise Error(
            f"{config} has {shape.vocab_size} tokens, the tokenizer of {data} has "
            f"{words.vocab_size}; leave the vocabulary out"
        )
    shape = shape.dense_counterpart() if dense else shape
    evaluate = None
    if isinstance(source, PackedDataset) and "held_out" in source.facts["parts"]:
        held = PackedDataset(data, shape.context, "held_out")
        facts = held.part_facts
        evaluate = evaluation(
            held, bytes_per_token=facts["bytes"] / facts["tokens"], batch_size=batch, mesh=on
        )
    order = {"shuffle": False, "epochs": 1} if mixed else {}
    names = ("loss", "nats", "dropped", "skipped", "valid/nats", "valid/bits_per_byte")
    for rung in [*shape.ladder(ladder), shape]:
        folder = out if rung is shape else out.with_name(f"{out.name}-{rung.embed}")
        told = {
            "config": str(rung), "model": dataclasses.asdict(rung), "seed": seed,
            "data": str(data), "recipe": dataclasses.asdict(recipe),
        }  # fmt: skip
        with Run(folder, told, fresh=fresh) as run:
            model = eqx.filter_jit(partial(GLaM, rung))(key=jax.random.key(seed))
            result = fit(
                model, Batches(source, batch, seed=seed, **order), recipe,
                key=jax.random.key(seed + 1), evaluate=evaluate, run=run, mesh=on,
                save_every=save_every, quiet=quiet,
            )  # fmt: skip
            if result.exit_code:  # an unfinished training leaves checkpoints, and no model
                raise typer.Exit(result.exit_code)
            if result.reason == "nan":
                told = f"the training in {folder} diverged for good after {result.step} updates"
                raise Error(told, "take a lower --lr or another --seed")
            save(result.model, folder / "model", words)
            last = result.metrics.tail(1).to_dicts()[0] if result.metrics.height else {}
        shown = {name: last[name] for name in names if last.get(name) is not None}
        found = {"model": str(folder / "model"), "steps": result.step, "reason": result.reason}
        _print({**found, **shown}, json)


Model = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run or a model.")]
Words = Annotated[
    str | None, typer.Option("--tokenizer", metavar="FILE", help="Where the folder has none.")
]
Output = Annotated[Path, typer.Option("--output", metavar="TABLE", help="To write.")]


@app.command()
def generate(
    model: Model,
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPTS...", help="Texts to go on from.")
    ],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="At most.")] = 64,
    beam: Annotated[int, typer.Option("--beam", min=1, help="Hypotheses of a search.")] = 1,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="0 takes the most likely token.")
    ] = 0.0,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Draw from so many.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Draw from this share.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="Texts that end it; several.")
    ] = None,
    tokenizer: Words = None,
    seed: cli.Seed = 0,
    json: cli.Json = False,
) -> None:
    """Print how a model goes on from prompts.

    Example: glam generate run 'The command ls' --temperature 0.8 --max-new-tokens 40
    """
    from chapbook.glam.generating import generate as written

    held, words = _load(model, tokenizer)
    held = held.unrolled()
    found = written(
        held, words, prompts, max_new_tokens=max_new_tokens, beam=beam, temperature=temperature,
        top_k=top_k, top_p=top_p, stop=tuple(stop or ()), seed=seed,
    )  # fmt: skip
    if json:
        rows = [{"prompt": a, "text": b} for a, b in zip(prompts, found, strict=True)]
        typer.echo(text.dumps(rows))
        return
    for prompt, each in zip(prompts, found, strict=True):
        typer.echo(prompt + each)


@app.command("score")
def score_documents(
    model: Model,
    documents: Documents,
    output: Output = Path("scores.parquet"),
    text_column: Column = "text",
    errors: Errors = "strict",
    tokenizer: Words = None,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Write the log-likelihood and the bits of a byte of every document.

    Example: glam score run manuals --output scores.parquet
    """
    import polars as pl

    from chapbook.core.tables import write_table
    from chapbook.glam.scoring import bits_per_byte

    held, words = _load(model, tokenizer)
    parts = [
        batch.select("id").hstack(bits_per_byte(held, words, batch["text"].to_list()))
        for batch in _read(documents, text_column, errors, quiet)
    ]
    table = pl.concat(parts)
    write_table(table, output)
    nats, size = -float(table["log_likelihood"].sum()), int(table["bytes"].sum())
    _print(
        {"documents": table.height, "tokens": table["tokens"].sum(), "bytes": size,
         "bits per byte": nats / math.log(2) / max(size, 1), "table": str(output)},
        json,
    )  # fmt: skip


@app.command()
def evaluate(
    model: Model,
    tasks: Annotated[
        list[Path], typer.Option("--task", metavar="FILE", help="YAML or JSON of a task; several.")
    ],
    shots: Annotated[str, typer.Option("--shots", help="Examples before a question.")] = "0,1",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Questions of each task.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="TABLE", help="Write the table here too.")
    ] = None,
    tokenizer: Words = None,
    seed: cli.Seed = 0,
    json: cli.Json = False,
) -> None:
    """Print the zero-, one- and few-shot scores of a model, with their standard errors.

    Example: glam evaluate run --task names.yaml --shots 0,1,5
    """
    from chapbook.core.tables import write_table
    from chapbook.glam.evaluating import evaluate as evaluated
    from chapbook.glam.tasks import read_task

    counts = [each.strip() for each in shots.split(",")]
    if not all(each.isdigit() for each in counts):
        raise Error(f"--shots {shots} is no list of numbers such as 0,1,5")
    held, words = _load(model, tokenizer)
    found = evaluated(
        held, words, [read_task(each) for each in tasks], shots=[int(each) for each in counts],
        seed=seed, limit=limit,
    )  # fmt: skip
    if output is not None:
        write_table(found, output)
    _table(found, json)


@app.command()
def routes(
    model: Model,
    documents: Documents,
    output: Output = Path("routes.parquet"),
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="PNG", help="Draw experts by kind of token.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Documents, the first ones.")] = 100,
    text_column: Column = "text",
    errors: Errors = "strict",
    tokenizer: Words = None,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Write where every token goes, and print what each expert is chosen for.

    Example: glam routes run manuals --output routes.parquet --plot experts.png
    """
    from chapbook.core.tables import write_table
    from chapbook.glam.routing_analysis import favourites
    from chapbook.glam.routing_analysis import routes as routed

    held, words = _load(model, tokenizer)
    texts: list[str] = []
    for batch in _read(documents, text_column, errors, quiet):
        texts += batch["text"].head(limit - len(texts)).to_list()
        if len(texts) >= limit:
            break
    table = routed(held, words, texts)
    write_table(table, output)
    if plot is not None:
        from chapbook.glam.plots import routing

        routing(plot, table, held.config.num_experts)
    _table(favourites(table), json)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="RUN", help="A training's or a model's folder.")
    ],
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of the model to write.")],
    step: Annotated[
        int | None, typer.Option("--step", min=1, help="A checkpoint of the training.")
    ] = None,
    precision: cli.Precision = "float32",
    tokenizer: Words = None,
    json: cli.Json = False,
) -> None:
    """Write a model of a training's checkpoint, or one whose weights take half the room.

    A training that was interrupted gives its last checkpoint. Weights of bfloat16 are read as
    float32 again.

    Example: glam convert run half --precision bfloat16
    """
    from chapbook.glam.saving import in_precision, is_model, load_checkpoint, save, tokenizer_of
    from chapbook.glam.saving import load as load_model
    from chapbook.glam.tokenizer import load_tokenizer

    if out.resolve() in (source.resolve(), (source / "model").resolve()):
        raise Error(f"{out} would overwrite what it is made of", "name another folder")
    whole = is_model(source)
    held = load_model(source) if whole and step is None else load_checkpoint(source, step)
    words = load_tokenizer(tokenizer) if tokenizer else tokenizer_of(source) if whole else None
    save(in_precision(held, precision), out, words)
    size = (out / "weights.safetensors").stat().st_size
    _print({"model": str(out), "config": str(held.config), "bytes": size}, json)


@app.command()
def sizes(json: cli.Json = False) -> None:
    """Print the paper's table of sizes beside what the sizes give.

    Example: glam sizes
    """
    from chapbook.glam.accounting import ladder

    _table(ladder(), json)


@app.command()
def cost(
    config: Annotated[
        str, typer.Argument(metavar="LINE", help="Such as 64B/64E,vocab=32000, or a TOML file.")
    ],
    context: Annotated[
        int | None, typer.Option("--at", min=1, help="Tokens that attention looks at.")
    ] = None,
    tokens: Annotated[float | None, typer.Option("--tokens", help="Of a training.")] = None,
    chips: Annotated[int, typer.Option("--chips", min=1, help="That train.")] = 1,
    peak: Annotated[float, typer.Option("--peak-tflops", help="Of a chip.")] = 275.0,
    utilisation: Annotated[float, typer.Option("--mfu", help="Share of the peak.")] = 0.4,
    watts: Annotated[float, typer.Option("--watts", help="Of a chip and its part.")] = 326.0,
    overhead: Annotated[float, typer.Option("--pue", help="Of the building.")] = 1.1,
    intensity: Annotated[float, typer.Option("--intensity", help="Tonnes of CO2e per MWh.")] = 0.4,
    json: cli.Json = False,
) -> None:
    """Print what a model costs: parameters, operations, memory; and what a training takes.

    Example: glam cost 64B/64E --tokens 600e9 --chips 1024
    """
    from chapbook.glam.accounting import cost as costs
    from chapbook.glam.accounting import energy

    shape = _shape(config, [])
    found = costs(shape, context)
    told = {
        "config": str(shape), "parameters": found.parameters, "activated": found.activated,
        "gflops per token": found.flops / 1e9,
        "attention gflops per token": found.attention_flops / 1e9,
        "training gflops per token": found.training_flops / 1e9,
        "parameter gib": found.parameter_bytes / 2**30,
        "adafactor gib": found.optimizer_bytes / 2**30,
        "cache mib per sequence": found.cache_bytes / 2**20,
    }  # fmt: skip
    if tokens is not None:
        took = energy(
            shape, tokens=tokens, chips=chips, peak_flops=peak * 1e12, utilisation=utilisation,
            watts=watts, overhead=overhead, intensity=intensity,
        )  # fmt: skip
        told |= {
            "tokens per second": took.tokens_per_second, "hours": took.hours,
            "mwh": took.megawatt_hours, "tonnes co2e": took.tonnes,
        }  # fmt: skip
    _print(told, json)


@app.command()
def reproduce(
    run: cli.RunDir = Path("run"),
    claim: Annotated[
        list[str] | None,
        typer.Option(
            "--claim",
            help="sizes, sparse-vs-dense, experts, quality, few-shot, stability; several.",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Three seeds, longer, rates chosen.")
    ] = False,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, help="Of a training.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="How many.")] = None,
    budget: Annotated[
        float | None, typer.Option("--budget", min=0, help="Minutes that trainings on text take.")
    ] = None,
    seed: cli.Seed = 0,
    fresh: cli.Fresh = False,
    quiet: cli.Quiet = False,
) -> None:
    """Check the paper's claims on real text, and draw them.

    Example: glam reproduce --claim sparse-vs-dense --seeds 3 --run run
    """
    from chapbook.glam.reproduce import CLAIMS
    from chapbook.glam.reproduce import reproduce as check

    check(run, claims=claim or CLAIMS, full=full, tokens=tokens, seeds=seeds, budget=budget,
          seed=seed, fresh=fresh, quiet=quiet)  # fmt: skip


def _load(model: Path, tokenizer: str | None) -> "tuple[GLaM, Tokenizer]":
    from chapbook.glam.saving import load, tokenizer_of
    from chapbook.glam.tokenizer import load_tokenizer

    held = load(model)
    return held, load_tokenizer(tokenizer) if tokenizer else tokenizer_of(model)


def _shape(line: str, sets: list[str], vocab_size: int | None = None) -> "GLaMConfig":
    """Returns the model that a line or a file says, by default with so many tokens."""
    from chapbook.core.config import configure
    from chapbook.glam.config import GLaMConfig

    file = line if line.endswith(".toml") else None
    base = GLaMConfig.from_string(DEFAULT if file else line)
    if vocab_size is not None and (file or "vocab=" not in line):
        base = dataclasses.replace(base, vocab_size=vocab_size)
    return configure(GLaMConfig, file, sets, base=base)


def _mesh(mesh: str, devices: int | None) -> "Mesh":
    from chapbook.core.meshes import mesh as mesh_of
    from chapbook.core.meshes import simulate

    if devices is not None:
        simulate(devices)
    return mesh_of(mesh)


def _table(table: "pl.DataFrame", json: bool) -> None:
    import polars as pl

    if json:
        typer.echo(text.dumps(table.to_dicts()))
        return
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, fmt_str_lengths=80):
        typer.echo(str(table))


def _read(paths: list[Path], column: str, errors: Any, quiet: bool) -> "Iterable[pl.DataFrame]":
    from chapbook.glam.documents import read_documents

    return cli.progress(read_documents(paths, text=column, errors=errors), "batches", quiet=quiet)


def _print(found: dict[str, Any], json: bool) -> None:
    if json:
        typer.echo(text.dumps({name.replace(" ", "_"): value for name, value in found.items()}))
        return
    for name, value in found.items():
        typer.echo(f"{name} {f'{value:.4f}' if isinstance(value, float) else value}")


main = cli.main(app)
