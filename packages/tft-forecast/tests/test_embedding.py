"""Vectors of real and categorical variables."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from chapbook.tft_forecast.embedding import Embedding
from chapbook.tft_forecast.inputs import Group, Inputs

KEY = jax.random.key(0)
GROUP = Group(("a", "b", "c"), ("u", "v"), (4, 3))


def inputs(shape=(2, 5), missing=0.3, seed=0):
    rng = np.random.default_rng(seed)
    return Inputs(
        jnp.asarray(rng.normal(size=(*shape, 3))),
        jnp.asarray(np.stack([rng.integers(0, n, shape) for n in GROUP.sizes], -1)),
        jnp.asarray(rng.random((*shape, 5)) < missing),
    )


def reference(block, given):
    """Goes value by value."""
    tables = np.split(np.array(block.table), np.cumsum(GROUP.sizes)[:-1])
    *shape, variables = given.missing.shape
    out = np.zeros((variables, *shape, block.weight.shape[1]))
    for place in np.ndindex(*shape):
        for j in range(variables):
            if given.missing[place][j]:
                out[j][place] = block.missing[j]
            elif j < 3:
                x = float(given.real[place][j])
                out[j][place] = x * np.array(block.weight[j]) + np.array(block.bias[j])
            else:
                out[j][place] = tables[j - 3][int(given.categorical[place][j - 3])]
    return out


def test_each_value_has_its_vector():
    with jax.enable_x64(True):
        block = Embedding(GROUP, 4, key=KEY)
        for shape in [(2, 5), (3,)]:
            given = inputs(shape)
            found = eqx.filter_jit(block)(given)
            np.testing.assert_allclose(found, reference(block, given), rtol=0, atol=1e-10)


def test_values_that_are_missing_do_not_matter():
    block, given = Embedding(GROUP, 4, key=KEY), inputs()
    other = inputs(seed=1)
    absent = given.missing
    mixed = Inputs(
        jnp.where(absent[..., :3], other.real, given.real),
        jnp.where(absent[..., 3:], other.categorical, given.categorical),
        absent,
    )
    np.testing.assert_array_equal(eqx.filter_jit(block)(given), eqx.filter_jit(block)(mixed))


def test_fewer_variables_are_the_last_ones():
    block, given = Embedding(GROUP, 4, key=KEY), inputs()
    last = Inputs(
        given.real[..., 2:], given.categorical[..., 1:], given.missing[..., np.array([2, 4])]
    )
    np.testing.assert_array_equal(block(last), block(given)[np.array([2, 4])])


def test_groups_of_one_kind_work():
    given = inputs()
    for group, part in [
        (Group(("a", "b", "c")), (given.real, given.categorical[..., :0], given.missing[..., :3])),
        (Group((), ("u", "v"), (4, 3)), (given.real[..., :0], *given[1:2], given.missing[..., 3:])),
    ]:
        assert Embedding(group, 4, key=KEY)(Inputs(*part)).shape == (len(group), 2, 5, 4)


def test_categories_become_unknown_at_the_rate_asked_for_and_only_in_training():
    group = Group((), ("u",), (4,))
    block = Embedding(group, 4, unknown_rate=0.2, key=KEY)
    shape = (400, 500, 1)
    given = Inputs(jnp.zeros((400, 500, 0)), jnp.full(shape, 3), jnp.zeros(shape, bool))
    trained = block(given, key=KEY)[0, ..., 0]
    unknown = np.mean(trained == block.table[0, 0])
    assert abs(unknown - 0.2) < 4 * np.sqrt(0.2 * 0.8 / trained.size)
    assert np.all((trained == block.table[0, 0]) | (trained == block.table[3, 0]))
    assert np.all(block(given)[0, ..., 0] == block.table[3, 0])


def test_initial_values_are_those_of_keras():
    block = Embedding(Group(tuple(map(str, range(50))), ("u",), (800,)), 40, key=KEY)
    for array, limit in [
        (block.table, 0.05),
        (block.missing, 0.05),
        (block.weight, (6 / 41) ** 0.5),
    ]:
        assert 0.99 * limit < float(jnp.max(jnp.abs(array))) <= limit
        np.testing.assert_allclose(jnp.std(array), limit / np.sqrt(3), rtol=0.03)
    np.testing.assert_array_equal(block.bias, np.zeros((50, 40)))


def test_gradients_agree_with_finite_differences():
    with jax.enable_x64(True):
        block, given = Embedding(GROUP, 4, key=KEY), inputs()
        run = jax.jit(lambda block, real: block(given._replace(real=real)) ** 2)
        check_grads(run, (block, given.real), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)
