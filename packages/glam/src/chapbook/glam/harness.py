"""A model as lm-evaluation-harness calls it, so that any of its tasks run.

    import lm_eval
    from chapbook.glam.harness import GLaMLM

    results = lm_eval.simple_evaluate(GLaMLM(model, tokenizer), tasks=["lambada_openai"])

A text begins with an end, as in training; lm-eval's own models do the same if they are given
`add_bos_token`, and an end as that token.

`GLaMLM` is a subclass of `lm_eval.api.model.LM`, made when it is first asked for, as lm-eval is an
extra: `pip install 'chapbook-glam[harness]'`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from chapbook.core.errors import Error, MissingExtra
from chapbook.glam.generating import Decoding, complete
from chapbook.glam.language_model import LanguageModel
from chapbook.glam.scoring import bits_per_byte, log_likelihoods
from chapbook.glam.tokenizer import Tokenizer

if TYPE_CHECKING:
    GLaMLM: Any

# What lm-eval's tasks say of generation. What is not here would change it unnoticed.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = {"do_sample", "num_beams", "temperature", "top_k", "top_p", "until", *_LENGTHS}


class Request(Protocol):
    """What lm-eval's `Instance` tells."""

    @property
    def args(self) -> tuple:
        """The context, and the continuation or how to generate it."""
        ...


class Requests:
    """Answers the three kinds of requests.

    Args:
        model: Causal.
        tokenizer: The model's.
        max_gen_toks: New tokens where a task does not say.
        seed: Of what is drawn, where a task asks for it.
        batch_size: Texts that are generated together.
        batch_tokens: Tokens that are scored together.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        max_gen_toks: int = 256,
        seed: int = 0,
        batch_size: int = 16,
        batch_tokens: int = 8192,
    ):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.max_gen_toks, self.seed = max_gen_toks, seed
        self.batch_size, self.batch_tokens = batch_size, batch_tokens

    def loglikelihood(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
    ) -> list[tuple[float, bool]]:
        """Returns `log P(continuation | context)`, and whether greedy decoding would write it."""
        pairs = [request.args for request in requests]
        found = log_likelihoods(self.model, self.tokenizer, pairs, batch_tokens=self.batch_tokens)
        return [(each.total, each.greedy) for each in found]

    def loglikelihood_rolling(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
    ) -> list[float]:
        """Returns `log P(text)` in windows that do not overlap, as lm-eval's own models do."""
        texts = [request.args[0] for request in requests]
        found = bits_per_byte(
            self.model, self.tokenizer, texts,
            stride=self.model.config.context, batch_tokens=self.batch_tokens,
        )  # fmt: skip
        return found["log_likelihood"].to_list()

    def generate_until(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
    ) -> list[str]:
        """Returns what follows each context, up to the texts that `until` names."""
        alike: dict[Decoding, list[int]] = {}
        for place, request in enumerate(requests):
            alike.setdefault(self._how(request.args[1]), []).append(place)
        found: dict[int, str] = {}
        for how, places in alike.items():
            prompts = [requests[place].args[0] for place in places]
            written = complete(
                self.model, self.tokenizer, prompts, how,
                seed=self.seed, batch_size=self.batch_size,
            )  # fmt: skip
            found.update(zip(places, (each.text for each in written), strict=True))
        return [found[place] for place in range(len(requests))]

    def _how(self, told: Mapping[str, Any]) -> Decoding:
        """Returns what a task's arguments mean, as lm-eval reads them for its own models."""
        if unknown := sorted(set(told) - _KNOWN):
            known = ", ".join(sorted(_KNOWN))
            raise Error(f"generation knows no {', '.join(unknown)}; it knows {known}")
        until = told.get("until") or ()
        tokens = next((told[name] for name in _LENGTHS if told.get(name)), self.max_gen_toks)
        temperature = float(told.get("temperature", 0) or 0)
        # As in transformers, a task that samples and gives no temperature means 1.
        if told.get("do_sample") and "temperature" not in told:
            temperature = 1.0
        if told.get("do_sample") is False:
            temperature = 0.0
        bounds = {n: told[n] for n in ("top_k", "top_p") if temperature and told.get(n)}
        return Decoding(
            int(tokens), int(told.get("num_beams", 1)), temperature=temperature,
            stop=(until,) if isinstance(until, str) else tuple(until), **bounds,
        )  # fmt: skip


@functools.cache
def _adapter() -> type:
    try:
        from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as problem:
        if (problem.name or "").partition(".")[0] != "lm_eval":
            raise
        told = "the adapter needs lm-evaluation-harness, which is not installed"
        raise MissingExtra(told, "pip install 'chapbook-glam[harness]'") from None
    return type("GLaMLM", (Requests, LM), {"__doc__": Requests.__doc__, "__module__": __name__})


def __getattr__(name: str) -> Any:
    if name != "GLaMLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _adapter()
