"""What shapes a Temporal Fusion Transformer and its training, and the paper's four presets."""

import dataclasses
from typing import Any

from chapbook.core.errors import Error

PRESETS: dict[str, dict[str, Any]] = {
    "electricity": {
        "encoder": 168, "horizon": 24, "hidden": 160, "heads": 4, "dropout": 0.1,
        "batch_size": 64, "learning_rate": 1e-3, "max_norm": 0.01, "scaling": "entity",
    },
    "traffic": {
        "encoder": 168, "horizon": 24, "hidden": 320, "heads": 4, "dropout": 0.3,
        "batch_size": 128, "learning_rate": 1e-3, "max_norm": 100.0, "scaling": "global",
    },
    "retail": {
        "encoder": 90, "horizon": 30, "hidden": 240, "heads": 4, "dropout": 0.1,
        "batch_size": 128, "learning_rate": 1e-3, "max_norm": 100.0, "scaling": "global",
    },
    "volatility": {
        "encoder": 252, "horizon": 5, "hidden": 160, "heads": 1, "dropout": 0.3,
        "batch_size": 64, "learning_rate": 1e-2, "max_norm": 0.01, "scaling": "global",
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TFTConfig:
    """What shapes a model and its training.

    Args:
        encoder: Past steps that a window shows, k.
        horizon: Future steps that a window forecasts, H.
        quantiles: Levels that are forecast, rising, each in (0, 1).
        hidden: Width of every layer, d.
        heads: Attention heads; each has the width `hidden // heads`.
        dropout: Rate at which activations are dropped in training.
        scaling: How targets and real inputs are scaled: `entity`, `entity_robust`, `entity_mean`,
            `window`, `global` or `none`.
        add_scale_inputs: Whether an entity's level and scale are static inputs too.
        min_history: Steps with a target that the past half of a window must show, in training and
            in forecasting.
        unknown_rate: Rate at which categories are replaced by the unknown one in training.
        batch_size: Windows in an update.
        microbatch: Windows that are computed at once, a divisor of `batch_size`; their gradients
            are summed to those of the batch. Few need less memory, and on CPUs, whose caches then
            hold more of them, less time. All at once if None, except on CPUs: there 32.
        learning_rate: Adam's.
        schedule: Whether the learning rate stays (`constant`, as in the paper) or falls to 0 along
            half a cosine until the last update (`cosine`).
        clip: Whether gradients are clipped tensor by tensor (`per_tensor`, as the paper's code
            does) or together (`global`).
        max_norm: The norm that gradients are clipped to.
        members: Models of an ensemble that are trained in one program; their quantiles are
            averaged.
        unroll: Steps of the LSTM in one iteration of its loop.
        precision: `float32`, or `bfloat16` for computation on accelerators.
        attention: Whether there is a self-attention layer. This and the next four are the parts
            that the paper's ablation takes away.
        lstm: Whether positions are told by an LSTM, or by sinusoids added to the inputs.
        selection: Whether variables are weighted, or averaged.
        static_encoders: Whether static variables give contexts.
        gating: Whether the gated linear units gate, or only map.
    """

    encoder: int = 84
    horizon: int = 28
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    hidden: int = 64
    heads: int = 4
    dropout: float = 0.1
    scaling: str = "entity"
    add_scale_inputs: bool = False
    min_history: int = 1
    unknown_rate: float = 0.01
    batch_size: int = 64
    microbatch: int | None = None
    learning_rate: float = 1e-3
    schedule: str = "constant"
    clip: str = "per_tensor"
    max_norm: float = 1.0
    members: int = 1
    unroll: int = 1
    precision: str = "float32"
    attention: bool = True
    lstm: bool = True
    selection: bool = True
    static_encoders: bool = True
    gating: bool = True

    def __post_init__(self):
        levels = tuple(self.quantiles)
        object.__setattr__(self, "quantiles", levels)
        for name in ("encoder", "horizon", "hidden", "heads", "batch_size", "members", "unroll",
                     "min_history"):  # fmt: skip
            if getattr(self, name) < 1:
                raise Error(f"{name}={getattr(self, name)} is below 1")
        if self.microbatch is not None and (
            self.microbatch < 1 or self.batch_size % self.microbatch
        ):
            raise Error(
                f"microbatch={self.microbatch} does not divide batch_size={self.batch_size}"
            )
        if self.heads > self.hidden:
            raise Error(f"heads={self.heads} is above hidden={self.hidden}")
        if not levels or any(not 0 < q < 1 for q in levels) or list(levels) != sorted({*levels}):
            raise Error(f"quantiles={levels} are not rising levels between 0 and 1")
        for name in ("dropout", "unknown_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise Error(f"{name}={getattr(self, name)} is not in [0, 1)")
        for name in ("learning_rate", "max_norm"):
            if not getattr(self, name) > 0:
                raise Error(f"{name}={getattr(self, name)} is not above 0")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise Error(f'{name}="{getattr(self, name)}" is none of {", ".join(known)}')

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "TFTConfig":
        """Returns a configuration of the paper.

        Args:
            name: `electricity`, `traffic`, `retail` or `volatility`.
            changes: Fields to set otherwise.

        Raises:
            Error: There is no such preset.

        Reference:
            Lim et al. (2021), table 2; windows and clipping as in the published code.
        """
        if name not in PRESETS:
            raise Error(f'there is no preset "{name}"; there are {", ".join(PRESETS)}')
        return cls(**{**PRESETS[name], **changes})


CHOICES = {
    "scaling": ("entity", "entity_robust", "entity_mean", "window", "global", "none"),
    "schedule": ("constant", "cosine"),
    "clip": ("per_tensor", "global"),
    "precision": ("float32", "bfloat16"),
}


def preset(name: str, **changes: Any) -> TFTConfig:
    """Returns a configuration of the paper; the same as `TFTConfig.preset`."""
    return TFTConfig.preset(name, **changes)
