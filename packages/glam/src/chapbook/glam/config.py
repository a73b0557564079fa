"""What shapes a model: the paper's ladder of sizes, how tokens are routed, scales of the ends.

A line of text says it, `0.1B/64E,vocab=2048,context=256`, and every configuration prints such a
line.
"""

import dataclasses
import math
import re
from typing import Any, Literal, Self

from chapbook.core.errors import Error

# The paper's table 4: layers, width, width of a feed-forward layer or an expert, heads. Heads of
# `0.1B` have a width of 64, all others of 128. `desk` is a size for two cores, not of the paper.
PRESETS = {
    "0.1B": (12, 768, 3072, 12, 64),
    "1.7B": (24, 2048, 8192, 16, 128),
    "8B": (32, 4096, 16384, 32, 128),
    "64B": (64, 8192, 32768, 128, 128),
    "137B": (64, 8192, 65536, 128, 128),
    "desk": (4, 128, 512, 4, 32),
}
SIZES = {
    "layers": "num_layers", "width": "embed", "hidden": "hidden", "heads": "num_heads",
    "head": "head_dim", "vocab": "vocab_size", "context": "context", "expert": "expert_hidden",
}  # fmt: skip
GRAMMAR = "SIZE[/nE][,vocab=,context=,layers=,width=,hidden=,heads=,head=,expert=]"


