"""Kernels against brute force, and what is true of every kernel.

The brute force is NumPy in float64, written from the recursions alone, with loops over every pair
of pixels, and shares nothing with the package.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from chapbook.core.errors import Error
from chapbook.kip_distill import kernels

UNIT = ("conv", "relu")
POOLED = kernels.serial(
    kernels.Conv(),
    kernels.Relu(),
    kernels.AvgPool(),
    kernels.Conv(),
    kernels.Relu(),
    kernels.GlobalAvgPool(),
    kernels.Dense(),
)
NETWORKS = {
    "ConvNet(1)": (kernels.ConvNet(1), (*UNIT, *UNIT, "pool", "flatten", "dense")),
    "ConvNet(2, prepend=False)": (
        kernels.ConvNet(2, prepend=False),
        (*UNIT, "pool", *UNIT, "pool", "flatten", "dense"),
    ),
    "global average pool": (
        POOLED,
        (*UNIT, "pool", *UNIT, "gap", "dense"),
    ),
    "ConvStack(2)": (kernels.ConvStack(2), (*UNIT, *UNIT, "flatten", "dense")),
    "a hidden layer after the readout": (
        kernels.serial(
            kernels.Conv(),
            kernels.Relu(),
            kernels.AvgPool(),
            kernels.Flatten(),
            kernels.Dense(),
            kernels.Relu(),
            kernels.Dense(),
        ),
        (*UNIT, "pool", "flatten", "dense", "relu", "dense"),
    ),
}
BOTH = ("nngp", "ntk")


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def images(*shape, seed=0, dtype: type = np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def full(kernel):
    return kernels.Kernel(kernel.layers, "full")


def brute_force_dense(x1, x2, depth, w_std, b_std):
    """The NNGP and NTK of ReLU networks on vectors."""
    w2, b2 = w_std**2, b_std**2
    x = np.concatenate([x1, x2]).reshape(len(x1) + len(x2), -1)
    nngp = w2 * (x @ x.T / x.shape[1]) + b2
    ntk = nngp.copy()
    for _ in range(depth):
        variance = np.diag(nngp)
        theta = np.arccos(np.clip(nngp / np.sqrt(np.outer(variance, variance)), -1, 1))
        root = np.sqrt(np.outer(variance, variance))
        slope = (math.pi - theta) / (2 * math.pi)
        nngp = w2 * (root * np.sin(theta) / (2 * math.pi) + slope * nngp) + b2
        ntk = nngp + w2 * slope * ntk
    return nngp[: len(x1), len(x1) :], ntk[: len(x1), len(x1) :]


def brute_force_images(a, b, layers, w_std, b_std):
    """The NNGP and NTK of two images, after layers that are named."""
    height, width, channels = a.shape
    w2, b2 = w_std**2, b_std**2
    pairs = {}
    for name, one, other in (("aa", a, a), ("ab", a, b), ("bb", b, b)):
        q = np.zeros((height, width, height, width))
        for u in np.ndindex(height, width):
            for v in np.ndindex(height, width):
                q[u + v] = one[u] @ other[v] / channels
        pairs[name] = (q, np.zeros_like(q))
    for layer in layers:
        before = {name: q for name, (q, _) in pairs.items()}
        for name, (q, t) in pairs.items():
            if layer == "relu":
                pairs[name] = _relu(q, t, before[name[0] * 2], before[name[1] * 2])
            elif layer == "conv":
                q = w2 / 9 * _window(q) + b2
                pairs[name] = (q, q + w2 / 9 * _window(t))
            elif layer == "dense":
                q = w2 * q + b2
                pairs[name] = (q, q + w2 * t)
            else:
                pairs[name] = tuple(_reduced(each, layer) for each in (q, t))
    return tuple(float(each) for each in pairs["ab"])


def _relu(q, t, first, second):
    out, slope = np.zeros_like(q), np.zeros_like(q)
    half = q.ndim // 2
    for place in np.ndindex(q.shape):
        u, v = place[:half], place[half:]
        root = math.sqrt(first[u + u] * second[v + v])
        theta = math.acos(min(1.0, max(-1.0, q[place] / root))) if root else math.pi / 2
        slope[place] = (math.pi - theta) / (2 * math.pi)
        out[place] = root * math.sin(theta) / (2 * math.pi) + slope[place] * q[place]
    return out, slope * t


def _window(q):
    height, width, _, _ = q.shape
    out = np.zeros_like(q)
    for y, x, i, j in np.ndindex(q.shape):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                inside = 0 <= y + dy < height and 0 <= i + dy < height
                if inside and 0 <= x + dx < width and 0 <= j + dx < width:
                    out[y, x, i, j] += q[y + dy, x + dx, i + dy, j + dx]
    return out


def _reduced(q, layer):
    height, width = q.shape[:2]
    if layer == "flatten":
        return np.mean([q[u + u] for u in np.ndindex(height, width)])
    if layer == "gap":
        return np.mean(q)
    out = np.zeros((height // 2, width // 2) * 2)
    for y, x, i, j in np.ndindex(out.shape):
        out[y, x, i, j] = q[2 * y : 2 * y + 2, 2 * x : 2 * x + 2, 2 * i : 2 * i + 2,
                            2 * j : 2 * j + 2].mean()  # fmt: skip
    return out


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_fully_connected_kernels_are_those_of_brute_force(depth):
    x, y = images(3, 5), images(4, 5, seed=1)
    found = kernels.FC(depth)(x, y, get=BOTH)
    for mine, wanted in zip(found, brute_force_dense(x, y, depth, 2**0.5, 0.1), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(5, 5, 1), (4, 7, 2), (6, 5, 3)])
def test_convolutional_kernels_are_those_of_brute_force(name, shape):
    kernel, layers = NETWORKS[name]
    x, y = images(2, *shape), images(2, *shape, seed=1)
    wanted = np.array([[brute_force_images(a, b, layers, 2**0.5, 0.1) for b in y] for a in x])
    for made in (kernel, full(kernel)):
        found = np.stack(made(x, y, get=BOTH), -1)
        np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_float32_is_within_a_ten_thousandth():
    kernel, layers = NETWORKS["ConvNet(2, prepend=False)"]
    x, y = images(2, 6, 6, 1, dtype=np.float32), images(2, 6, 6, 1, seed=1, dtype=np.float32)
    wanted = [
        [
            brute_force_images(
                np.asarray(a, np.float64), np.asarray(b, np.float64), layers, 2**0.5, 0.1
            )
            for b in y
        ]
        for a in x
    ]
    found = kernel(x, y, get=BOTH)
    assert all(each.dtype == jnp.float32 for each in found)
    np.testing.assert_allclose(np.stack(found, -1), wanted, rtol=1e-4)


BANDS = [
    (1, (7, 7, 1), True), (1, (6, 9, 2), False), (2, (8, 8, 1), True), (2, (9, 12, 1), False),
    (3, (13, 8, 1), False), (3, (8, 8, 1), True),
]  # fmt: skip


@pytest.mark.parametrize("kernel", [kernels.FC(3), kernels.ConvNet(1)], ids=["FC", "ConvNet"])
def test_an_input_beside_itself_is_as_exact_as_any_other(kernel):
    """The angle there is 0, not the root of a rounding error."""
    x = images(3, 8, 8, 1)
    wanted = np.diag(kernel(x))
    found = np.diag(kernel(x.astype(np.float32)))
    np.testing.assert_allclose(found, wanted, rtol=3e-6)


@pytest.mark.parametrize(("depth", "shape", "prepend"), BANDS)
def test_the_band_gives_what_all_pairs_of_pixels_give(depth, shape, prepend):
    kernel = kernels.ConvNet(depth, prepend=prepend)
    x, y = images(2, *shape), images(2, *shape, seed=1)
    for found, wanted in zip(kernel(x, y, get=BOTH), full(kernel)(x, y, get=BOTH), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize(
    "kernel", [kernels.FC(2), kernels.ConvNet(1), POOLED], ids=["FC", "Conv", "GAP"]
)
def test_a_set_with_itself_is_symmetric_and_positive(kernel):
    x = images(4, 8, 8, 2)
    for found in kernel(x, get=BOTH):
        np.testing.assert_array_equal(found, found.T)
        assert np.linalg.eigvalsh(found)[0] > 0
    np.testing.assert_allclose(kernel(x), kernel(x, x), rtol=1e-12)


def test_without_biases_a_scaled_input_scales_the_kernel():
    for kernel in (kernels.FC(2, b_std=0.0), kernels.ConvNet(1, b_std=0.0)):
        x, y = images(2, 6, 6, 1), images(2, 6, 6, 1, seed=1)
        np.testing.assert_allclose(kernel(3 * x, y), 3 * kernel(x, y), rtol=1e-12)


def test_identities_give_the_linear_kernel():
    x, y = images(3, 4, 4, 1), images(2, 4, 4, 1, seed=1)
    linear = x.reshape(3, -1) @ y.reshape(2, -1).T / 16
    kernel = kernels.FC(2, w_std=1.0, b_std=0.0, activation=kernels.Identity())
    nngp, ntk = kernel(x, y, get=BOTH)
    np.testing.assert_allclose(nngp, linear, rtol=1e-12)
    np.testing.assert_allclose(ntk, 3 * linear, rtol=1e-12)  # one share for each layer


def test_a_leaky_rectifier_without_a_leak_is_a_rectifier():
    x, y = images(2, 6, 6, 1), images(2, 6, 6, 1, seed=1)
    leaky = kernels.ConvNet(1, activation=kernels.LeakyRelu(0.0, 1.0))
    np.testing.assert_array_equal(leaky(x, y), kernels.ConvNet(1)(x, y))


def test_zero_pixels_and_equal_images_give_finite_kernels():
    x = np.concatenate([np.zeros((1, 8, 8, 1)), np.ones((1, 8, 8, 1)), images(1, 8, 8, 1)])
    x = np.concatenate([x, x])
    for kernel in (kernels.FC(2), kernels.ConvNet(2), kernels.Myrtle(5)):
        assert np.isfinite(kernel(x)).all()
    dark = kernels.ConvNet(2, b_std=0.0)(x)
    assert np.isfinite(dark).all()
    assert not np.any(dark[0])


SCALED = {
    "FC": kernels.FC(3),
    "FC without biases": kernels.FC(2, b_std=0.0),
    "ConvNet": kernels.ConvNet(1),
    "erf": kernels.serial(kernels.Dense(), kernels.Erf(), kernels.Dense()),
}


@pytest.mark.parametrize("kernel", SCALED.values(), ids=SCALED)
def test_ten_thousand_pairs_of_any_scale_have_finite_kernels_and_gradients(kernel):
    g = np.random.default_rng(0)
    x = g.normal(size=(100, 4, 4, 2)) * 10 ** g.uniform(-6, 6, size=(100, 1, 1, 1))
    x[10:20] = 0
    x[20:30] = x[30:40, :1, :1]  # constant images
    x[40:50] = -x[50:60]
    x, y = x.astype(np.float32), g.permutation(x).astype(np.float32)
    y[0] = np.nextafter(x[60], np.float32(np.inf))
    with jax.enable_x64(False):
        for value in kernel(x, y, get=("nngp", "ntk")):
            assert np.isfinite(value).all()
        slopes = jax.grad(lambda x, y: jnp.log1p(jnp.abs(kernel(x, y))).sum(), (0, 1))(x, y)
        assert all(np.isfinite(each).all() for each in slopes)


def test_hyperparameters_may_be_differentiated():
    x, y = images(2, 6, 6, 1), images(2, 6, 6, 1, seed=1)

    def total(w_std):
        return kernels.ConvNet(1, w_std=w_std)(x, y).sum()

    step = 1e-5
    wanted = (total(1.3 + step) - total(1.3 - step)) / (2 * step)
    assert jax.grad(total)(jnp.asarray(1.3)) == pytest.approx(float(wanted), rel=1e-7)
    leaves = jax.tree.leaves(eqx.filter(kernels.ConvNet(1, w_std=jnp.asarray(1.3)), eqx.is_array))
    assert len(leaves) == 3


@pytest.mark.parametrize("activation", [kernels.Relu(), kernels.LeakyRelu(0.2), kernels.Erf()])
def test_duals_are_those_of_sampled_gaussians(activation):
    covariance = np.array([[1.3, 0.6], [0.6, 0.8]])
    draw = np.random.default_rng(0).multivariate_normal([0, 0], covariance, size=2_000_000)
    if isinstance(activation, kernels.Erf):
        value, slope = jax.scipy.special.erf, lambda a: 2 / np.sqrt(np.pi) * np.exp(-a * a)
    else:
        low, high = activation.low, activation.high
        value = lambda a: np.where(a < 0, low * a, high * a)  # noqa: E731
        slope = lambda a: np.where(a < 0, low, high)  # noqa: E731
    found = activation.dual(jnp.asarray(0.6), jnp.asarray(1.3), jnp.asarray(0.8))
    for mine, f in zip(found, (value, slope), strict=True):
        products = np.asarray(f(draw[:, 0])) * np.asarray(f(draw[:, 1]))
        error = products.std() / len(products) ** 0.5
        assert abs(float(mine) - products.mean()) < 4 * error


def test_wide_networks_have_these_kernels():
    """The NNGP and the empirical NTK of random networks, within three standard errors."""
    x = images(2, 6)
    nngp, ntk = kernels.FC(2)(x, get=BOTH)
    width, draws = 4096, 6
    found = [_empirical(jax.random.key(each), x, width) for each in range(draws)]
    for wanted, part in ((nngp, 0), (ntk, 1)):
        values = np.stack([each[part] for each in found])
        error = values.std(0, ddof=1) / draws**0.5
        # A finite width's own bias is of order 1 / width.
        assert (abs(values.mean(0) - wanted) < 3 * error + 3 * np.asarray(wanted) / width).all()


def _empirical(key, x, width):
    """The last layer's kernel, and the inner products of the output's gradients."""
    keys = jax.random.split(key, 3)
    sizes = [x.shape[1], width, width, 1]
    weights = [
        (jax.random.normal(k, (n, m)), jnp.zeros(m))
        for k, n, m in zip(keys, sizes, sizes[1:], strict=False)
    ]
    draws = jax.random.normal(jax.random.fold_in(key, 7), (3, width))
    weights = [(w, draws[place, : b.size]) for place, (w, b) in enumerate(weights)]

    def features(weights, x):
        for w, b in weights[:-1]:
            x = jax.nn.relu(2**0.5 * x @ w / len(w) ** 0.5 + 0.1 * b)
        return x

    def output(weights, x):
        w, b = weights[-1]
        return (2**0.5 * features(weights, x) @ w / len(w) ** 0.5 + 0.1 * b)[0]

    hidden = features(weights, x)
    nngp = 2 * hidden @ hidden.T / width + 0.01
    gradients = [ravel_pytree(jax.grad(output)(weights, one))[0] for one in x]
    gradients = jnp.stack(gradients)
    return np.asarray(nngp), np.asarray(gradients @ gradients.T)


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ((kernels.Relu(),), "no layer has weights"),
        ((kernels.Conv(), kernels.Relu(), kernels.Dense()), "need one"),
        ((kernels.Conv(), kernels.Flatten(), kernels.Flatten(), kernels.Dense()), "need one"),
        ((kernels.Flatten(), kernels.Conv()), "before the readout"),
        ((kernels.Dense(), kernels.Flatten(), kernels.Dense()), "after the readout"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, told):
    with pytest.raises(Error, match=told):
        kernels.serial(*layers)


@pytest.mark.wrong_types
def test_inputs_that_do_not_fit_are_refused():
    x = images(2, 6, 6, 1)
    with pytest.raises(Error, match="6x6 -> 3x3 -> 1x1 -> 0x0"):
        kernels.ConvNet(3)(x)
    with pytest.raises(Error, match="expected \\(n, height, width, channels\\)"):
        kernels.ConvNet(1)(x[..., 0])
    with pytest.raises(Error, match="cannot be compared"):
        kernels.FC(1)(x, images(2, 5))
    with pytest.raises(Error, match="neither ntk nor nngp"):
        kernels.FC(1)(x, get="gram")
    with pytest.raises(Error, match="odd"):
        kernels.Conv(2)
    with pytest.raises(Error, match="neither band nor full"):
        kernels.Kernel((kernels.Dense(),), pairs="half")  # pyright: ignore[reportArgumentType]


def test_names_make_architectures():
    assert kernels.named("ConvNet") == kernels.ConvNet(3)
    assert kernels.named("ConvNet3") == kernels.ConvNet(3, prepend=False)
    assert kernels.named("FC2") == kernels.FC(2)
    assert kernels.named("Conv4") == kernels.ConvStack(4)
    assert kernels.named("Myrtle10") == kernels.Myrtle(10)
    for name in ("FC", "FC0", "Myrtle6", "Conv", "resnet"):
        with pytest.raises(Error, match="no architecture"):
            kernels.named(name)
