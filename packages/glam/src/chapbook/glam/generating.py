"""Texts that go on from prompts: greedy, sampled, or found by beam search.

Notable choices:

- A prompt begins a document: an end stands before its first word, as in training.
- Prompts are padded on the left to a few lengths, read in one pass, and continued in a cache of
  fixed shape. Sampling runs on the device, `CHUNK` tokens at a time, until all rows have ended.
- A stop text is looked for in the decoded text, so that it may span tokens or end within one.
- Randomness depends on the seed, the prompt's number and the place alone: what is drawn for a
  prompt does not depend on who shares its batch.
- A prompt that leaves no room for the new tokens loses its first ones; how many is told.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from chapbook.core.errors import Error
from chapbook.core.transformer import Cache
from chapbook.glam.batching import batches, bucket, by_shape, padded
from chapbook.glam.language_model import LanguageModel, check_vocabulary, opened
from chapbook.glam.tokenizer import Tokenizer

CHUNK = 16  # tokens between looks at the text; each look waits for the device


@dataclass(frozen=True)
class Decoding:
    """How the next tokens are chosen.

    Attributes:
        max_new_tokens: The most that a prompt is continued by.
        beam: Hypotheses that a search keeps; 1 for no search.
        length_penalty: The α of the search; 0 compares plain log-probabilities.
        temperature: Divides the logits before drawing; 0 takes the most likely token.
        top_k: Draw from this many most likely tokens; all if None.
        top_p: Draw from the fewest most likely tokens whose probabilities reach this sum; all if
            None.
        stop: Texts that end the continuation, and are not part of it.
    """

    max_new_tokens: int = 64
    beam: int = 1
    length_penalty: float = 0.6
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ("\n",)

    def __post_init__(self):
        checks = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "beam": self.beam >= 1,
            "length_penalty": self.length_penalty >= 0,
            "temperature": 0 <= self.temperature < math.inf,
            "top_k": self.top_k is None or self.top_k >= 1,
            "top_p": self.top_p is None or 0 < self.top_p <= 1,
            "stop": all(self.stop),
        }
        for name, right in checks.items():
            if not right:
                raise Error(f"{name}={getattr(self, name)!r} is out of its range")
        if self.beam > 1 and self.temperature:
            raise Error("a beam search draws nothing", "give a beam or a temperature")
        if not self.temperature and (self.top_k or self.top_p):
            raise Error("top_k and top_p bound what is drawn", "give a temperature above 0")


@dataclass(frozen=True)
class Completion:
    """What follows a prompt.

    Attributes:
        text: Without the stop text.
        tokens: All that were chosen, the one that ended it among them.
        ended: Whether the end of the document or a stop text was met.
        truncated: How many tokens of the prompt were cut off, from its start.
    """

    text: str
    tokens: tuple[int, ...]
    ended: bool
    truncated: int


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    beam: int = 1,
    length_penalty: float = 0.6,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[str] = ("\n",),
    seed: int = 0,
    batch_size: int = 16,
) -> list[str]:
    """Returns what a model writes after each prompt; warns of prompts that were cut.

    Args:
        model: Causal.
        tokenizer: The model's.
        prompts: Texts; an empty one is the start of a document.
        max_new_tokens: As `Decoding` says, like those that follow.
        beam: Hypotheses that a search keeps.
        length_penalty: Of the search.
        temperature: Of what is drawn.
        top_k: Bounds what is drawn.
        top_p: Bounds what is drawn.
        stop: Texts that end the continuation.
        seed: Of what is drawn.
        batch_size: Prompts that are continued together.

    Raises:
        Error: As `complete` does.
    """
    how = Decoding(max_new_tokens, beam, length_penalty, temperature, top_k, top_p, tuple(stop))
    found = complete(model, tokenizer, prompts, how, seed=seed, batch_size=batch_size)
    if cut := sum(each.truncated > 0 for each in found):
        told = f"{cut} of {len(found)} prompts were longer than the context and lost their start"
        warnings.warn(told, stacklevel=2)
    return [each.text for each in found]


def complete(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    how: Decoding,
    *,
    seed: int = 0,
    batch_size: int = 16,
) -> list[Completion]:
    """Returns what a model writes after each prompt, with what is known of it.

    Args:
        model: Causal.
        tokenizer: The model's.
        prompts: Texts; an empty one is the start of a document.
        how: The next tokens are chosen.
        seed: Of what is drawn.
        batch_size: Prompts that are continued together.

    Returns:
        One for each prompt, in order.

    Raises:
        Error: The new tokens fill the model's context, or the tokenizer is not the model's.
    """
    check_vocabulary(model, tokenizer)
    room = model.config.context - how.max_new_tokens
    if room < 1:
        told = f"max_new_tokens={how.max_new_tokens} fills the context of {model.config.context}"
        raise Error(f"{told}; it leaves no room for a prompt")
    whole = [opened(tokenizer, prompt) for prompt in prompts]
    kept = [tokens[-room:] for tokens in whole]
    run = _searched if how.beam > 1 else _chosen
    found: list[Completion | None] = [None] * len(kept)
    shapes = [(bucket(len(tokens), room),) for tokens in kept]
    for (length,), places in by_shape(shapes, lambda _, of: len(of) >= batch_size):
        for part, count in batches(places, batch_size):
            texts = [_Text(tokenizer, kept[place], how.stop) for place in part]
            start = np.zeros(count, np.int32)
            start[: len(part)] = [length - len(kept[place]) for place in part]
            tokens = padded([kept[place] for place in part], count, length, left=True)
            numbers = np.resize(np.asarray(part, np.int32), count)
            read = _read(model, tokens, start, length + how.max_new_tokens)
            chosen = run(model, read, texts, numbers, how, seed)
            for place, text, ids in zip(part, texts, chosen, strict=True):
                cut = max(0, len(whole[place]) - 1 - room)  # the end is none of the prompt's
                found[place] = Completion(text.of(ids), tuple(ids), text.ended(ids), cut)
    return [each for each in found if each is not None]


class _Text:
    """What follows one prompt, as text: that of its last token and the new ones, less the former.

    Some tokenizers leave out a space in front of the first token that they are given.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]):
        self.tokenizer, self.last, self.stop = tokenizer, prompt[-1], stop
        self.before = len(tokenizer.decode([self.last]))

    def whole(self, ids: Sequence[int]) -> str:
        ids = [token for token in ids if token != self.tokenizer.end]
        return self.tokenizer.decode([self.last, *ids])[self.before :]

    def ended(self, ids: Sequence[int]) -> bool:
        """Tells whether the last of these is the end, or completes a stop text."""
        return ids[-1] == self.tokenizer.end or any(s in self.whole(ids) for s in self.stop)

    def of(self, ids: Sequence[int]) -> str:
        text = self.whole(ids)
        return text[: min((text.find(s) for s in self.stop if s in text), default=None)]

    def cut(self, ids: Sequence[int]) -> list[int]:
        """Returns tokens up to the one that ends them."""
        ids = list(ids)
        if self.tokenizer.end in ids:
            ids = ids[: ids.index(self.tokenizer.end) + 1]
        if not any(s in self.whole(ids) for s in self.stop):
            return ids
        return next(ids[:n] for n in range(1, len(ids) + 1) if self.ended(ids[:n]))


