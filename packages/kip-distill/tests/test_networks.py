"""Networks of finite width against loops in NumPy, and against the kernels that are their limit."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core.errors import Error
from chapbook.kip_distill import Network, kernels
from chapbook.kip_distill.networks import Affine
from chapbook.kip_distill.transferring import empirical_ntk

KEY = jax.random.key(0)
DEEP = kernels.serial(
    kernels.Conv(), kernels.Relu(), kernels.AvgPool(), kernels.Conv(1), kernels.LeakyRelu(0.2),
    kernels.GlobalAvgPool(), kernels.Dense(), kernels.Erf(), kernels.Dense(),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def loops(network, image):
    """The outputs for one image, pixel by pixel."""
    x = image
    for layer in network.layers:
        if isinstance(layer, Affine):
            weight, bias = layer.factors[0] * layer.weight, layer.factors[1] * layer.bias
            weight, bias = np.asarray(weight), np.asarray(bias)
            x = _convolved(x, weight) + bias if weight.ndim == 4 else weight.T @ x + bias
        elif isinstance(layer, kernels.AvgPool):
            out = np.zeros((x.shape[0] // 2, x.shape[1] // 2, x.shape[2]))
            for i, j in np.ndindex(*out.shape[:2]):
                out[i, j] = x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1))
            x = out
        elif isinstance(layer, kernels.Flatten):
            x = x.ravel()
        elif isinstance(layer, kernels.GlobalAvgPool):
            x = np.array([x[..., each].mean() for each in range(x.shape[-1])])
        elif isinstance(layer, kernels.Erf):
            x = np.vectorize(math.erf)(x)
        elif isinstance(layer, kernels.LeakyRelu):
            x = np.where(x < 0, float(layer.low) * x, float(layer.high) * x)
    return x


def _convolved(x, weight):
    height, width, _ = x.shape
    reach = weight.shape[0] // 2
    out = np.zeros((height, width, weight.shape[3]))
    for i, j in np.ndindex(height, width):
        for p, q in np.ndindex(*weight.shape[:2]):
            u, v = i + p - reach, j + q - reach
            if 0 <= u < height and 0 <= v < width:
                out[i, j] += x[u, v] @ weight[p, q]
    return out


@pytest.mark.parametrize(
    ("kernel", "ntk"),
    [(kernels.ConvNet(1), False), (DEEP, True), (kernels.FC(2), True)],
    ids=["ConvNet", "all layers", "FC"],
)
def test_outputs_are_those_of_loops_over_pixels(kernel, ntk):
    x = images(2, 5, 4, 2)
    network = Network(kernel, x.shape[1:], width=3, outputs=4, key=KEY, ntk=ntk)
    flat = x if kernel.takes_images else x.reshape(2, -1)
    wanted = [loops(network, each) for each in flat]
    np.testing.assert_allclose(network(jnp.asarray(x)), wanted, rtol=1e-12)


def test_both_parameterisations_begin_as_one_function():
    x = jnp.asarray(images(2, 4, 4, 1))
    one, other = (
        Network(kernels.ConvNet(1), (4, 4, 1), width=5, outputs=3, key=KEY, ntk=each)
        for each in (False, True)
    )
    np.testing.assert_allclose(one(x), other(x), rtol=1e-12)
    dense = one.layers[-1]
    assert isinstance(dense, Affine)
    assert dense.factors == (1.0, 1.0)
    # The fan-in: 2 x 2 pixels of 5 channels.
    assert dense.weight.std() == pytest.approx((2 / 20) ** 0.5, rel=0.3)


def test_wide_networks_have_the_kernel_as_their_limit():
    """The mean of `f f^T` and of the empirical NTK, within four standard errors."""
    kernel, width, outputs, draws = kernels.ConvNet(1), 96, 8, 30
    x, found = images(2, 4, 4, 2), []
    for each in range(draws):
        network = Network(
            kernel, (4, 4, 2), width=width, outputs=outputs, key=jax.random.key(each), ntk=True
        )
        values = np.asarray(_outputs(network, x))
        found.append((values @ values.T / outputs, empirical_ntk(network, x)))
    for place, wanted in enumerate(kernel(x, get=("nngp", "ntk"))):
        sample = np.stack([each[place] for each in found])
        error = sample.std(0, ddof=1) / draws**0.5
        # A finite width's own bias is of order 1 / width.
        assert (abs(sample.mean(0) - wanted) < 4 * error + 3 * np.asarray(wanted) / width).all()


_outputs = eqx.filter_jit(lambda network, x: network(jnp.asarray(x)))


@pytest.mark.parametrize(
    ("kernel", "changed", "told"),
    [
        (kernels.FC(1), {"width": 0}, "width=0 and outputs=2"),
        (kernels.ConvNet(3), {}, "4x4 -> 2x2 -> 1x1 -> 0x0"),
        (kernels.serial(kernels.Dense(), kernels.Relu()), {}, "the last layer is not Dense"),
    ],
)
def test_networks_that_cannot_be_are_refused(kernel, changed, told):
    with pytest.raises(Error, match=told):
        Network(kernel, (4, 4, 1), **({"width": 3, "outputs": 2, "key": KEY} | changed))


def test_an_activation_without_a_forward_pass_is_no_silent_identity():
    class Sine(kernels.Activation):
        """Has no `apply`."""

    network = Network(kernels.FC(1, activation=Sine()), (3,), width=2, outputs=1, key=KEY)
    with pytest.raises(NotImplementedError):
        network(jnp.ones((1, 3)))
