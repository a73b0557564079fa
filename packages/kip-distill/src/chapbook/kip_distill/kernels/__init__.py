"""Exact kernels of infinitely wide networks: the NNGP and the neural tangent kernel."""

from chapbook.kip_distill.kernels.architectures import FC, ConvNet, ConvStack, Myrtle, named
from chapbook.kip_distill.kernels.kernel import Kernel, serial
from chapbook.kip_distill.kernels.layers import (
    Activation,
    AvgPool,
    Conv,
    Covariance,
    Dense,
    Erf,
    Flatten,
    GlobalAvgPool,
    Identity,
    LeakyRelu,
    Relu,
)

__all__ = [
    "FC", "Activation", "AvgPool", "Conv", "ConvNet", "ConvStack", "Covariance", "Dense", "Erf",
    "Flatten", "GlobalAvgPool", "Identity", "Kernel", "LeakyRelu", "Myrtle", "Relu", "named",
    "serial",
]  # fmt: skip
