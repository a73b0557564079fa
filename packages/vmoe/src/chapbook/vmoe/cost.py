"""What a model costs: parameters, floating point operations and memory, in closed form.

A multiplication and an addition count as two operations; what is elementwise is left out, as usual.
"""

import dataclasses

from chapbook.core.experts import capacity
from chapbook.vmoe.config import VMoEConfig


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs per image.

    Attributes:
        parameters: In all.
        activated: Those that a token meets: K of the E experts of a layer.
        flops: Of a forward pass, with the experts' buffers as large as they are, filled or not.
        dense_flops: Of the same model with one feed-forward block in place of the experts.
        expert_flops: The experts' part of `flops`, routers left out.
        parameter_bytes: In float32.
    """

    parameters: int
    activated: int
    flops: float
    dense_flops: float
    expert_flops: float
    parameter_bytes: int


def flops(config: VMoEConfig) -> Cost:
    """Returns what a model costs.

    Args:
        config: Of the model.
    """
    c = config
    width, mlp, tokens = c.hidden_size, c.mlp_dim, c.num_tokens
    patch = c.patch_size**2 * c.channels
    moe, dense = len(c.moe_layers), c.num_layers - len(c.moe_layers)
    attention = 4 * width * (width + 1) + 2 * width  # q, k, v, out with biases, and a norm
    block = width * mlp * 2 + mlp + width
    ends = (patch + 1) * width + 2 * width  # the embedding of patches, the last norm
    if c.position == "learned":
        ends += tokens * width
    if c.classifier == "token":
        ends += width
    features = width
    pooling = 0.0
    if c.classifier == "map":
        ends += attention + width + block
        pooling = 2 * width**2 * (2 * tokens + 2) + 4 * tokens * width + 4 * width * mlp
    if c.representation:
        features = c.representation
        ends += (width + 1) * features
    ends += (features + 1) * c.num_classes
    routers = moe * width * c.num_experts
    shared = ends + c.num_layers * (attention + 2 * width) + dense * block + routers
    parameters = shared + moe * c.num_experts * block
    activated = shared + moe * c.num_selected_experts * block

    grid = c.grid**2
    mixing = c.num_layers * (8 * tokens * width**2 + 4 * tokens**2 * width)
    head = 2 * (width * (c.representation or 0) + features * c.num_classes)
    rest = 2 * grid * patch * width + mixing + pooling + head
    each = 4 * tokens * width * mlp
    experts = moe * each * rows_per_token(config)
    whole = rest + dense * each + experts + 2 * moe * tokens * width * c.num_experts
    return Cost(
        parameters, activated, float(whole), float(rest + c.num_layers * each), float(experts),
        4 * parameters,
    )  # fmt: skip


def rows_per_token(config: VMoEConfig) -> float:
    """Returns how many rows of the experts' buffers there are for a token of a full group.

    It is the number of experts that are computed per token: K times the capacity factor, rounded
    up to whole rows and the configuration's multiple; K itself where no token is ever dropped.

    Args:
        config: Of the model.
    """
    c = config
    if c.dispatch == "grouped":
        return float(c.num_selected_experts)
    return c.num_experts * buffer(config) / c.tokens_per_group


def buffer(config: VMoEConfig) -> int:
    """Returns the rows of an expert's buffer for a group, `C_e = ceil(K S C / E)`, rounded up.

    Args:
        config: Of the model.
    """
    c = config
    return capacity(
        c.tokens_per_group, c.num_experts, c.num_selected_experts, c.capacity_factor,
        multiple_of=c.capacity_multiple,
    )  # fmt: skip
