"""The model against what it must not see, what it was packed with, and its own cache."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core import mesh, use
from chapbook.core.errors import Error
from chapbook.glam.config import GLaMConfig
from chapbook.glam.model import RULES, GLaM, capped
from chapbook.glam.moe import MoE
from chapbook.glam.saving import load, save

LINE = "desk/4E,vocab=31,context=12,width=16,hidden=24,heads=2,head=8"
SPARSE = GLaMConfig.from_string(LINE)
call = eqx.filter_jit(lambda m, t, s=None, key=None: m(t, segments=s, key=key))


@functools.cache
def made(config: GLaMConfig = SPARSE) -> GLaM:
    return eqx.filter_jit(GLaM)(config, key=jax.random.key(0))


def ids(rows: int = 2, length: int = 12) -> jax.Array:
    return jax.random.randint(jax.random.key(7), (rows, length), 0, 31)


def test_a_token_changes_no_logits_before_it():
    model, tokens = made(), ids()
    logits, _ = call(model, tokens)
    other, _ = call(model, tokens.at[:, 8].set((tokens[:, 8] + 1) % 31))
    np.testing.assert_array_equal(logits[:, :8], other[:, :8])
    assert (abs(logits - other)[:, 8:].max(-1) > 0).all()


def test_in_training_a_later_token_can_displace_the_second_choice_of_an_earlier_one():
    config = GLaMConfig.from_string(LINE, capacity=4)
    model, tokens, key = made(config), ids(), jax.random.key(0)
    logits, routing = call(model, tokens, None, key)
    assert 0 < routing.dropped < 1
    changed = [
        abs(call(model, tokens.at[:, 8].set(each), None, key)[0] - logits)[:, :8].max()
        for each in range(31)
    ]
    assert max(changed) > 0


def test_documents_of_a_row_equal_the_same_documents_alone():
    model, tokens = made(), ids()
    segments = jnp.asarray([[1] * 5 + [2] * 7, [1] * 9 + [0] * 3])
    packed, _ = call(model, tokens, segments)
    np.testing.assert_allclose(packed[0, :5], call(model, tokens[:, :5])[0][0], atol=1e-5)
    np.testing.assert_allclose(packed[0, 5:], call(model, tokens[:, 5:])[0][0], atol=1e-5)
    np.testing.assert_allclose(packed[1, :9], call(model, tokens)[0][1, :9], atol=1e-5)


def test_padding_is_routed_nowhere():
    model, tokens = made(), ids()
    segments = jnp.asarray([[1] * 12, [1] * 9 + [0] * 3])
    _, routing = call(model, tokens, segments)
    np.testing.assert_array_equal(routing.layers.metrics.load.sum(-1), [42.0, 42.0])
    np.testing.assert_array_equal(routing.layers.metrics.tokens, [21.0, 21.0])


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("line", [LINE, LINE.replace("/4E", "")])
def test_a_cache_gives_the_logits_of_the_whole_sequence(line, unrolled):
    model, tokens = made(GLaMConfig.from_string(line)), ids()
    whole, _ = call(model, tokens)
    model = model.unrolled() if unrolled else model
    shorter, _ = call(model, tokens[1:, 3:])
    start = jnp.asarray([0, 3])
    logits, cache = eqx.filter_jit(lambda m, t: m.prefill(t, 14, start=start))(model, tokens[:, :4])
    np.testing.assert_allclose(logits[:, 0], [whole[0, 3], shorter[0, 0]], atol=1e-4)
    step = eqx.filter_jit(lambda m, t, c: m.decode(t, c))
    for place in range(4, 12):
        logits, cache = step(model, tokens[:, place : place + 1], cache)
        np.testing.assert_allclose(logits[0, 0], whole[0, place], atol=1e-4)
        np.testing.assert_allclose(logits[1, 0], shorter[0, place - 3], atol=1e-4)
    logits, cache = eqx.filter_jit(lambda m, t: m.prefill(t, 14))(model, tokens[:, :1])
    np.testing.assert_allclose(logits, whole[:, :1], atol=1e-4)
    logits, _ = step(model, tokens[:, 1:6], cache)
    np.testing.assert_allclose(logits, whole[:, 1:6], atol=1e-4)


def test_a_layer_of_experts_is_the_sum_that_its_equation_says():
    layer = eqx.filter_jit(MoE)(SPARSE, key=jax.random.key(3))
    x = jax.random.normal(jax.random.key(4), (2, 5, 16))
    y, routing = eqx.filter_jit(lambda m, x: m(x))(layer, x)
    rows = np.asarray(x, np.float64).reshape(10, 16)
    logits = rows @ np.asarray(layer.router, np.float64)
    gates = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected, first = np.zeros_like(rows), np.zeros((10, 4))
    for t, row in enumerate(rows):
        best = np.argsort(-gates[t])[:2]
        first[t, best[0]] = 1
        for e in best:
            hidden = jax.nn.gelu(jnp.asarray(row @ np.asarray(layer.experts.w_in[e]), jnp.float32))
            share = gates[t, e] / gates[t, best].sum()
            expected[t] += share * (np.asarray(hidden) @ np.asarray(layer.experts.w_out[e]))
    np.testing.assert_allclose(y.reshape(10, 16), expected, atol=1e-5)
    groups = [
        4 * (first[g : g + 5].mean(0) * gates[g : g + 5].mean(0)).sum() for g in (0, 5)
    ]  # E^2 mean over E
    np.testing.assert_allclose(routing.loss, np.mean(groups), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "places"),
    [({}, 8), ({"capacity_factor": 1.0}, 4), ({"capacity": 3}, 3), ({"group_size": 5}, 4)],
)
def test_a_buffer_has_the_room_that_the_configuration_says(settings, places):
    config = GLaMConfig.from_string(LINE, **settings)
    layer = eqx.filter_jit(MoE)(config, key=jax.random.key(3))
    # All tokens alike want the same two experts.
    x = jnp.ones((2, 12, 16))
    _, routing = eqx.filter_jit(lambda m, x: m(x, key=jax.random.key(0)))(layer, x)
    size = settings.get("group_size", 12)
    groups = [min(size, 24 - begin) for begin in range(0, 24, size)]
    kept = sum(min(count, places) for count in groups)
    np.testing.assert_array_equal(np.sort(routing.metrics.load), [0, 0, kept, kept])


def test_without_experts_the_model_is_dense_and_reports_no_routing():
    _, routing = call(made(GLaMConfig.from_string(LINE.replace("/4E", ""))), ids())
    assert routing.layers is None and routing.loss == 0 and routing.dropped == 0


def test_one_expert_is_a_layer_without_gate_and_router():
    config = GLaMConfig.from_string(LINE.replace("/4E", "/1E"), expert_hidden=48)
    stack: Any = made(config).layers
    first, second = stack.layers.layers
    assert (first.ffn.gate is None, first.ffn.up.shape) == (True, (2, 16, 48))
    assert second.ffn.gate is not None
    # So is a bank of two equal experts.
    bank = MoE(GLaMConfig.from_string(LINE.replace("/4E", "/2E,expert=48")), key=jax.random.key(0))
    pair = jnp.stack([first.ffn.up[0]] * 2), jnp.stack([first.ffn.down[0]] * 2)
    bank = eqx.tree_at(lambda b: (b.experts.w_in, b.experts.w_out), bank, pair)
    x = jax.random.normal(jax.random.key(1), (1, 5, 16))
    layer = jax.tree.map(lambda leaf: leaf[0], first.ffn)
    np.testing.assert_allclose(bank(x)[0], layer(x), atol=1e-5)


def test_the_order_of_layers_is_an_option():
    model = made(GLaMConfig.from_string(LINE, moe_offset=1))
    stack: Any = model.layers
    kinds = [type(block.ffn).__name__ for block in stack.layers.layers]
    assert kinds == ["FFN", "MoE"]
    assert call(model, ids())[1].layers.loss.shape == (2,)


def test_a_cap_bounds_the_logits_of_the_attention():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 5, 2, 4)) for i in range(3))
    found = capped(2.0)(q, k, v, None, None, scale=3.0, is_causal=True)
    logits = np.einsum("btnh,bsnh->bnts", np.asarray(q, np.float64), np.asarray(k)) * 3
    logits = 2 * np.tanh(logits / 2)
    logits[..., ~np.tri(5, dtype=bool)] = -np.inf
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.einsum("bnts,bsnh->btnh", weights, np.asarray(v))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    large = capped(1e6)(q, k, v, None, None, scale=3.0, is_causal=True)
    plain = jax.nn.dot_product_attention(q, k, v, scale=3.0, is_causal=True)
    np.testing.assert_allclose(large, plain, atol=1e-4)


def test_the_program_does_not_grow_with_the_layers():
    def size(layers: int) -> int:
        config = GLaMConfig.from_string(f"{LINE},layers={layers}")
        model = eqx.filter_eval_shape(GLaM, config, key=jax.random.key(0))
        made, *_ = eqx.filter_make_jaxpr(lambda m, t: m(t)[0])(model, ids())
        return len(str(made).splitlines())

    assert size(4) == size(24)


def test_an_unrolled_model_is_the_same_and_is_not_saved(tmp_path):
    model, tokens = made(), ids()
    unrolled = model.unrolled()
    assert unrolled.unrolled() is unrolled
    (logits, told), (again, same) = call(model, tokens), call(unrolled, tokens)
    np.testing.assert_allclose(logits, again, atol=1e-5)
    for one, other in zip(jax.tree.leaves(told), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    with pytest.raises(Error, match="unrolled"):
        save(unrolled, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_keeps_a_model(tmp_path):
    save(made(), tmp_path)
    again = load(tmp_path)
    assert again.config == SPARSE
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), made(), again))
    with pytest.raises(Error, match="is no folder of a model"):
        load(tmp_path / "nothing")
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"buckets"', '"bins"'))
    with pytest.raises(Error, match="settings that this version does not know: bins"):
        load(tmp_path)


@pytest.mark.devices(8)
@pytest.mark.parametrize("axes", ["data=2,expert=2,tensor=2", "fsdp=8"])
def test_a_mesh_gives_the_logits_and_gradients_of_one_device(axes):
    tokens = ids(8)
    key = jax.random.key(0)

    @eqx.filter_jit
    def learn(model: GLaM, tokens: jax.Array) -> Any:
        def loss(model: GLaM) -> Any:
            logits, routing = model(tokens, key=key)
            taken = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)
            return routing.loss - taken.mean(), logits

        return eqx.filter_value_and_grad(loss, has_aux=True)(model)

    (one, logits), slopes = learn(made(), tokens)
    with use(mesh(axes), RULES):
        (several, others), found = learn(made(), tokens)
    np.testing.assert_allclose(several, one, rtol=1e-5)
    np.testing.assert_allclose(others, logits, atol=2e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
