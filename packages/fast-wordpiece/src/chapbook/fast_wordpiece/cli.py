"""The command line `fast-wordpiece`: parses, calls the library, prints.

Polars and the compiled core are imported by the commands that need them, so that help is quick.
"""

import contextlib
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chapbook.core import cli
from chapbook.core.errors import Error
from chapbook.core.io import plain, write_atomic

if TYPE_CHECKING:
    from chapbook.fast_wordpiece.compare import Comparison
    from chapbook.fast_wordpiece.documents import Reading
    from chapbook.fast_wordpiece.stream import Report
    from chapbook.fast_wordpiece.tokenizer import Tokenizer

app = cli.app(
    "fast-wordpiece",
    "WordPiece tokenization at memory speed, with exactly the ids and offsets of Hugging Face.",
    version=metadata.version("chapbook-fast-wordpiece"),
)
main = cli.main(app)

_SIZES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+) *([KMG]I?|)B?", str(text).upper())
    if not found or not int(found[1]):
        raise Error(f"{text} is no size; write 1000000, 64MiB or 1GB")
    return int(found[1]) * _SIZES[found[2]]


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[2]):
        raise Error(f"--shard {text} must be such as 0/8, the first of eight shares")
    return int(found[1]), int(found[2])


def _unescaped(text: str) -> str:
    known = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}
    return re.sub(r"\\([ntr0\\])", lambda found: known[found[1]], text)


Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="Files or patterns: txt, jsonl, csv, tsv (also .gz, .zst), parquet, ipc; - is stdin.",
    ),
]
TokenizerIn = Annotated[
    Path,
    typer.Option(
        "--tokenizer", "-t", metavar="FILE", help="A tokenizer.json, vocab.txt, .fwp or folder."
    ),
]
Cased = Annotated[
    bool, typer.Option("--cased", help="Keep the case, where a vocab.txt leaves it open.")
]
Limits = Annotated[
    bool,
    typer.Option("--ignore-limits", help="Leave out the tokenizer's own truncation and padding."),
]
Column = Annotated[
    str,
    typer.Option("--column", metavar="NAME", help="The column of texts, of files with columns."),
]
PairColumn = Annotated[
    str | None, typer.Option("--pair-column", metavar="NAME", help="The column of second texts.")
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="NAME", help="A column to carry along; may be repeated."),
]
Separator = Annotated[
    str,
    typer.Option(
        "--separator", parser=_unescaped, metavar="TEXT", help="Between documents of plain text."
    ),
]
InputFormat = Annotated[
    str | None,
    typer.Option("--input-format", metavar="KIND", help="txt, jsonl, csv, tsv, parquet or ipc."),
]
InvalidBytes = Annotated[
    str,
    typer.Option(
        "--errors", metavar="strict|replace", help="What is not UTF-8: a fault, or U+FFFD."
    ),
]
OnError = Annotated[
    str,
    typer.Option(
        "--on-error",
        metavar="fail|skip|null",
        help="A document that cannot be read: stop, leave it out, or make it null (then exit 3).",
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads; all processors if unset.")
]
BatchBytes = Annotated[
    Any, typer.Option("--batch-bytes", parser=_size, metavar="SIZE", help="Text read at a time.")
]
NoSpecial = Annotated[
    bool, typer.Option("--no-special-tokens", help="Leave out the template's special tokens.")
]
Shown = Annotated[int, typer.Option("--show", min=0, help="Differences to show.")]


@app.command()
def encode(
    inputs: Inputs,
    tokenizer: TokenizerIn,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="OUT", help="parquet, ipc, jsonl, a folder; - is stdout."
        ),
    ],
    format: Annotated[  # noqa: A002
        str | None,
        typer.Option("--format", metavar="KIND", help="parquet, ipc, jsonl, or bin: flat .npy."),
    ] = None,
    column: Column = "text",
    pair_column: PairColumn = None,
    keep: Keep = None,
    offsets: Annotated[
        bool, typer.Option("--offsets", help="Also write where each token stands.")
    ] = False,
    offset_unit: Annotated[
        str, typer.Option("--offset-unit", metavar="char|byte", help="What offsets count.")
    ] = "char",
    word_ids: Annotated[
        bool, typer.Option("--word-ids", help="Also write which word each token is of.")
    ] = False,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=1, help="The most tokens of a row.")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option("--stride", min=0, help="Write windows that share so many tokens."),
    ] = None,
    pad: Annotated[bool, typer.Option("--pad", help="Fill short rows up to the length.")] = False,
    no_special: NoSpecial = False,
    ignore_limits: Limits = False,
    cased: Cased = False,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="int32|uint16", help="The type of the ids.")
    ] = "int32",
    separator: Separator = "\\n",
    input_format: InputFormat = None,
    errors: InvalidBytes = "strict",
    on_error: OnError = "fail",
    shard: Annotated[
        Any,
        typer.Option(
            "--shard", parser=_shard, metavar="I/N", help="Only the share I of N, from 0."
        ),
    ] = "0/1",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last part that was finished.")
    ] = False,
    threads: Threads = None,
    batch_bytes: BatchBytes = "1MiB",
    part_bytes: Annotated[
        Any, typer.Option("--part-bytes", parser=_size, metavar="SIZE", help="Text of a part.")
    ] = "32MiB",
    quiet: cli.Quiet = False,
    as_json: cli.Json = False,
) -> None:
    """Encode files of any size in bounded memory; what a kill interrupts is resumed.

    fast-wordpiece encode 'corpus/*.txt.gz' -t tokenizer.json -o ids.parquet

    fast-wordpiece encode d.parquet -t vocab.txt -o ids --format bin --dtype uint16 --resume
    """
    from chapbook.fast_wordpiece.stream import Output, encode_files

    made = _load(tokenizer, cased, ignore_limits)
    own = made.light_settings.truncation
    if own is not None and max_length is None and not quiet:
        _say(f"{tokenizer} cuts rows at {own.max_length} tokens; --ignore-limits leaves that out")
    unit: Any = offset_unit
    kind: Any = dtype
    wanted = Output(offsets, unit, word_ids, max_length, stride, pad, not no_special, kind)
    reading = _reading(
        column, pair_column, keep, separator, input_format, errors, on_error, batch_bytes
    )
    with _resumable(output, inputs), _progress(quiet) as progress:
        report = encode_files(
            inputs,
            output,
            made,
            reading,
            wanted,
            format=format,
            shard=shard,
            resume=resume,
            num_threads=threads,
            part_bytes=part_bytes,
            progress=progress,
        )
    is_shown = str(output) != "-"
    if as_json and is_shown:
        _print_json({"output": str(output), "fingerprint": made.fingerprint, **asdict(report)})
    elif is_shown and not quiet:
        typer.echo(f"{output} was whole already" if report.was_whole else _summary(report))
    _end(report)