@eqx.filter_jit
def _read(
    model: Any, tokens: Array | np.ndarray, start: Array | np.ndarray, capacity: int
) -> tuple[Array, Cache]:
    """Returns the logits of what comes after prompts, and their cache."""
    logits, cache = model.prefill(jnp.asarray(tokens), capacity, start=jnp.asarray(start))
    return logits[:, -1], cache


class _State(eqx.Module):
    """What a loop of choices carries; `count` tokens of each row have been chosen."""

    logits: Float[Array, "rows vocab"]
    cache: Cache
    tokens: Int[Array, "rows new"]
    done: Array
    count: Int[Array, ""]


def _chosen(
    model: LanguageModel,
    read: tuple[Array, Cache],
    texts: Sequence[_Text],
    numbers: np.ndarray,
    how: Decoding,
    seed: int,
) -> list[list[int]]:
    """Continues prompts by one choice of token after the other."""
    end, rows = texts[0].tokenizer.end, len(numbers)
    done = np.arange(rows) >= len(texts)
    tokens = jnp.full((rows, how.max_new_tokens), end, jnp.int32)
    state = _State(*read, tokens, jnp.asarray(done), jnp.int32(0))
    # Chunks and stop texts are not the program's: it is the same for all of them.
    how = dataclasses.replace(how, stop=())
    found: list[list[int]] = []
    for until in _chunks(how.max_new_tokens):
        key, last = jax.random.key(seed), jnp.int32(until)
        state = _advanced(model, state, numbers, last, key, jnp.int32(end), how)
        written = np.asarray(state.tokens)[:, : int(state.count)]
        found = [text.cut(row.tolist()) for text, row in zip(texts, written, strict=False)]
        done[: len(texts)] = [text.ended(ids) for text, ids in zip(texts, found, strict=True)]
        if done.all():
            break
        state = dataclasses.replace(state, done=jnp.asarray(done))
    return found