@dataclasses.dataclass(frozen=True)
class GLaMConfig:
    """What shapes a decoder whose every other feed-forward layer is a bank of experts.

    Args:
        num_layers: Layers, L.
        embed: Width of a token, M.
        hidden: Width within a feed-forward layer or an expert, H.
        num_heads: Attention heads, n.
        head_dim: Width of a head, d.
        vocab_size: Tokens that there are.
        num_experts: Experts in each layer that has some, E; 0 makes a dense model, and 1 an expert
            for all tokens in those layers, without a router.
        context: Tokens that the model is trained on at a time; it may be given longer ones.
        expert_hidden: Width within an expert; `hidden` if None.
        moe_offset: 0 puts experts into layers 0, 2, 4, ..., 1 into 1, 3, 5, ...
        gated: Whether dense feed-forward layers have a gate (GEGLU). Experts have none.
        activation: Of experts: the paper's text says `gelu`, the public code has `relu` by default.
        buckets: Of the attention's bias by distance.
        max_distance: From there on all distances share a bucket.
        attention_cap: Logits of the attention become `cap tanh(x / cap)`; 0 leaves them.
        capacity_factor: Room in the experts' buffers for training: of a group of S tokens each
            expert takes `S factor / E`. 2 is exactly room for both choices of all tokens.
        capacity: Tokens that an expert takes of a group, in place of the factor.
        group_size: Tokens that compete for the same buffers, S; None takes a row of the batch.
        normalize: Whether both weights are divided by their sum `before` tokens are dropped, so
            that a token that loses one expert keeps only its share of the other, or `after`.
        second: How the second expert is chosen in training: the best of the rest (`all`), drawn by
            its probability (`sampling`), or the best, with probability `g2 / threshold` (`random`).
        threshold: Of `random`.
        router_cap: The router's logits become `cap tanh(x / cap)`; 0 leaves them.
        aux_weight: Weight of the loss for even loads.
        z_weight: Weight of the mean of `logsumexp(logits)^2`, which keeps logits small.
        scale_input: Whether embedded tokens are multiplied by `sqrt(M)`. The table is drawn with a
            standard deviation of 1, and logits are multiplied by `M^-1/2`, as in Mesh TensorFlow.
        remat: What the gradient computes anew: nothing, all within two layers (`full`), or all but
            the products with weights (`dots`).

    Raises:
        Error: A value is out of its range, with the range.

    Reference:
        Du et al., "GLaM" (2022), section 4 and table 4.
    """

    num_layers: int
    embed: int
    hidden: int
    num_heads: int
    head_dim: int
    vocab_size: int = 256_000
    num_experts: int = 0
    context: int = 1024
    expert_hidden: int | None = None
    moe_offset: Literal[0, 1] = 0
    gated: bool = True
    activation: Literal["gelu", "relu"] = "gelu"
    buckets: int = 32
    max_distance: int = 128
    attention_cap: float = 0.0
    capacity_factor: float = 2.0
    capacity: int | None = None
    group_size: int | None = None
    normalize: Literal["before", "after"] = "before"
    second: Literal["all", "sampling", "random"] = "all"
    threshold: float = 0.2
    router_cap: float = 0.0
    aux_weight: float = 0.01
    z_weight: float = 1e-4
    scale_input: bool = False
    remat: Literal["none", "full", "dots"] = "none"

    def __post_init__(self):
        for name in ("num_layers", "embed", "hidden", "num_heads", "head_dim", "vocab_size",
                     "context", "expert_hidden", "capacity", "group_size"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise Error(f"{name}={value} must be 1 or more")
        if self.num_experts < 0:
            raise Error(f"num_experts={self.num_experts} must be 0, for a dense model, or more")
        if self.num_experts and self.num_layers % 2:
            raise Error(f"num_layers={self.num_layers} must be even, as every other has experts")
        if self.buckets < 2 or self.max_distance <= self.buckets // 2:
            raise Error(
                f"buckets={self.buckets} and max_distance={self.max_distance}: two buckets or more "
                "are needed, and a distance beyond half of them"
            )
        if not 0 < self.capacity_factor < math.inf or not self.threshold > 0:
            raise Error(f"capacity_factor={self.capacity_factor} and threshold={self.threshold} "
                        "must be above 0")  # fmt: skip
        for name in ("attention_cap", "router_cap", "aux_weight", "z_weight"):
            if not getattr(self, name) >= 0:
                raise Error(f"{name}={getattr(self, name)} must be 0 or above")

    @property
    def expert_width(self) -> int:
        """Width within an expert."""
        return self.expert_hidden or self.hidden

    def dense_counterpart(self) -> Self:
        """Returns the dense model that computes as much for a token.

        In place of experts its layers have one feed-forward network, as wide as two of them.
        """
        if self.num_experts < 2:
            return self
        return dataclasses.replace(self, num_experts=1, expert_hidden=2 * self.expert_width)

    def ladder(self, rungs: int) -> list[Self]:
        """Returns smaller models, the smallest first, each half as wide as the next.

        Args:
            rungs: How many.

        Raises:
            Error: A width or the heads cannot be halved so often.

        Reference:
            Du et al. (2022), section 5: models of the ladder are trained before a large one.
        """
        parts = 2**rungs
        halved = {"embed": self.embed, "hidden": self.hidden, "num_heads": self.num_heads}
        if self.expert_hidden:
            halved["expert_hidden"] = self.expert_hidden
        for name, value in halved.items():
            if value % parts:
                raise Error(f"{name}={value} cannot be halved {rungs} times", "take fewer rungs")
        return [
            dataclasses.replace(self, **{n: v // 2**k for n, v in halved.items()})
            for k in range(rungs, 0, -1)
        ]

    @property
    def moe_layers(self) -> range:
        """The layers, counted from 0, that have experts."""
        return range(self.moe_offset, self.num_layers, 2) if self.num_experts else range(0)

    @classmethod
    def preset(cls, name: str, **settings: Any) -> Self:
        """Returns a size of the paper's ladder, or that of a desk.

        Args:
            name: Such as `0.1B`, dense, or `0.1B/64E`, with 64 experts.
            settings: Any other fields.

        Raises:
            Error: There is no such size, or a value is wrong.
        """
        found = re.fullmatch(r"([\w.]+?)(?:/(\d+)E)?", name)
        if not found or found[1] not in PRESETS:
            raise Error(f"{name!r} is no SIZE[/nE]; sizes are {', '.join(PRESETS)}")
        names = ("num_layers", "embed", "hidden", "num_heads", "head_dim")
        sizes: dict[str, Any] = dict(zip(names, PRESETS[found[1]], strict=True))
        return cls(**({**sizes, "num_experts": int(found[2] or 0)} | settings))

    @classmethod
    def from_string(cls, text: str, **settings: Any) -> Self:
        """Returns the configuration that a line says.

        Args:
            text: Such as `desk/8E,vocab=2048,context=256`: a size, and what differs from it.
            settings: Any other fields.

        Raises:
            Error: The line or a value is wrong.
        """
        head, *rest = text.replace(" ", "").split(",")
        given: dict[str, Any] = {}
        for part in rest:
            name, _, value = part.partition("=")
            if name not in SIZES or not value.isdigit():
                raise Error(f"{part!r} in {text!r} is not understood; a line is {GRAMMAR}")
            given[SIZES[name]] = int(value)
        return cls.preset(head, **(given | settings))

    def __str__(self) -> str:
        names = list(SIZES.values())[:5]
        sizes = tuple(getattr(self, name) for name in names)
        # The nearest preset is the one that agrees in most sizes.
        near = max(
            PRESETS, key=lambda v: sum(a == b for a, b in zip(PRESETS[v], sizes, strict=True))
        )
        parts = [near + (f"/{self.num_experts}E" if self.num_experts else "")]
        usual = dict(zip(names, PRESETS[near], strict=True))
        usual |= {"vocab_size": 256_000, "context": 1024, "expert_hidden": None}
        parts += [
            f"{word}={getattr(self, name)}"
            for word, name in SIZES.items()
            if getattr(self, name) != usual[name]
        ]
        return ",".join(parts)