@app.command()
def count(
    inputs: Inputs,
    tokenizer: TokenizerIn,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Write the tokens of each document."),
    ] = None,
    format: Annotated[  # noqa: A002
        str | None, typer.Option("--format", metavar="KIND", help="parquet, ipc or jsonl.")
    ] = None,
    column: Column = "text",
    pair_column: PairColumn = None,
    keep: Keep = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=1, help="Count as cut off at this length.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget", min=0, metavar="PRICE", help="Of a million tokens; tells the sum."
        ),
    ] = None,
    no_special: NoSpecial = False,
    cased: Cased = False,
    separator: Separator = "\\n",
    input_format: InputFormat = None,
    errors: InvalidBytes = "strict",
    on_error: OnError = "fail",
    threads: Threads = None,
    batch_bytes: BatchBytes = "1MiB",
    quiet: cli.Quiet = False,
    as_json: cli.Json = False,
) -> None:
    """Count tokens, per document and in all; a tokenizer's own truncation is left out.

    fast-wordpiece count corpus.jsonl -t tokenizer.json --budget 0.02
    """
    from chapbook.fast_wordpiece.stream import count_files

    made = _load(tokenizer, cased, ignore_limits=True)
    reading = _reading(
        column, pair_column, keep, separator, input_format, errors, on_error, batch_bytes
    )
    with _progress(quiet) as progress:
        counts = count_files(
            inputs,
            made,
            reading,
            output=output,
            format=format,
            special=not no_special,
            max_length=max_length,
            num_threads=threads,
            progress=progress,
        )
    report = counts.report
    found: dict[str, Any] = {
        "documents": report.documents,
        "tokens": report.tokens,
        "bytes": report.bytes,
        "bytes_per_token": report.bytes / report.tokens if report.tokens else None,
        "mean": counts.mean,
        **{f"p{share}": counts.quantile(share / 100) for share in (50, 90, 99)},
        "longest": counts.quantile(1.0),
    }
    if max_length is not None:
        found["cut_off"] = counts.longer_than(max_length)
    if budget is not None:
        found["cost"] = report.tokens / 1e6 * budget
    found["rejected"] = report.rejected
    _print(found, as_json, stderr=str(output) == "-")
    _end(report)