def _chunks(tokens: int) -> Iterator[int]:
    yield from range(CHUNK, tokens, CHUNK)
    yield tokens


@eqx.filter_jit(donate="all-except-first")
def _advanced(
    model: Any,
    state: _State,
    numbers: Array | np.ndarray,
    until: Array,
    key: PRNGKeyArray,
    end: Array,
    how: Decoding,
) -> _State:
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.asarray(numbers))

    def more(state: _State) -> Array:
        return (state.count < until) & ~state.done.all()

    def step(state: _State) -> _State:
        each = jax.vmap(lambda key: jax.random.fold_in(key, state.count))(keys)
        token = jax.vmap(lambda logits, key: choose(logits, key, how))(state.logits, each)
        token = jnp.where(state.done, end, token)
        tokens = jax.lax.dynamic_update_slice_in_dim(
            state.tokens, token[:, None], state.count, axis=1
        )
        logits, cache = model.decode(token[:, None], state.cache)
        return _State(logits[:, 0], cache, tokens, state.done | (token == end), state.count + 1)

    return jax.lax.while_loop(more, step, state)


def choose(logits: Float[Array, " vocab"], key: PRNGKeyArray, how: Decoding) -> Int[Array, ""]:
    """Draws from `softmax(logits / temperature)` within the top k, and within their top p.

    Args:
        logits: Of the next token.
        key: Randomness.
        how: The temperature, 0 for the most likely token, and the bounds.

    Returns:
        The token.

    Reference:
        Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020), equations 2 to 4.
    """
    if not how.temperature:
        return jnp.argmax(logits).astype(jnp.int32)
    logits = logits.astype(jnp.float32) / how.temperature
    if how.top_k is None and how.top_p is None:
        return jax.random.categorical(key, logits).astype(jnp.int32)
    highest, tokens = jax.lax.top_k(logits, min(how.top_k or logits.size, logits.size))
    if how.top_p is not None:
        chances = jax.nn.softmax(highest)
        highest = jnp.where(jnp.cumsum(chances) - chances < how.top_p, highest, -jnp.inf)
    return tokens[jax.random.categorical(key, highest)].astype(jnp.int32)


