"""All paths give what every expert on every token gives, masked; values and gradients."""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core import experts
from chapbook.core.errors import Error

TOKENS, EMBED, HIDDEN = 37, 6, 10
PATHS = [("einsum", None), ("scatter", None), ("grouped", "ragged"), ("grouped", "blocked")]


class Inputs(NamedTuple):
    """What gradients are taken by."""

    x: jax.Array
    router: jax.Array
    bank: experts.Experts


def inputs(count, *, gated=False, scale=1.0, tokens=TOKENS):
    keys = jax.random.split(jax.random.key(count), 3)
    x = jax.random.normal(keys[0], (tokens, EMBED))
    router = scale * jax.random.normal(keys[1], (EMBED, count))
    bank = experts.Experts(count, EMBED, HIDDEN, gated=gated, bias=True, key=keys[2])
    biases = jax.tree.map(lambda b: b + 0.1 * jnp.arange(b.size).reshape(b.shape), bank.b_in)
    return Inputs(x, router, eqx.tree_at(lambda b: b.b_in, bank, biases))


@eqx.filter_jit
def run(given, valid, how, *, k, capacity, num_groups=1, normalize="none", back_end=None):
    """Returns values and gradients; `back_end` is there so that each is compiled."""

    def loss(given):
        logits = experts.router_logits(given.x, given.router, valid)
        chosen = experts.top_k(jax.nn.softmax(logits), k, normalize=normalize, valid=valid)
        options = {"how": how, "capacity": capacity, "num_groups": num_groups}
        y, told = given.bank(given.x, chosen, **options)
        weight = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return jnp.sum(y * weight), (y, told)

    return jax.value_and_grad(loss, has_aux=True)(given)


def in_numpy(given, valid, k, capacity):
    """The layer in float64, token by token."""
    x, router, bank = jax.tree.map(lambda a: np.asarray(a, np.float64), given)
    logits = np.where(valid[:, None], x, 0) @ router
    gates = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    chosen = np.argsort(-gates, axis=1, kind="stable")[:, :k]
    filled, y = np.zeros(router.shape[1], int), np.zeros_like(x)
    for rank in range(k):
        for t in np.flatnonzero(valid):
            e = chosen[t, rank]
            filled[e] += 1
            if capacity is not None and filled[e] > capacity:
                continue
            hidden = x[t] @ bank.w_in[e] + bank.b_in[e]
            gate = hidden if bank.w_gate is None else x[t] @ bank.w_gate[e] + bank.b_gate[e]
            active = gate * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
            hidden = active if bank.w_gate is None else active * hidden
            y[t] += gates[t, e] * (hidden @ bank.w_out[e] + bank.b_out[e])
    return y


def assert_near(found, wanted, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max()))