@app.command()
def decode(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="parquet, ipc or jsonl, a bin folder, or lines of ids; - is stdin.",
        ),
    ],
    tokenizer: TokenizerIn,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="A txt or jsonl file.")
    ] = Path("-"),
    column: Annotated[str, typer.Option("--column", help="The column of ids.")] = "ids",
    with_special: Annotated[
        bool, typer.Option("--with-special-tokens", help="Keep tokens such as [CLS].")
    ] = False,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Decode what another tokenizer has encoded.")
    ] = False,
    cased: Cased = False,
) -> None:
    """Turn ids back into text, a line or a JSON object for each row.

    fast-wordpiece decode ids.parquet -t tokenizer.json

    echo 101 7592 102 | fast-wordpiece decode - -t tokenizer.json
    """
    from chapbook.fast_wordpiece import token_files

    made = _load(tokenizer, cased, ignore_limits=False)
    if not unchecked and source.exists():
        token_files.check_fingerprint(source, made.fingerprint)
    is_json = output.suffix in (".jsonl", ".ndjson")
    if not is_json and output.suffix not in (".txt", "") and str(output) != "-":
        raise Error(f"{output}: texts are written to a .txt or .jsonl file")

    def lines() -> Iterator[str]:
        for rows in token_files.id_rows(source, column, sys.stdin.buffer.read):
            ids = rows.to_list()
            texts = made.decode_batch([row or [] for row in ids], not with_special)
            for row, text in zip(ids, texts, strict=True):
                shown = None if row is None else text
                yield json.dumps({"text": shown}, ensure_ascii=False) if is_json else shown or ""

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines())

    if str(output) == "-":
        sys.stdout.writelines(f"{line}\n" for line in lines())
    else:
        write_atomic(output, write)


@app.command()
def train(
    inputs: Inputs,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="A vocab.txt, tokenizer.json or .fwp."),
    ],
    vocab_size: Annotated[int, typer.Option("--vocab-size", min=1, help="Pieces.")] = 30_000,
    min_frequency: Annotated[
        int, typer.Option("--min-frequency", min=0, help="Of a pair that is merged.")
    ] = 2,
    special_token: Annotated[
        list[str] | None,
        typer.Option("--special-token", metavar="TOKEN", help="Instead of BERT's five; repeated."),
    ] = None,
    limit_alphabet: Annotated[
        int, typer.Option("--limit-alphabet", min=0, help="Characters that are kept.")
    ] = 1000,
    cased: Annotated[bool, typer.Option("--cased", help="Keep the case.")] = False,
    keep_accents: Annotated[
        bool, typer.Option("--keep-accents", help="Keep accents, in lower case too.")
    ] = False,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="FOLDER", help="For word counts; continues a killed count."),
    ] = None,
    memory: Annotated[
        Any, typer.Option("--memory", parser=_size, metavar="SIZE", help="Of the word counts.")
    ] = "1GiB",
    column: Column = "text",
    separator: Separator = "\\n",
    input_format: InputFormat = None,
    threads: Threads = None,
    quiet: cli.Quiet = False,
    as_json: cli.Json = False,
) -> None:
    """Train a vocabulary as Hugging Face's WordPieceTrainer does.

    fast-wordpiece train 'corpus/*.txt' -o tokenizer.json --vocab-size 30000 --run counts
    """
    from chapbook.fast_wordpiece import documents
    from chapbook.fast_wordpiece.settings import SPECIAL_TOKENS, Normalizer
    from chapbook.fast_wordpiece.tokenizer import Tokenizer
    from chapbook.fast_wordpiece.train import train_vocab

    if output.suffix not in (".txt", ".json", ".fwp"):
        raise Error(f"{output} must end in .txt, .json or .fwp")
    files = documents.expand(inputs)
    is_plain = all(documents.kind_of(path, input_format) == ("txt", "") for path in files)
    is_plain &= Path("-") not in files
    if run is not None and not is_plain:
        raise Error("--run continues a count of plain text files, and these are others")
    strip = False if keep_accents else None
    reading = _reading(column, None, None, separator, input_format)
    texts = (
        text
        for block in documents.documents([*map(documents.Input, files)], reading)
        for text in block.strings()
        if text is not None
    )
    with _stages(quiet) as progress:
        vocab = train_vocab(
            None if is_plain else texts,
            vocab_size,
            files=files if is_plain else None,
            min_frequency=min_frequency,
            special_tokens=special_token or SPECIAL_TOKENS,
            limit_alphabet=limit_alphabet,
            normalizer=Normalizer(lowercase=not cased, strip_accents=strip),
            num_threads=threads,
            memory_budget=memory,
            run=run,
            progress=progress,
        )
    options: dict[str, Any] = {} if strip is None else {"strip_accents": strip}
    Tokenizer.from_vocab(vocab, lowercase=not cased, **options).save(output)
    _print({"output": str(output), "pieces": len(vocab)}, as_json)


