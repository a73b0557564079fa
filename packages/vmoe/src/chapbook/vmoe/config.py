"""What shapes a model: sizes by the paper's letters, where experts stand, how tokens are routed.

A line of text says it, `B/16,E=8,K=2,every=2`, and every configuration prints such a line.
"""

import dataclasses
import math
import re
from typing import Any, Literal, Self

from chapbook.core.errors import Error

# Layers, width, width of the feed-forward block, heads. The paper's S has 8 layers of width 512: it
# is not the ViT-S of the later literature. Ti stands for a model of the size of a desk's.
VARIANTS = {
    "Ti": (4, 64, 128, 4),
    "S": (8, 512, 2048, 8),
    "B": (12, 768, 3072, 12),
    "L": (24, 1024, 4096, 16),
    "H": (32, 1280, 5120, 16),
    "15B": (48, 1408, 6400, 16),
}
SIZES = {"depth": "num_layers", "width": "hidden_size", "mlp": "mlp_dim", "heads": "num_heads"}
GRAMMAR = (
    "VARIANT/PATCH[,E=experts,K=selected,every=n|last=n|layers=1+3][,depth=,width=,mlp=,heads=]"
)


@dataclasses.dataclass(frozen=True)
class VMoEConfig:
    """What shapes a Vision Transformer whose feed-forward blocks are experts in chosen layers.

    Args:
        patch_size: Pixels of a patch's side, p.
        num_layers: Blocks, L.
        hidden_size: Width of a token, D.
        mlp_dim: Width within a feed-forward block or an expert, H.
        num_heads: Attention heads.
        moe_layers: The layers, counted from 0, that have experts; none makes a plain ViT.
        num_experts: Experts in each of them, E.
        num_selected_experts: Experts that a token is sent to at most, K.
        image_size: Pixels of an image's side.
        channels: Of an image.
        num_classes: Of the head; 0 leaves the features as they are.
        classifier: What is classified: a learned `token`, the mean of the tokens (`gap`), what a
            learned probe attends to (`map`), or the `first` token with none added.
        position: Embedding of positions: `learned`, fixed waves (`sincos2d`), or `none`.
        representation: Width of a tanh layer before the head; None leaves it out.
        head_bias: The constant that the head's bias begins with.
        dropout: Rate at which activations are dropped in training.
        expert_dropout: The same within experts; None takes `dropout`.
        gelu_approximate: Whether GELU is the tanh form, which released weights were trained with.
        group_size: Tokens that compete for the same buffers, S; None is eight images' worth.
        capacity_factor: Room in the experts' buffers over what balanced routing needs, C.
        capacity_multiple: Buffers are rounded up to a multiple of this.
        batch_priority: Whether buffers are filled by the tokens' scores (Batch Priority Routing)
            instead of by their order.
        priority: A token's score: its largest gate (`max`), or the `sum` of those selected.
        noise_std: Standard deviation of the noise on the router's logits in training, times E.
        normalize: Whether the K weights are used as the softmax gives them (`none`, the paper's),
            made to sum to one (`before`), or are a softmax over the K logits (`softmax_topk`).
        importance_weight: Weight of the importance loss.
        load_weight: Weight of the load loss.
        gshard_weight: Weight of GShard's loss.
        z_weight: Weight of the router's z-loss.
        equal_experts: Whether all experts of a layer begin with the same weights, as in the
            official code; noise and data tell them apart.
        dispatch: How tokens reach experts: `scatter`, `einsum`, `grouped` (which drops none), or
            `auto`.

    Raises:
        Error: A value is out of its range, with the range.
    """

    patch_size: int
    num_layers: int
    hidden_size: int
    mlp_dim: int
    num_heads: int
    moe_layers: tuple[int, ...] = ()
    num_experts: int = 8
    num_selected_experts: int = 2
    image_size: int = 224
    channels: int = 3
    num_classes: int = 1000
    classifier: Literal["token", "gap", "map", "first"] = "token"
    position: Literal["learned", "sincos2d", "none"] = "learned"
    representation: int | None = None
    head_bias: float = 0.0
    dropout: float = 0.0
    expert_dropout: float | None = None
    gelu_approximate: bool = True
    group_size: int | None = None
    capacity_factor: float = 1.05
    capacity_multiple: int = 4
    batch_priority: bool = False
    priority: Literal["max", "sum"] = "max"
    noise_std: float = 1.0
    normalize: Literal["none", "before", "softmax_topk"] = "none"
    importance_weight: float = 0.005
    load_weight: float = 0.005
    gshard_weight: float = 0.0
    z_weight: float = 0.0
    equal_experts: bool = True
    dispatch: Literal["auto", "scatter", "einsum", "grouped"] = "auto"

    def __post_init__(self):
        for name in ("patch_size", "num_layers", "hidden_size", "mlp_dim", "num_heads",
                     "num_experts", "num_selected_experts", "image_size", "channels",
                     "capacity_multiple"):  # fmt: skip
            if getattr(self, name) < 1:
                raise Error(f"{name}={getattr(self, name)} must be 1 or more")
        if self.image_size < self.patch_size:
            raise Error(f"an image of {self.image_size} pixels is smaller than a patch of "
                        f"{self.patch_size}")  # fmt: skip
        if self.image_size % self.patch_size:
            near = self.image_size // self.patch_size * self.patch_size
            raise Error(
                f"image_size={self.image_size} is no multiple of patch_size={self.patch_size}; "
                f"take {near} or {near + self.patch_size}"
            )
        if self.hidden_size % self.num_heads:
            raise Error(f"hidden_size={self.hidden_size} is not divisible by "
                        f"num_heads={self.num_heads}")  # fmt: skip
        if self.num_selected_experts > self.num_experts:
            raise Error(f"K={self.num_selected_experts} is more than the E={self.num_experts} "
                        "experts")  # fmt: skip
        if not (math.isfinite(self.capacity_factor) and self.capacity_factor > 0):
            raise Error(f"capacity_factor={self.capacity_factor} must be above 0")
        if self.group_size is not None and self.group_size < 1:
            raise Error(f"group_size={self.group_size} must be 1 or more")
        wrong = [layer for layer in self.moe_layers if not 0 <= layer < self.num_layers]
        if wrong or len(set(self.moe_layers)) < len(self.moe_layers):
            raise Error(f"moe_layers={self.moe_layers} are not different layers from 0 to "
                        f"{self.num_layers - 1}")  # fmt: skip
        if self.position == "sincos2d" and (self.hidden_size % 4 or self.hidden_size < 8):
            raise Error(f"sincos2d needs a width that is a multiple of 4 from 8 on, not "
                        f"{self.hidden_size}")  # fmt: skip
        for name in ("dropout", "expert_dropout", "noise_std"):
            value = getattr(self, name)
            if value is not None and not (0 <= value < 1 or (name == "noise_std" and value >= 0)):
                raise Error(f"{name}={value} is out of its range")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens of an image, a class token among them."""
        return self.grid**2 + (self.classifier == "token")

    @property
    def tokens_per_group(self) -> int:
        """Tokens that compete for the same buffers."""
        return self.group_size or 8 * self.num_tokens

    @classmethod
    def from_string(cls, text: str, **settings: Any) -> Self:
        """Returns the configuration that a line says.

        Args:
            text: Such as `S/32,E=8,K=2,last=2`: a variant and its patch size; `every=n` puts
                experts into layers n - 1, 2n - 1, ..., `last=n` into the last n of the layers
                1, 3, 5, ..., `layers=1+3` into those; without any of them the model is dense.
                `depth`, `width`, `mlp` and `heads` replace the variant's sizes.
            settings: Any other fields.

        Raises:
            Error: The line or a value is wrong.
        """
        head, *rest = text.replace(" ", "").split(",")
        found = re.fullmatch(r"(\w+)/(\d+)", head)
        if not found or found[1] not in VARIANTS:
            raise Error(f"{text!r} is not {GRAMMAR}; variants are {', '.join(VARIANTS)}")
        sizes: dict[str, Any] = dict(zip(SIZES.values(), VARIANTS[found[1]], strict=True))
        chosen: dict[str, Any] = {"patch_size": int(found[2])}
        placed: str | None = None
        for part in rest:
            name, _, value = part.partition("=")
            if name == "layers" and re.fullmatch(r"\d+(\+\d+)*", value):
                placed, chosen["moe_layers"] = part, tuple(int(x) for x in value.split("+"))
                continue
            if not value.isdigit() or name not in (*SIZES, "E", "K", "every", "last"):
                raise Error(f"{part!r} in {text!r} is not understood; a line is {GRAMMAR}")
            if name in SIZES:
                sizes[SIZES[name]] = int(value)
            elif name in ("E", "K"):
                chosen["num_experts" if name == "E" else "num_selected_experts"] = int(value)
            else:
                placed = part
        if placed and not placed.startswith("layers"):
            chosen["moe_layers"] = placement(placed, sizes["num_layers"])
        elif not placed and any(part[:2] in ("E=", "K=") for part in rest):
            raise Error(f"{text!r} does not say which layers have experts: add every=2 or last=2")
        return cls(**(sizes | chosen | settings))

    def __str__(self) -> str:
        sizes = tuple(getattr(self, name) for name in SIZES.values())
        # The nearest variant is the one that agrees in most sizes.
        name = max(
            VARIANTS, key=lambda v: sum(a == b for a, b in zip(VARIANTS[v], sizes, strict=True))
        )
        parts = [f"{name}/{self.patch_size}"]
        parts += [
            f"{word}={size}"
            for word, size, usual in zip(SIZES, sizes, VARIANTS[name], strict=True)
            if size != usual
        ]
        if self.moe_layers:
            parts += [f"E={self.num_experts}", f"K={self.num_selected_experts}", self._placed()]
        return ",".join(parts)

    def _placed(self) -> str:
        for kind, most in (("every", self.num_layers), ("last", self.num_layers // 2)):
            for count in range(1, most + 1):
                if placement(f"{kind}={count}", self.num_layers) == self.moe_layers:
                    return f"{kind}={count}"
        return "layers=" + "+".join(str(layer) for layer in self.moe_layers)


def placement(text: str, num_layers: int) -> tuple[int, ...]:
    """Returns the layers, counted from 0, that have experts.

    Args:
        text: `every=n`: layers n - 1, 2n - 1, ...; `last=n`: the last n of the layers 1, 3, 5, ...,
            as in the official code.
        num_layers: Of the model.

    Raises:
        Error: There are no n such layers.
    """
    kind, _, value = text.partition("=")
    count = int(value)
    every = range(count - 1, num_layers, count) if kind == "every" and count else ()
    odd = range(1, num_layers, 2)
    layers = tuple(odd)[-count:] if kind == "last" and 0 < count <= len(odd) else tuple(every)
    if not layers:
        raise Error(f"{text} names no layers of {num_layers}; last=n takes of those counted odd")
    return layers
