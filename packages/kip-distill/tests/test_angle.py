"""The angle in float32, and derivatives where they could break."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from chapbook.kip_distill import kernels
from chapbook.kip_distill.kernels.angle import arctan2, rectified


def test_the_polynomial_is_as_exact_as_float32():
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-15, 15, 200_000)
    y = (abs(rng.normal(size=200_000)) * scale).astype(np.float32)
    x = (rng.normal(size=200_000) * scale * rng.choice([1e-4, 1, 1e4], 200_000)).astype(np.float32)
    found = np.asarray(arctan2(jnp.asarray(y), jnp.asarray(x)))
    assert abs(found - np.arctan2(np.float64(y), np.float64(x))).max() < 4e-7
    edges = arctan2(
        jnp.array([0.0, 0, 0, 1, 1], jnp.float32), jnp.array([0.0, 1, -1, 0, 1], jnp.float32)
    )
    np.testing.assert_allclose(edges, [np.pi / 2, 0, np.pi, np.pi / 2, np.pi / 4], atol=4e-7)


def test_derivatives_are_finite_differences():
    with jax.enable_x64(True):
        q, p = jnp.array([0.3, -0.5, 0.9]), jnp.array([1.0, 2.0, 1.1])
        low, high = jnp.asarray(0.2), jnp.asarray(1.1)

        def both(*values):
            return rectified(*map(jnp.asarray, values))

        check_grads(both, (q, p, low, high), order=1, modes=("fwd", "rev"))


def odd_images(dtype):
    """Equal, dark and constant images beside random ones."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6, 6, 1))
    x[1] = x[0]
    x[2] = 0
    x[3] = 1
    return x.astype(dtype)


POOLED = kernels.serial(
    kernels.Conv(), kernels.Relu(), kernels.AvgPool(), kernels.GlobalAvgPool(), kernels.Dense()
)
KERNELS = [
    (kernels.FC(2), np.float32), (kernels.ConvNet(1), np.float32),
    (kernels.ConvNet(1, b_std=0.0), np.float64), (POOLED, np.float32),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS, ids=["FC", "ConvNet", "no biases", "GAP"])
def test_gradients_are_finite_at_equal_dark_and_constant_images(kernel, dtype):
    with jax.enable_x64(dtype is np.float64):
        x = odd_images(dtype)
        weights = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)), dtype)
        for other in (None, jnp.asarray(x)):
            value = lambda x: (kernel(x, other) * weights).sum()  # noqa: E731, B023
            assert np.isfinite(jax.grad(value)(jnp.asarray(x))).all()


@pytest.mark.parametrize(
    "kernel", [kernels.FC(2), kernels.ConvNet(1), POOLED], ids=["FC", "Conv", "GAP"]
)
def test_gradients_are_finite_differences(kernel):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(3, 6, 6, 2)), rng.normal(size=(2, 6, 6, 2))
        weights, along = rng.normal(size=(3, 2)), rng.normal(size=x.shape)

        def value(x, y):
            return (kernel(x, y) * weights).sum() + kernel(x).sum()

        step = 1e-6
        wanted = (value(x + step * along, y) - value(x - step * along, y)) / (2 * step)
        found = (jax.grad(value)(jnp.asarray(x), y) * along).sum()
        assert float(found) == pytest.approx(float(wanted), rel=1e-6)


def test_equal_images_that_move_together_keep_their_kernel_value():
    """The derivative of the angle is without bound there, and what it is multiplied with is 0."""
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(1, 6, 6, 1))
        kernel = kernels.ConvNet(1)
        value = lambda x: kernel(jnp.concatenate([x, x]))[0, 1]  # noqa: E731
        alone = lambda x: kernel(x)[0, 0]  # noqa: E731
        np.testing.assert_allclose(
            jax.grad(value)(jnp.asarray(x)), jax.grad(alone)(jnp.asarray(x)), rtol=1e-9
        )


@pytest.mark.parametrize("kernel", [kernels.FC(2), kernels.ConvNet(1)], ids=["FC", "ConvNet"])
def test_no_scale_of_inputs_gives_a_value_that_is_not_a_number(kernel):
    rng = np.random.default_rng(0)
    for scale in 10.0 ** np.arange(-6, 7):
        x = (rng.normal(size=(6, 6, 6, 1)) * scale).astype(np.float32)
        x[1], x[2] = x[0], 0
        value, gradient = jax.value_and_grad(lambda x: kernel(x).sum())(jnp.asarray(x))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