@app.command()
def explain(
    text: Annotated[str, typer.Argument(help="The text; - reads it from stdin.")],
    tokenizer: TokenizerIn,
    cased: Cased = False,
    as_json: cli.Json = False,
) -> None:
    """Show why a text is cut as it is: what became of each stretch of it.

    fast-wordpiece explain "naïve 中国" -t tokenizer.json
    """
    from chapbook.fast_wordpiece.explain import explain as table_of

    table = table_of(_load(tokenizer, cased), sys.stdin.read() if text == "-" else text)
    if as_json:
        _print_json(table.to_dicts())
        return
    rows = []
    for row in table.iter_rows(named=True):
        place, forms = f"{row['start']}-{row['end']}", (row["original"], row["normalized"])
        pieces, ids = " ".join(row["pieces"]), " ".join(map(str, row["ids"]))
        rows.append([place, *map(_visible, forms), row["reason"], pieces, ids])
    _table(["place", "original", "normalised", "reason", "pieces", "ids"], rows)


@app.command()
def inspect(
    tokenizer: Annotated[Path, typer.Argument(metavar="TOKENIZER", help="A file or folder.")],
    cased: Cased = False,
    pieces: Annotated[
        bool, typer.Option("--unreachable", help="List the pieces that no text can give.")
    ] = False,
    as_json: cli.Json = False,
) -> None:
    """Show a tokenizer's components, its vocabulary, and what is wrong with that.

    fast-wordpiece inspect tokenizer.json
    """
    from chapbook.fast_wordpiece import inspection

    made = _load(tokenizer, cased)
    found = inspection.inspect(made)
    found["duplicate_lines"] = inspection.duplicate_lines(tokenizer)
    lost = inspection.unreachable(made.settings) if pieces else {}
    if as_json:
        _print_json(found | ({"unreachable": lost} if pieces else {}))
        return
    for name, value in found.items():
        if isinstance(value, dict) and value:
            typer.echo(f"{name}:")
            for key, each in value.items():
                typer.echo(f"  {key}: {_shown(each)}")
        elif name == "added_tokens":
            typer.echo(f"{name}: {' '.join(token['content'] for token in value) or 'none'}")
        else:
            typer.echo(f"{name}: {_shown(value)}")
    for piece, why in lost.items():
        typer.echo(f"  {piece}: {why}")


@app.command()
def compare(
    left: Annotated[Path, typer.Argument(metavar="A", help="A tokenizer.")],
    right: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    inputs: Inputs,
    column: Column = "text",
    pair_column: PairColumn = None,
    separator: Separator = "\\n",
    input_format: InputFormat = None,
    errors: InvalidBytes = "strict",
    on_error: OnError = "fail",
    cased: Cased = False,
    shown: Shown = 5,
    as_json: cli.Json = False,
) -> None:
    """Compare how two tokenizers cut the same documents; exits 3 if they differ.

    fast-wordpiece compare a.json b.json corpus.txt
    """
    from chapbook.fast_wordpiece.compare import compare as compare_files

    reading = _reading(column, pair_column, None, separator, input_format, errors, on_error)
    found = compare_files(_load(left, cased), _load(right, cased), inputs, reading, shown=shown)
    _show_comparison(found, str(left), str(right), as_json)