# Each path is one more program to compile, so that not every case goes along every path.
MOVED, BLOCKED = ("scatter", None), ("grouped", "blocked")
CASES = {
    "one choice of one gated expert": ({"count": 1, "k": 1, "gated": True}, [BLOCKED]),
    "no capacity, padding": ({"count": 5, "k": 2, "padding": 4}, PATHS),
    "dropped choices": ({"count": 5, "k": 2, "capacity": 8, "padding": 4}, [MOVED, BLOCKED]),
    "all is padding": ({"count": 5, "k": 2, "capacity": 8, "padding": TOKENS}, [MOVED, BLOCKED]),
    "four choices of 17 experts, some of which get none": (
        {"count": 17, "k": 4, "capacity": 12, "scale": 4.0},
        [MOVED, BLOCKED],
    ),
    "one expert takes nearly all": ({"count": 3, "k": 1, "scale": 60.0}, [BLOCKED]),
    "renormalised after dropping": (
        {"count": 5, "k": 3, "capacity": 10, "normalize": "after"},
        [MOVED],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_path_gives_what_all_experts_on_all_tokens_give(case, monkeypatch):
    options, paths = CASES[case]
    options = {"padding": 0, "scale": 1.0, "gated": False, "capacity": None, **options}
    shape = {name: options.pop(name) for name in ("count", "scale", "gated")}
    given = inputs(**shape)
    valid = jnp.arange(TOKENS) < TOKENS - options.pop("padding")
    wanted = run(given, valid, "all", **options)
    if "normalize" not in options:
        y = in_numpy(given, np.asarray(valid), options["k"], options["capacity"])
        assert_near(wanted[0][1][0], y, 1e-5)
    for how, back_end in paths:
        monkeypatch.setenv("CHAPBOOK_GROUPED", back_end or "")
        found = run(given, valid=valid, how=how, back_end=back_end, **options)
        assert_near(found, wanted, 1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(wanted))


def test_the_paths_agree_to_the_last_digits_in_float64():
    with jax.enable_x64(True):
        given = jax.tree.map(lambda a: a.astype(np.float64), inputs(5))
        valid = jnp.arange(TOKENS) > 2
        (_, (wanted, _)), wanted_gradients = run(given, valid, "all", k=2, capacity=8)
        for how in ("grouped", "einsum"):
            (_, (y, _)), gradients = run(given, valid, how, k=2, capacity=8)
            assert y.dtype == np.float64
            assert_near((y, gradients), (wanted, wanted_gradients), 1e-12)


def test_blocks_of_every_length_give_what_one_product_gives():
    """Runs of 0 rows, of 1, and of more than the largest block, with rows that nobody owns."""
    sizes = np.array([0, 1, 700, 33, 0, 64])
    given = inputs(6, tokens=900)
    owner = np.repeat(np.arange(6), sizes)
    expert = np.full((900, 1), 6)
    order = np.random.default_rng(0).permutation(900)[: sizes.sum()]
    expert[order, 0] = owner
    x = given.x.at[np.flatnonzero(expert[:, 0] == 6)].set(jnp.nan)

    @functools.partial(jax.jit, static_argnums=2)
    def gradients(bank, x, how):
        weight = jnp.sin(jnp.arange(900.0))[:, None]
        chosen = experts.fixed(jnp.asarray(expert), jnp.ones((900, 1)), 6)
        return jax.grad(lambda b, x: jnp.sum(b(x, chosen, how=how)[0] * weight), (0, 1))(bank, x)

    assert_near(gradients(given.bank, x, "grouped"), gradients(given.bank, x, "scatter"), 1e-5)


def test_groups_are_layers_of_their_own():
    given, valid = inputs(5, tokens=36), jnp.arange(36) % 7 > 0

    @functools.partial(jax.jit, static_argnums=(2, 3))
    def layer(x, valid, how, num_groups):
        gates = jax.nn.softmax(experts.router_logits(x, given.router))
        chosen = experts.top_k(gates, 2, normalize="before", valid=valid)
        return given.bank(x, chosen, how=how, num_groups=num_groups, capacity=4)

    parts = zip(given.x.reshape(3, 12, -1), valid.reshape(3, 12), strict=True)
    each, tolds = zip(*[layer(x, v, "scatter", 1) for x, v in parts], strict=True)
    for how in ("scatter", "grouped"):
        whole, told = layer(given.x, valid, how, 3)
        assert_near(whole, jnp.concatenate(each), 1e-5)
        assert_near(told, jax.tree.map(lambda *parts: sum(parts), *tolds), 1e-5)


def test_with_room_for_all_a_permutation_of_tokens_is_one_of_outputs():
    given, valid = inputs(5), jnp.ones(TOKENS, bool)
    order = np.random.default_rng(0).permutation(TOKENS)
    for how, back_end in (MOVED, BLOCKED):
        layer = functools.partial(run, valid=valid, how=how, back_end=back_end, k=2, capacity=None)
        (_, (y, _)), _ = layer(given)
        (_, (z, _)), _ = layer(given._replace(x=given.x[order]))
        np.testing.assert_allclose(y[order], z, rtol=1e-5, atol=1e-6)


def test_experts_that_are_equal_and_weights_that_sum_to_1_give_the_dense_network():
    given = inputs(4)
    bank = experts.Experts(4, EMBED, HIDDEN, identical=True, key=jax.random.key(0))

    @jax.jit
    def both(x, router):
        chosen = experts.top_k(jax.nn.softmax(x @ router), 2, normalize="softmax_topk")
        return bank(x, chosen)[0], jax.nn.gelu(x @ bank.w_in[2]) @ bank.w_out[1]

    np.testing.assert_allclose(*both(given.x, given.router), rtol=1e-5, atol=1e-6)


def test_padding_that_holds_nan_changes_nothing_else():
    given, valid = inputs(5), jnp.arange(TOKENS) % 3 > 0
    broken = given._replace(x=jnp.where(valid[:, None], given.x, jnp.nan))
    clean = given._replace(x=jnp.where(valid[:, None], given.x, 0))
    for how, back_end in PATHS:
        layer = functools.partial(run, valid=valid, how=how, back_end=back_end, k=2, capacity=None)
        found = layer(broken)
        assert_near(found, layer(clean), 0)
        assert (found[0][1][0][~valid] == 0).all()


def test_a_dropped_choice_has_no_gradient_at_all():
    given = inputs(3)
    x, bank = given.x, given.bank
    chosen = experts.fixed(jnp.zeros((TOKENS, 1), int), jnp.ones((TOKENS, 1)), 3)

    def total(x, bank, weight, how):
        assignment = eqx.tree_at(lambda a: a.weight, chosen, weight)
        return jnp.sum(bank(x, assignment, how=how, capacity=5)[0] ** 2)

    gradients = jax.jit(jax.grad(total, (0, 1, 2)), static_argnums=3)
    for how in ("scatter", "grouped"):
        d_x, d_bank, d_weight = gradients(x, bank, chosen.weight, how)
        assert (d_x[5:] == 0).all()
        assert (d_weight[5:] == 0).all()
        assert (np.asarray(d_weight[:5]) != 0).all()
        assert all((d[1:] == 0).all() for d in jax.tree.leaves(d_bank))
    y, told = jax.jit(functools.partial(bank, capacity=5))(x, chosen)
    assert (y[5:] == 0).all()
    assert told.unserved_fraction == pytest.approx(32 / 37)


def test_gradients_are_those_of_finite_differences():
    with jax.enable_x64(True):
        given = jax.tree.map(lambda a: a.astype(np.float64), inputs(4, tokens=9))
        valid = jnp.arange(9) < 8
        logits = experts.router_logits(given.x, given.router)

        @jax.jit
        def loss(logits):
            gates = jax.nn.softmax(logits)
            found = jnp.zeros(())
            for normalize, capacity in (("before", None), ("after", 3)):
                chosen = experts.top_k(gates, 2, normalize=normalize, valid=valid)
                y, _ = given.bank(given.x, chosen, capacity=capacity)
                found += jnp.sum(jnp.sin(y))
            chosen = experts.top_2_gshard(logits, valid=valid, logit_cap=2.0)
            return found + jnp.sum(given.bank(given.x, chosen, capacity=3)[0] ** 2)

        direction = jnp.asarray(np.random.default_rng(0).normal(size=logits.shape))
        step = 1e-6
        slope = (loss(logits + step * direction) - loss(logits - step * direction)) / (2 * step)
        np.testing.assert_allclose(jnp.sum(jax.grad(loss)(logits) * direction), slope, rtol=1e-6)


def test_bfloat16_activations_are_routed_as_in_float32():
    given = inputs(8)

    @functools.partial(jax.jit, static_argnums=1)
    def layer(given, how):
        chosen = experts.top_k(jax.nn.softmax(experts.router_logits(given.x, given.router)), 2)
        return given.bank(given.x, chosen, how=how)[0], chosen

    light = jax.tree.map(lambda w: w.astype(jnp.bfloat16), given)
    wanted, chosen = layer(jax.tree.map(lambda w: w.astype("float32"), light), "scatter")
    for how in ("scatter", "grouped"):
        y, found = layer(light, how)
        assert (y.dtype, found.weight.dtype) == (jnp.bfloat16, jnp.float32)
        np.testing.assert_array_equal(found.expert, chosen.expert)
        np.testing.assert_allclose(found.weight, chosen.weight, rtol=1e-6)
        np.testing.assert_allclose(y.astype("float32"), wanted, atol=0.03 * np.abs(wanted).max())


@pytest.mark.parametrize("how", ["scatter", "grouped"])
def test_the_layer_works_under_scan_checkpoint_and_vmap(how):
    given = inputs(5)
    chosen = experts.top_k(jax.nn.softmax(given.x @ given.router), 2)

    def block(x):
        return given.bank(x, chosen, how=how, capacity=None if how == "grouped" else 8)[0]

    @jax.jit
    def loops(x):
        def twice(x):
            return jax.lax.scan(lambda x, _: (jax.checkpoint(block)(x), None), x, None, 2)[0]

        return twice(x), jax.grad(lambda x: jnp.sum(twice(x)))(x), jax.vmap(block)(x[None])[0]

    @jax.jit
    def plain(x):
        return block(block(x)), jax.grad(lambda x: jnp.sum(block(block(x))))(x), block(x)

    assert_near(loops(given.x), plain(given.x), 1e-5)


def test_a_program_is_compiled_once_for_each_setting():
    given = inputs(5)
    traced = 0

    @eqx.filter_jit
    def layer(x, capacity):
        nonlocal traced
        traced += 1
        chosen = experts.top_k(jax.nn.softmax(x @ given.router), 2)
        return given.bank(x, chosen, capacity=capacity)[0]

    for capacity in (4, 4, None, 4, None):
        layer(given.x, capacity)
        layer(given.x + 1, capacity)
    assert traced == 2


def test_dropout_needs_a_key_and_keeps_the_mean():
    bank = experts.Experts(2, EMBED, 64, dropout=0.5, activation=lambda x: x, key=jax.random.key(0))
    x = jnp.tile(inputs(2).x[:1], (4000, 1))
    chosen = experts.fixed(jnp.zeros((4000, 1), int), jnp.ones((4000, 1)), 2)
    plain = (x[:1] @ bank.w_in[0] @ bank.w_out[0])[0]
    for how in ("grouped", "scatter"):
        layer = jax.jit(lambda x, key, how=how: bank(x, chosen, how=how, key=key)[0])
        np.testing.assert_allclose(layer(x, None)[0], plain, rtol=1e-4)
        y = layer(x, jax.random.key(1))
        assert len(np.unique(np.asarray(y[:, 0]))) > 3900
        np.testing.assert_allclose(y.mean(0), plain, atol=6 * float(y.std()) / 4000**0.5)


def test_an_expert_function_of_ones_own_runs_on_every_path():
    given = inputs(5)
    chosen = experts.top_k(jax.nn.softmax(given.x @ given.router), 2)

    def linear(params, rows, matmul, key):
        return matmul(rows, params["w"])

    params = {"w": given.bank.w_in}
    wanted = np.einsum("tk,tkh->th", chosen.weight, np.einsum(
        "tm,tkmh->tkh", given.x, np.asarray(given.bank.w_in)[chosen.expert]
    ))  # fmt: skip
    for how in ("all", "einsum", "scatter", "grouped"):
        y, _ = jax.jit(lambda x, how=how: experts.moe(x, chosen, linear, params, how=how))(given.x)
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_is_said(monkeypatch):
    given = inputs(5)
    chosen = experts.fixed(jnp.zeros((TOKENS, 1), int), jnp.ones((TOKENS, 1)), 5)

    def layer(**options):
        return jax.eval_shape(lambda x: given.bank(x, chosen, **options)[0], given.x)

    with pytest.raises(Error, match="37 tokens do not divide into 2 groups; add padding"):
        layer(num_groups=2, capacity=3)
    with pytest.raises(Error, match='how "dense" is none of auto, einsum, scatter, grouped'):
        layer(how="dense")
    with pytest.raises(Error, match='how "grouped" is neither scatter nor einsum'):
        experts.dispatch(experts.plan(chosen, 3), given.x, how="grouped")
    monkeypatch.setenv("CHAPBOOK_GROUPED", "gmm")
    with pytest.raises(Error, match="CHAPBOOK_GROUPED=gmm is none of blocked, ragged"):
        layer()
