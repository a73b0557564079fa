"""Log-likelihoods: of continuations after contexts, and of documents, in bits per byte.

Notable choices:

- A context and its continuation are tokenized as lm-evaluation-harness does: spaces at the end of
  the context move to the continuation, both are encoded together, and the tokens after those of
  the context alone are the continuation's. Where encoding both changes the context's own tokens,
  that rule would score less than the continuation; it is then encoded by itself.
- A context begins a document: an end stands before its first word, as in training, and is all
  that there is of an empty one.
- The options of one question share one pass over their context.
- Rows of like length share a batch, padded to a few lengths, so that few programs are compiled: a
  length has one of its own if it fills several batches, as compiling takes as long as they do.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Array, Bool, Float, Int

from chapbook.core.errors import Error
from chapbook.glam.batching import batches, bucket, by_shape, padded
from chapbook.glam.language_model import LanguageModel, check_vocabulary, opened
from chapbook.glam.tokenizer import Tokenizer

BATCHES = 4  # that a program is compiled for


class LogLikelihood(NamedTuple):
    """What a model thinks of a continuation.

    Attributes:
        total: `log P(continuation | context)`, in nats.
        tokens: How many the continuation has.
        greedy: Whether each is the most likely one in its place.
        truncated: How many tokens of the context were cut off, from its start.
    """

    total: float
    tokens: int
    greedy: bool
    truncated: int


def log_likelihoods(
    model: LanguageModel,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_tokens: int = 8192,
) -> list[LogLikelihood]:
    """Computes `sum_i log P(y_i | x, y_1 .. y_{i-1})` for each context x and continuation y.

    Args:
        model: Causal.
        tokenizer: The model's.
        pairs: Contexts and continuations, as texts.
        batch_tokens: Tokens in a batch; their logits take 4 bytes times the vocabulary each.

    Returns:
        One for each pair, in order.

    Raises:
        Error: A continuation is empty or longer than the model's context, or the tokenizer is not
            the model's.
    """
    check_vocabulary(model, tokenizer)
    longest, rows = model.config.context, []
    for place, (context, continuation) in enumerate(pairs):
        if not continuation:
            raise Error(f"continuation {place} is empty; its probability says nothing")
        before, after = encode_pair(tokenizer, context, continuation)
        if len(after) > longest:
            told = f"continuation {place} has {len(after)} tokens, the model looks at {longest}"
            raise Error(told, "score it as a document")
        rows.append((before, after, max(0, len(before) + len(after) - 1 - longest)))
    contexts = defaultdict(list)
    for place, (before, _, cut) in enumerate(rows):
        contexts[tuple(before[cut:])].append(place)
    found: dict[int, tuple[float, bool]] = {}
    alone = [places[0] for places in contexts.values() if len(places) == 1]
    whole = [(rows[p][0][rows[p][2] :] + rows[p][1], len(rows[p][1])) for p in alone]
    found.update(zip(alone, _rows(model, whole, batch_tokens), strict=True))
    shared = [(context, places) for context, places in contexts.items() if len(places) > 1]
    options = [(list(context), [rows[p][1] for p in places]) for context, places in shared]
    each = [place for _, places in shared for place in places]
    found.update(zip(each, _options(model, options, batch_tokens), strict=True))
    return [
        # The end in front is no token of the context's.
        LogLikelihood(found[p][0], len(after), found[p][1], max(0, cut - 1))
        for p, (_, after, cut) in enumerate(rows)
    ]


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Returns the tokens of a context, an end in front, and those of its continuation."""
    text = context.rstrip()
    continuation = context[len(text) :] + continuation
    before, both = opened(tokenizer, text), opened(tokenizer, text + continuation)
    after = both[len(before) :] if both[: len(before)] == before else []
    return before, after or tokenizer.encode(continuation).tolist()