@app.command()
def verify(
    inputs: Inputs,
    tokenizer: TokenizerIn,
    against: Annotated[
        str, typer.Option("--against", metavar="hf", help="hf: Hugging Face's tokenizers.")
    ] = "hf",
    column: Column = "text",
    pair_column: PairColumn = None,
    separator: Separator = "\\n",
    input_format: InputFormat = None,
    errors: InvalidBytes = "strict",
    on_error: OnError = "fail",
    shown: Shown = 5,
    as_json: cli.Json = False,
) -> None:
    """Check ids, offsets and masks against another library; exits 3 if any differs.

    fast-wordpiece verify corpus.txt -t tokenizer.json --against hf
    """
    from chapbook.fast_wordpiece.compare import verify as verify_files

    if against != "hf":
        raise Error(f"--against {against} is unknown; it is hf")
    reading = _reading(column, pair_column, None, separator, input_format, errors, on_error)
    found = verify_files(tokenizer, inputs, reading, shown=shown)
    _show_comparison(found, "fast-wordpiece", "Hugging Face", as_json)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="A tokenizer's file or folder.")],
    target: Annotated[
        Path, typer.Argument(metavar="TO", help="A .json, .txt or .fwp file; the suffix decides.")
    ],
    cased: Cased = False,
    ignore_limits: Limits = False,
    as_json: cli.Json = False,
) -> None:
    """Convert a tokenizer between vocab.txt, tokenizer.json and the compiled .fwp.

    fast-wordpiece convert tokenizer.json tokenizer.fwp
    """
    made = _load(source, cased, ignore_limits)
    made.save(target)
    found = {"output": str(target), "pieces": made.vocab_size, "fingerprint": made.fingerprint}
    _print(found, as_json)


@app.command()
def bench(
    inputs: Inputs,
    tokenizer: TokenizerIn,
    most: Annotated[
        Any, typer.Option("--most", parser=_size, metavar="SIZE", help="Text that is taken.")
    ] = "16MiB",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="The median is told.")] = 5,
    column: Column = "text",
    separator: Separator = "\\n",
    input_format: InputFormat = None,
    as_json: cli.Json = False,
) -> None:
    """Measure how fast this machine encodes your own files.

    fast-wordpiece bench corpus.txt -t tokenizer.json
    """
    from chapbook.fast_wordpiece.throughput import measure

    reading = _reading(column, None, None, separator, input_format)
    rows = measure(tokenizer, inputs, reading, most_bytes=most, rounds=rounds)
    if as_json:
        _print_json(rows)
        return
    cells = []
    for row in rows:
        times = "" if row["times_hf"] is None else f"{row['times_hf']:.1f}x"
        speeds = f"{row['mb_per_s']:.1f}", f"{row['documents_per_s']:,.0f}"
        cells.append([row["way"], str(row["threads"]), *speeds, times])
    _table(["", "threads", "MB/s", "documents/s", "Hugging Face"], cells)


@app.command()
def reproduce(
    run: cli.RunDir = Path("fast-wordpiece-reproduce"),
    full: Annotated[bool, typer.Option("--full", help="More rounds, and all texts.")] = False,
    parts: Annotated[
        str, typer.Option("--parts", metavar="A,B", help="Which parts to run.")
    ] = "sentences,words,growth,equality",
    fresh: cli.Fresh = False,
    quiet: cli.Quiet = False,
) -> None:
    """Hold the paper's claims against public text; exits 3 if one does not hold.

    fast-wordpiece reproduce --run reproduced
    """
    from chapbook.fast_wordpiece import reproduce as reproduction

    names = [part.strip() for part in parts.split(",") if part.strip()]
    reproduction.reproduce(run, full=full, parts=names, fresh=fresh, quiet=quiet)


# ------------------------------------------------------------------------------- helpers


def _load(path: Path, cased: bool = False, ignore_limits: bool = False) -> "Tokenizer":
    """Reads a tokenizer; what there is to say of its file goes to stderr."""
    from chapbook.fast_wordpiece.tokenizer import Tokenizer

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = Tokenizer.from_file(
            path, lowercase=False if cased else None, ignore_limits=ignore_limits
        )
    for each in caught:
        typer.echo(f"warning: {each.message}", err=True)
    return made


