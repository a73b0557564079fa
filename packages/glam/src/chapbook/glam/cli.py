"""The command `glam`: parses, calls the library, prints. It never imports JAX here."""

import json as text
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chapbook.core import cli
from chapbook.core.errors import Error

if TYPE_CHECKING:
    import polars as pl


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
def reproduce(
    run: cli.RunDir = Path("run"),
    full: Annotated[bool, typer.Option("--full", help="More values.")] = False,
    seed: cli.Seed = 0,
    fresh: cli.Fresh = False,
) -> None:
    """Check the paper's claim: merged moments keep the digits that the textbook loses."""
    from chapbook.glam.reproduce import reproduce as check

    check(run, count=10_000_000 if full else 100_000, seed=seed, fresh=fresh)


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
