"""What a model costs, in closed form: parameters, operations, memory, time, energy and carbon.

A multiplication and an addition count as two operations; what is elementwise is left out, as usual.
"""

import dataclasses

import polars as pl

from chapbook.core.errors import Error
from chapbook.glam.config import GLaMConfig

# Rows of the paper's table 4, as printed: name, vocabulary that fits them, parameters in all and
# activated for a token. The smaller ones only fit 32,000 tokens, the largest one only 256,000.
PRINTED = (
    ("0.1B", 32_000, 130e6, 130e6),
    ("0.1B/64E", 32_000, 1.9e9, 145e6),
    ("1.7B", 32_000, 1.7e9, 1.700e9),
    ("1.7B/32E", 32_000, 20e9, 1.878e9),
    ("1.7B/64E", 32_000, 27e9, 1.879e9),
    ("1.7B/128E", 32_000, 53e9, 1.881e9),
    ("1.7B/256E", 32_000, 105e9, 1.886e9),
    ("8B", 32_000, 8.7e9, 8.7e9),
    ("8B/64E", 32_000, 143e9, 9.8e9),
    ("137B", 256_000, 137e9, 137e9),
    ("64B/64E", 256_000, 1.162e12, 96.6e9),
)
# Rows whose printed number the sizes do not give, by either vocabulary. That of 137B is what it has
# without the table of tokens.
UNEXPLAINED = {
    ("0.1B", "total"), ("0.1B", "activated"), ("0.1B/64E", "activated"), ("1.7B/32E", "total"),
    ("1.7B/256E", "total"), ("1.7B/256E", "activated"), ("137B", "total"), ("137B", "activated"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        parameters: In all.
        activated: Those that a token meets: two experts of a layer, and one row of the table at
            the input is not counted apart from the output's.
        flops: Of a token, forward, without the attention's products of activations: twice the
            matrices' activated entries.
        attention_flops: Those products, for a token of a full context, of which each sees half on
            average; counted as the whole, as programs compute it.
        training_flops: Of a token, forward and backward: three times both.
        parameter_bytes: In float32.
        optimizer_bytes: Of Adafactor without a first moment: a row and a column of each matrix.
        cache_bytes: Keys and values of a full context, one sequence, in bfloat16.
    """

    parameters: int
    activated: int
    flops: float
    attention_flops: float
    training_flops: float
    parameter_bytes: int
    optimizer_bytes: int
    cache_bytes: int


def cost(config: GLaMConfig, context: int | None = None) -> Cost:
    """Returns what a model costs.

    Args:
        config: Of the model.
        context: Tokens that attention looks at; those of the configuration if None.

    Reference:
        Du et al. (2022), table 4 and section 6.3.
    """
    c = config
    length = context or c.context
    width, inner = c.embed, c.num_heads * c.head_dim
    sparse = len(c.moe_layers)
    attention = 4 * width * inner
    feed_forward = (3 if c.gated else 2) * width * c.hidden
    expert = 2 * width * c.expert_width
    routers = sparse * width * c.num_experts if c.num_experts > 1 else 0
    vectors = (2 * c.num_layers + 1) * width + c.num_layers * c.num_heads * c.buckets
    matrices = (
        c.vocab_size * width + c.num_layers * attention + (c.num_layers - sparse) * feed_forward
        + routers
    )  # fmt: skip
    active = matrices + sparse * min(c.num_experts, 2) * expert
    mixing = 4.0 * c.num_layers * length * inner
    layer = 2 * 3 * (width + inner) + 2 * (width + inner)
    rows = (
        c.num_layers * layer // 2
        + (c.num_layers - sparse) * (3 if c.gated else 2) * (width + c.hidden)
        + sparse * (c.num_experts * 2 * (width + c.expert_width) + width + c.num_experts)
        + c.vocab_size + width + vectors
    )  # fmt: skip
    parameters = matrices + sparse * c.num_experts * expert + vectors
    return Cost(
        parameters=parameters,
        activated=active + vectors,
        flops=2.0 * active,
        attention_flops=mixing,
        training_flops=3 * (2.0 * active + mixing),
        parameter_bytes=4 * parameters,
        optimizer_bytes=4 * rows,
        cache_bytes=2 * 2 * c.num_layers * length * inner,
    )


def ladder() -> pl.DataFrame:
    """Returns the paper's table of sizes beside what the sizes give, a row for each number.

    Returns:
        Columns `model`, `vocabulary`, `number` (`total` or `activated`), `paper`, `ours`, and
        `agrees`, to the digits that the paper prints.
    """
    rows = []
    for name, vocabulary, *printed in PRINTED:
        found = cost(GLaMConfig.preset(name, vocab_size=vocabulary))
        for kind, paper, ours in zip(
            ("total", "activated"), printed, (found.parameters, found.activated), strict=True
        ):
            rows.append((name, vocabulary, kind, paper, float(ours), _agrees(paper, ours)))
    names = ("model", "vocabulary", "number", "paper", "ours", "agrees")
    return pl.DataFrame(rows, schema=names, orient="row")


def _agrees(printed: float, found: float) -> bool:
    digits = len(f"{printed:.6g}".split("e")[0].replace(".", "").rstrip("0"))
    return float(f"{found:.{max(digits, 2) - 1}e}") == printed


@dataclasses.dataclass(frozen=True)
class Energy:
    """What a training takes.

    Attributes:
        tokens_per_second: Of all chips.
        hours: In all.
        megawatt_hours: With the overhead of the building.
        tonnes: Of CO2 equivalents.
    """

    tokens_per_second: float
    hours: float
    megawatt_hours: float
    tonnes: float


def energy(
    config: GLaMConfig,
    *,
    tokens: float,
    chips: int,
    peak_flops: float,
    utilisation: float,
    watts: float,
    overhead: float = 1.1,
    intensity: float = 0.4,
) -> Energy:
    """Computes `chips * hours * W * PUE`, and CO2 from it.

    Args:
        config: Of the model.
        tokens: That it is trained on.
        chips: How many work on it.
        peak_flops: Operations of a chip in a second, at most.
        utilisation: Share of them that serves the model (MFU), from 0 to 1.
        watts: Mean power of a chip and its part of the machine.
        overhead: Of the building (PUE).
        intensity: Tonnes of CO2 equivalents of a megawatt hour.

    Raises:
        Error: A number is not above 0, or the utilisation above 1.

    Reference:
        Patterson et al., "Carbon Emissions and Large Neural Network Training" (2021), section 2.
    """
    given = {"tokens": tokens, "chips": chips, "peak_flops": peak_flops, "watts": watts,
             "utilisation": utilisation, "overhead": overhead}  # fmt: skip
    for name, value in given.items():
        if not value > 0:
            raise Error(f"{name}={value} must be above 0")
    if utilisation > 1:
        raise Error(f"utilisation={utilisation} is a share, and at most 1")
    speed = chips * peak_flops * utilisation / cost(config).training_flops
    return power(tokens / speed / 3600, chips, watts, overhead, intensity, speed)


def power(
    hours: float, chips: int, watts: float, overhead: float = 1.1, intensity: float = 0.4,
    tokens_per_second: float = float("nan"),
) -> Energy:  # fmt: skip
    """Returns the energy of a training whose duration is known.

    Args:
        hours: It takes.
        chips: As `energy` takes it, like what follows.
        watts: Mean power of a chip.
        overhead: Of the building.
        intensity: Tonnes of a megawatt hour.
        tokens_per_second: If they are known.
    """
    used = chips * hours * watts * overhead / 1e6
    return Energy(tokens_per_second, hours, used, used * intensity)