def _reading(
    column: str,
    pair_column: str | None,
    keep: Sequence[str] | None,
    separator: str,
    input_format: str | None,
    errors: Any = "strict",
    on_error: Any = "fail",
    batch_bytes: int = 1 << 20,
) -> "Reading":
    from chapbook.fast_wordpiece.documents import Reading

    return Reading(
        column,
        pair_column,
        tuple(keep or ()),
        separator,
        input_format,
        errors,
        on_error,
        batch_bytes,
    )


@contextlib.contextmanager
def _resumable(output: Path, inputs: Sequence[str]) -> Iterator[None]:
    """Says, when the work is stopped, how it is resumed."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if str(output) != "-" and list(inputs) != ["-"]:
            _say("stopped; finished parts are kept: the same command with --resume goes on")
        raise


@contextlib.contextmanager
def _progress(quiet: bool) -> "Iterator[Callable[[Report], None]]":
    """Shows bytes, documents, MB/s and the time left: on a terminal at once, else now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    hidden = quiet or not console.is_terminal
    started = told = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=None)
        first: list[int] = []

        def show(report: "Report") -> None:
            nonlocal told
            now = time.monotonic()
            first[:] = first or [report.bytes]
            if quiet or (hidden and now - told < 10):
                return
            told = now
            rate = (report.bytes - first[0]) / 1e6 / max(now - started, 1e-3)
            text = f"{report.documents:,} documents  {report.bytes / 1e6:,.1f} MB  {rate:.1f} MB/s"
            if not hidden:
                bar.update(task, description=text, completed=report.read, total=report.total)
                return
            if report.total and report.read:
                left = (now - started) * (report.total / report.read - 1)
                text += f"  {left:.0f} s left"
            _say(text)

        yield show


@contextlib.contextmanager
def _stages(quiet: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """Shows the stages of a training."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield show


def _summary(report: "Report") -> str:
    speed = report.bytes / 1e6 / max(report.seconds, 1e-9)
    text = f"{report.documents:,} documents, {report.rows:,} rows, {report.tokens:,} tokens"
    if report.resumed:
        return f"{text} ({report.resumed:,} documents had been encoded before)"
    return f"{text}, {report.bytes / 1e6:,.1f} MB in {report.seconds:.1f} s ({speed:.1f} MB/s)"


def _end(report: "Report") -> None:
    """Tells what was rejected, and exits with 3 if anything was."""
    for fault in report.faults:
        _say(f"rejected: {fault}")
    if report.rejected > len(report.faults):
        _say(f"rejected: {report.rejected - len(report.faults):,} more")
    if report.rejected:
        raise typer.Exit(3)


def _show_comparison(found: "Comparison", left: str, right: str, as_json: bool) -> None:
    if as_json:
        _print_json({"left": left, "right": right, **asdict(found)})
    else:
        typer.echo(f"{found.differing:,} of {found.documents:,} documents differ")
        typer.echo(f"  {left}: {found.left_tokens:,} tokens, {found.left_unknown:,} unknown")
        typer.echo(f"  {right}: {found.right_tokens:,} tokens, {found.right_unknown:,} unknown")
        for each in found.differences:
            place = f"{each.file}, document {each.document}, {each.start}-{each.end}"
            typer.echo(f"{place}: {_visible(each.text)} ({', '.join(each.fields)})")
            typer.echo(f"  {left}: {' '.join(each.left)}")
            typer.echo(f"  {right}: {' '.join(each.right)}")
    if found.differing or found.rejected:
        raise typer.Exit(3)


def _visible(text: str) -> str:
    """Returns a text in which what cannot be seen is spelled out."""
    return "".join(char if char.isprintable() else f"<U+{ord(char):04X}>" for char in text)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None or value == {} else str(value)


def _print(found: dict[str, Any], as_json: bool, *, stderr: bool = False) -> None:
    if as_json:
        typer.echo(json.dumps(found), err=stderr)
        return
    for name, value in found.items():
        typer.echo(f"{name.replace('_', ' ')}: {_shown(value)}", err=stderr)


def _table(names: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*names)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, default=plain))


if __name__ == "__main__":
    main()