def bits_per_byte(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    stride: int | None = None,
    batch_tokens: int = 8192,
) -> pl.DataFrame:
    """Computes `-log2 P(text) / bytes` of each text, which compares across tokenizers.

    The first token is predicted from the one that ends a document. A text longer than the model's
    context is read in windows that overlap; each token counts once.

    Args:
        model: Causal.
        tokenizer: The model's.
        texts: Documents.
        stride: Tokens that each further window adds, so that each of them has at least the
            model's context less a stride before it; half of the context if None.
        batch_tokens: As in `log_likelihoods`.

    Returns:
        A row for each text: `tokens`, `bytes` (of UTF-8), `log_likelihood` in nats, and
        `bits_per_byte`, null for an empty text.

    Raises:
        Error: The stride is not within the context, or the tokenizer is not the model's.
    """
    check_vocabulary(model, tokenizer)
    longest = model.config.context
    stride = max(1, longest // 2) if stride is None else stride
    if not 0 < stride <= longest:
        raise Error(f"stride={stride} is not within the model's context of {longest}")
    rows, owners, counts = [], [], []
    for document, text in enumerate(texts):
        tokens = opened(tokenizer, text)
        counts.append(len(tokens) - 1)
        for begin, first, last in windows(len(tokens), longest, stride):
            rows.append((tokens[begin:last], last - first))
            owners.append(document)
    totals = np.zeros(len(texts))
    for owner, (total, _) in zip(owners, _rows(model, rows, batch_tokens), strict=True):
        totals[owner] += total
    sizes = [len(text.encode()) for text in texts]
    schema = {"tokens": pl.Int64, "bytes": pl.Int64, "log_likelihood": pl.Float64}
    table = pl.DataFrame([counts, sizes, totals], schema=schema)
    bits = -pl.col("log_likelihood") / np.log(2) / pl.col("bytes")
    return table.with_columns(bits_per_byte=pl.when(pl.col("bytes") > 0).then(bits))


def windows(tokens: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yields where each window begins, the first token that counts in it, and its end.

    Args:
        tokens: How many there are. The first never counts.
        context: A window holds one more, as its last token is predicted only.
        stride: Tokens that count in each window but the first.
    """
    first = 1
    while first < tokens:
        last = min(tokens, first + (context if first == 1 else stride))
        yield max(0, last - context - 1), first, last
        first = last


def _rows(
    model: LanguageModel, rows: Sequence[tuple[list[int], int]], batch_tokens: int
) -> list[tuple[float, bool]]:
    """Scores as many of the last tokens of each row as the number beside it says."""
    found: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
    shapes = [(bucket(len(tokens) - 1, model.config.context),) for tokens, _ in rows]
    most = functools.partial(_most, batch_tokens)
    for (length,), places in by_shape(shapes, lambda s, of: len(of) >= BATCHES * most(s)):
        for part, count in batches(places, most((length,))):
            tokens = padded([rows[p][0] for p in part], count, length + 1)
            inside = np.zeros((count, length), bool)
            for row, p in enumerate(part):
                last = len(rows[p][0]) - 1
                inside[row, last - rows[p][1] : last] = True
            found_here = _scored(model, tokens, inside)
            for p, total, greedy in zip(part, *map(np.asarray, found_here), strict=False):
                found[p] = float(total), bool(greedy)
    return found


def _most(batch_tokens: int, shape: tuple[int, ...]) -> int:
    """Returns how many rows of a shape a batch holds."""
    return max(1, batch_tokens // sum(shape))


def _options(
    model: LanguageModel,
    questions: Sequence[tuple[list[int], list[list[int]]]],
    batch_tokens: int,
) -> list[tuple[float, bool]]:
    """Scores the options of each question: its context is read once, the options are decoded."""
    shapes = []
    for context, options in questions:
        width = max(map(len, options)) - 1
        shapes.append((bucket(len(context), model.config.context), width and bucket(width)))
    most = functools.partial(_most, batch_tokens)
    found: dict[tuple[int, int], tuple[float, bool]] = {}

    def enough(shape: tuple[int, ...], places: list[int]) -> bool:
        return sum(len(questions[p][1]) for p in places) >= BATCHES * most(shape)

    for (length, width), places in by_shape(shapes, enough):
        each = [(p, o) for p in places for o in range(len(questions[p][1]))]
        parts = [
            ([each[p] for p in part], count)
            for part, count in batches(range(len(each)), most((length, width)))
        ]
        room = bucket(max(len({question for question, _ in part}) for part, _ in parts))
        for chosen, count in parts:
            held = sorted({question for question, _ in chosen})
            contexts = [questions[question][0] for question in held]
            told = [questions[question][1][option] for question, option in chosen]
            parent = np.zeros(count, np.int32)
            parent[: len(chosen)] = np.searchsorted(held, [question for question, _ in chosen])
            size = np.zeros(count, np.int32)
            size[: len(told)] = [len(tokens) for tokens in told]
            start = np.zeros(room, np.int32)
            start[: len(held)] = [length - len(context) for context in contexts]
            totals, greedy = _branched(
                model, padded(contexts, room, length, left=True), start, parent,
                padded(told, count, width + 1), size,
            )  # fmt: skip
            for key, *score in zip(chosen, np.asarray(totals), np.asarray(greedy), strict=False):
                found[key] = float(score[0]), bool(score[1])
    return [found[p, o] for p, (_, options) in enumerate(questions) for o in range(len(options))]


@eqx.filter_jit
def _scored(model: Any, tokens: Array | np.ndarray, inside: Array | np.ndarray) -> Any:
    tokens = jnp.asarray(tokens)
    logits, _ = model(tokens[:, :-1])
    return _along(logits, tokens[:, 1:], jnp.asarray(inside))


@eqx.filter_jit
def _branched(
    model: Any,
    contexts: Array | np.ndarray,
    start: Array | np.ndarray,
    parent: Array | np.ndarray,
    options: Array | np.ndarray,
    size: Array | np.ndarray,
) -> Any:
    options, parent = jnp.asarray(options), jnp.asarray(parent)
    width = options.shape[1]
    capacity = contexts.shape[1] + width - 1
    logits, cache = model.prefill(jnp.asarray(contexts), capacity, start=jnp.asarray(start))
    ahead = logits[parent, -1:]
    if width > 1:
        further, _ = model.decode(options[:, :-1], cache.rows(parent))
        ahead = jnp.concatenate([ahead, further], 1)
    return _along(ahead, options, jnp.arange(width) < jnp.asarray(size)[:, None])


def _along(
    logits: Float[Array, "rows tokens vocab"],
    tokens: Int[Array, "rows tokens"],
    inside: Bool[Array, "rows tokens"],
) -> tuple[Float[Array, " rows"], Bool[Array, " rows"]]:
    """Sums the log-probabilities of tokens, and tells whether all are the most likely ones."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    each = chosen - jax.nn.logsumexp(logits, axis=-1)
    likely = jnp.argmax(logits, -1) == tokens
    return jnp.where(inside, each, 0).sum(-1), (likely | ~inside).all(-1)
