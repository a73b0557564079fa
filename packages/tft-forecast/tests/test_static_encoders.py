"""The four contexts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from chapbook.tft_forecast.static_encoders import Contexts, StaticEncoders

KEY = jax.random.key(0)


def shaken(block, seed=1):
    rng = np.random.default_rng(seed)
    arrays, rest = eqx.partition(block, eqx.is_array)
    move = lambda p: jnp.asarray(np.array(p) + 0.3 * rng.normal(size=p.shape), p.dtype)  # noqa: E731
    return eqx.combine(jax.tree.map(move, arrays), rest)


def grn(block, a):
    """One vector through a gated residual network without a context."""
    hidden = a @ block.first.weight + block.first.bias
    hidden = np.array([h if h > 0 else np.expm1(h) for h in hidden])
    hidden = hidden @ block.second.weight + block.second.bias
    gate = 1 / (1 + np.exp(-(hidden @ block.glu.gate.weight + block.glu.gate.bias)))
    total = a + gate * (hidden @ block.glu.value.weight + block.glu.value.bias)
    normal = (total - total.mean()) / np.sqrt(total.var() + 1e-3)
    return normal * block.norm.scale + block.norm.shift


def test_each_context_has_a_network_of_its_own():
    with jax.enable_x64(True):
        block = shaken(StaticEncoders(5, key=KEY))
        x = np.random.default_rng(2).normal(size=(3, 5))
        contexts, openings = eqx.filter_jit(block)(jnp.asarray(x))
        for number, (name, context) in enumerate(contexts._asdict().items()):
            own = jax.tree.map(lambda p, n=number: np.array(p[n]), block.encoders.blocks)
            expected = [grn(own, row) for row in x]
            np.testing.assert_allclose(context, expected, rtol=0, atol=1e-10)
            assert openings[name].shape == (3,)
    assert set(openings) == set(Contexts._fields)


def test_contexts_differ_from_the_start():
    contexts, _ = StaticEncoders(5, key=KEY)(jnp.ones((1, 5)).at[0, 0].set(3))
    assert len({tuple(map(float, context[0])) for context in contexts}) == 4


def test_gradients_agree_with_finite_differences():
    with jax.enable_x64(True):
        block, x = shaken(StaticEncoders(4, key=KEY)), np.random.default_rng(2).normal(size=(2, 4))
        run = jax.jit(lambda block, x: block(x)[0])
        check_grads(run, (block, jnp.asarray(x)), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)
