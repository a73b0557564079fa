"""Blocks and devices change nothing but the memory that a kernel matrix takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core import mesh
from chapbook.core.errors import Error
from chapbook.kip_distill import kernels
from chapbook.kip_distill.kernels.gram import block

KERNELS = [kernels.FC(2), kernels.ConvNet(1)]


def images(n, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, 6, 6, 1)), jnp.float32)


@pytest.mark.parametrize("kernel", KERNELS, ids=["FC", "ConvNet"])
@pytest.mark.parametrize("memory", [1, 50_000])
def test_any_block_size_gives_the_same_values_and_gradients(kernel, memory):
    x, y = images(5), images(3, 1)
    weights = images(1, 2)[0, :5, :3, 0]

    def value(x, y, memory):
        both = (kernel(x, y, memory=memory) * weights).sum()
        return both + kernel(y, memory=memory).sum()

    wanted, slopes = jax.value_and_grad(value, (0, 1))(x, y, 2**30)
    found, mine = jax.value_and_grad(value, (0, 1))(x, y, memory)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    for one, other in zip(mine, slopes, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.devices(8)
def test_variances_that_are_kept_change_nothing():
    kernel, x, y = kernels.ConvNet(1), images(7), images(5, 1)
    kept = kernel.variances_of(np.asarray(x), memory=1)
    for found, wanted in zip(kept, kernel.variances(x), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)

    def value(y, first, mesh):
        return (kernel(x, y, first=first, mesh=mesh) ** 2).sum()

    wanted, slope = jax.value_and_grad(value)(y, None, None)
    for devices in (None, mesh("target=4,support=2")):
        found, mine = jax.value_and_grad(value)(y, kept, devices)
        assert float(found) == pytest.approx(float(wanted), rel=1e-6)
        np.testing.assert_allclose(mine, slope, rtol=1e-5, atol=1e-6)
    with pytest.raises(Error, match="variances are given for images that meet others"):
        kernel(x, first=kept)


def test_a_block_is_as_large_as_its_memory_allows():
    kernel = kernels.ConvNet(3)
    shape = (10, 28, 28, 1)
    # 15 x 15 displacements of 28 x 28 pixels, two arrays of four bytes, three of each alive.
    pair = 15 * 15 * 28 * 28 * 2 * 4 * 3
    assert block(kernel, shape, 4, 10 * pair, ntk=True) == 10
    assert block(kernel, shape, 4, 10 * pair - 1, ntk=True) == 9
    assert block(kernel, shape, 4, 1, ntk=True) == 1
    assert block(kernels.Kernel(kernel.layers, "full"), shape, 4, 10 * pair, ntk=True) == 2


MESHES = [
    (kernels.FC(2), "target=1"), (kernels.FC(2), "target=2"), (kernels.FC(2), "target=2,support=2"),
    (kernels.FC(2), "target=4,support=2"), (kernels.ConvNet(1), "target=4,support=2"),
]  # fmt: skip


@pytest.mark.devices(8)
@pytest.mark.parametrize(("kernel", "axes"), MESHES)
def test_any_number_of_devices_gives_the_same_values_and_gradients(kernel, axes):
    count = int(np.prod([int(each.split("=")[1]) for each in axes.split(",")]))
    devices = mesh(axes, devices=jax.devices()[:count])
    x, y = images(7), images(5, 1)  # neither is a multiple of the devices

    def value(x, y, mesh):
        return (kernel(x, y, mesh=mesh) ** 2).sum() + kernel(y, mesh=mesh).sum()

    wanted, slopes = jax.value_and_grad(value, (0, 1))(x, y, None)
    found, mine = jax.value_and_grad(value, (0, 1))(x, y, devices)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    for one, other in zip(mine, slopes, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_mesh_without_our_axes_is_refused():
    with pytest.raises(Error, match="use target and support"):
        kernels.FC(1)(images(2), mesh=mesh("data=1", devices=jax.devices()[:1]))
