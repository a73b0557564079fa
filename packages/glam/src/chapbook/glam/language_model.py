"""What generation and evaluation ask of a model, and how it meets a text."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int

from chapbook.core.errors import Error
from chapbook.core.transformer import Cache
from chapbook.glam.tokenizer import Tokenizer


@runtime_checkable
class Sizes(Protocol):
    """What a model's configuration tells."""

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        ...

    @property
    def context(self) -> int:
        """The most tokens that the model looks at."""
        ...


@runtime_checkable
class LanguageModel(Protocol):
    """A causal model, a pytree whose outputs do not depend on who shares the batch."""

    @property
    def config(self) -> Sizes:
        """Its sizes."""
        ...

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        *,
        segments: Int[Array, "batch tokens"] | None = None,
    ) -> tuple[Float[Array, "batch tokens vocab"], Any]:
        """Returns the logits of each next token, and what is measured on the way."""
        ...

    def prefill(
        self,
        tokens: Int[Array, "batch tokens"],
        capacity: int,
        *,
        start: Int[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, "batch 1 vocab"], Cache]:
        """Returns the logits of what follows, and a cache with room for `capacity` tokens.

        The first `start` tokens of each row are padding.
        """
        ...

    def decode(
        self, tokens: Int[Array, "batch tokens"], cache: Cache
    ) -> tuple[Float[Array, "batch tokens vocab"], Cache]:
        """Returns the logits of tokens that follow those in the cache, and the cache with them."""
        ...


def opened(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the tokens of a text in front of which an end stands.

    In training, an end precedes the first word of each document.

    Args:
        tokenizer: The model's.
        text: The beginning of a document; of an empty one the end is left.
    """
    return [tokenizer.end, *tokenizer.encode(text).tolist()]


def check_vocabulary(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Raises an error that tells both sizes, if a tokenizer is not the one of a model."""
    if model.config.vocab_size != tokenizer.vocab_size:
        raise Error(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}",
            "take the tokenizer that the model was trained with",
        )