@dataclass
class _Beam:
    """The search after one prompt: hypotheses that live on, and the best that has ended."""

    text: _Text
    live: list[tuple[float, list[int]]] = field(default_factory=lambda: [(0.0, [])])
    best: tuple[float, list[int]] = (-math.inf, [])

    def grow(self, ranked: Iterable[tuple[float, int, int]], how: Decoding) -> list[int]:
        """Takes the extensions, the most likely first, and returns whose the live ones are."""
        parents, live = [], []
        for rank, (total, parent, token) in enumerate(ranked):
            ids = [*self.live[parent][1], token]
            if not self.text.ended(ids):
                parents.append(parent)
                live.append((total, ids))
            elif rank < how.beam:
                self.best = max(self.best, (total / penalty(len(ids), how), ids))
            if len(live) == how.beam:
                break
        self.live = live
        return parents

    def hopeless(self, how: Decoding) -> bool:
        """Tells that no hypothesis can still become better than the best."""
        bound = max((total for total, _ in self.live), default=-math.inf)
        return bound / penalty(how.max_new_tokens, how) <= self.best[0]

    def result(self, how: Decoding) -> list[int]:
        left = [(total / penalty(len(ids), how), ids) for total, ids in self.live]
        return max([self.best, *left])[1]


def penalty(tokens: int, how: Decoding) -> float:
    """Returns `((5 + tokens) / 6)^α`, by which the log-probability of a hypothesis is divided.

    Reference:
        Wu et al., "Google's Neural Machine Translation System" (2016), equation 14.
    """
    return ((5 + tokens) / 6) ** how.length_penalty


def _searched(
    model: LanguageModel,
    read: tuple[Array, Cache],
    texts: Sequence[_Text],
    numbers: np.ndarray,
    how: Decoding,
    seed: int,
) -> list[list[int]]:
    """Continues prompts by the best hypothesis of a beam search.

    At each step the `2 beam` most likely extensions are looked at. Those that end are kept if they
    are among the first `beam`; the first `beam` of the others live on. The search goes on until
    none that lives can become better than the best that has ended.
    """
    del seed  # nothing is drawn
    rows, width = len(numbers), how.beam
    beams = [_Beam(text) for text in texts]
    scores = np.full((rows, width), -np.inf, np.float32)
    scores[:, 0] = 0
    logits, cache = read
    cache = cache.rows(jnp.repeat(jnp.arange(rows), width))
    logits, vocab = jnp.repeat(logits, width, axis=0), logits.shape[-1]
    for count in range(1, how.max_new_tokens + 1):
        totals, chosen = (np.asarray(x) for x in _ranked(logits, scores))
        parents = np.arange(rows * width).reshape(rows, width)
        tokens = np.zeros((rows, width), np.int32)
        scores = np.full((rows, width), -np.inf, np.float32)
        for row, beam in enumerate(beams):
            if not beam.live:
                continue
            real = np.isfinite(totals[row])
            columns = (totals[row, real], *divmod(chosen[row, real], vocab))
            grown = beam.grow(zip(*(column.tolist() for column in columns), strict=True), how)
            if beam.hopeless(how):
                beam.live = []
                continue
            parents[row, : len(grown)] = row * width + np.asarray(grown)
            tokens[row, : len(grown)] = [ids[-1] for _, ids in beam.live]
            scores[row, : len(grown)] = [total for total, _ in beam.live]
        if count == how.max_new_tokens or not any(beam.live for beam in beams):
            break
        logits, cache = _grown(model, cache, parents.reshape(-1), tokens.reshape(-1, 1))
    return [beam.result(how) for beam in beams]


@eqx.filter_jit
def _ranked(logits: Array, scores: Array | np.ndarray) -> tuple[Array, Array]:
    """Returns the totals of the most likely extensions of each row, and which they are."""
    rows, width = scores.shape
    logs = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(rows, width, -1)
    totals = (jnp.asarray(scores)[..., None] + logs).reshape(rows, -1)
    highest, places = jax.lax.top_k(totals, 2 * width)
    return highest, places


@eqx.filter_jit(donate="all-except-first")
def _grown(
    model: Any, cache: Cache, parents: Array | np.ndarray, tokens: Array | np.ndarray
) -> tuple[Array, Cache]:
    logits, cache = model.decode(jnp.asarray(tokens), cache.rows(jnp.asarray(parents)))
    return logits[:, 0], cache
