"""Kernels of named networks."""

import re

from chapbook.core.errors import Error
from chapbook.kip_distill.kernels.kernel import Kernel, serial
from chapbook.kip_distill.kernels.layers import (
    Activation,
    AvgPool,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Layer,
    Relu,
    Scalar,
)

W_STD, B_STD = 2**0.5, 0.1
MYRTLE = {5: (1, 1, 1), 7: (1, 2, 2), 10: (2, 3, 3)}
NAMES = "FC1, FC2, ..., ConvNet, ConvNet3, Conv1, Conv2, ..., Myrtle5, Myrtle7, Myrtle10"


def FC(  # noqa: N802
    depth: int = 1,
    *,
    w_std: Scalar = W_STD,
    b_std: Scalar = B_STD,
    activation: Activation | None = None,
) -> Kernel:
    """Returns the kernel of a fully connected network.

    Args:
        depth: Hidden layers.
        w_std: Standard deviation of the weights.
        b_std: Of the biases.
        activation: `Relu()` if None.
    """
    hidden = (Dense(w_std, b_std), activation or Relu()) * depth
    return serial(*hidden, Dense(w_std, b_std))


def ConvNet(  # noqa: N802
    depth: int = 3,
    *,
    prepend: bool = True,
    w_std: Scalar = W_STD,
    b_std: Scalar = B_STD,
    activation: Activation | None = None,
) -> Kernel:
    """Returns the kernel of the main network of the paper: convolutions, each with a pool.

    Args:
        depth: Blocks of convolution, activation and pool; every one halves the image.
        prepend: Whether a convolution and an activation without a pool come first.
        w_std: Standard deviation of the weights.
        b_std: Of the biases.
        activation: `Relu()` if None.
    """
    unit = (Conv(3, w_std, b_std), activation or Relu())
    blocks = (*unit, AvgPool()) * depth
    return serial(*(unit if prepend else ()), *blocks, Flatten(), Dense(w_std, b_std))


def ConvStack(  # noqa: N802
    depth: int,
    *,
    w_std: Scalar = W_STD,
    b_std: Scalar = B_STD,
    activation: Activation | None = None,
) -> Kernel:
    """Returns the kernel of convolutions without pools.

    Args:
        depth: Convolutions, each with an activation.
        w_std: Standard deviation of the weights.
        b_std: Of the biases.
        activation: `Relu()` if None.
    """
    unit = (Conv(3, w_std, b_std), activation or Relu())
    return serial(*unit * depth, Flatten(), Dense(w_std, b_std))


def Myrtle(  # noqa: N802
    depth: int = 5,
    *,
    w_std: Scalar = W_STD,
    b_std: Scalar = B_STD,
    activation: Activation | None = None,
) -> Kernel:
    """Returns the kernel of a Myrtle network, whose global pool meets all pairs of pixels.

    Args:
        depth: 5, 7 or 10.
        w_std: Standard deviation of the weights.
        b_std: Of the biases.
        activation: `Relu()` if None.

    Raises:
        Error: Of another depth.

    Reference:
        Shankar et al., "Neural Kernels Without Tangents", 2020.
    """
    if depth not in MYRTLE:
        raise Error(f"Myrtle({depth}): use 5, 7 or 10")
    unit = (Conv(3, w_std, b_std), activation or Relu())
    layers: list[Layer] = list(unit)
    for place, count in enumerate(MYRTLE[depth]):
        layers += [*unit * count] if place == len(MYRTLE[depth]) - 1 else [*unit * count, AvgPool()]
    return serial(*layers, GlobalAvgPool(), Dense(w_std, b_std))


def named(name: str) -> Kernel:
    """Returns a kernel by the name of its architecture, with the paper's settings.

    Args:
        name: Such as `FC1`, `ConvNet` (three pools and a convolution ahead), `ConvNet3` (without
            the latter), `ConvNet2` with two pools, `Conv4` without pools, or `Myrtle5`.

    Raises:
        Error: No architecture has the name.
    """
    found = re.fullmatch(r"(FC|ConvNet|Conv|Myrtle)(\d*)", name)
    kind, number = (found[1], int(found[2] or 0)) if found else ("", 0)
    if kind == "ConvNet":
        return ConvNet(number or 3, prepend=number == 0)
    if kind == "Myrtle" and number in MYRTLE:
        return Myrtle(number)
    if kind in ("FC", "Conv") and number:
        return FC(number) if kind == "FC" else ConvStack(number)
    raise Error(f'no architecture is called "{name}"; use one of {NAMES}')
