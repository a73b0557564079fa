import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core import mesh, use
from chapbook.core.errors import Error
from chapbook.core.transformer import FFN
from chapbook.vmoe.config import VMoEConfig
from chapbook.vmoe.cost import buffer, flops
from chapbook.vmoe.model import RULES, VisionTransformerMoE, feed_forward
from chapbook.vmoe.moe import MoE
from chapbook.vmoe.router import NoisyTopKRouter

SMALL = "Ti/4,depth=2,width=16,mlp=32,heads=2"
SPARSE = VMoEConfig.from_string(
    f"{SMALL},E=4,K=2,every=1", image_size=8, num_classes=3, capacity_factor=4.0
)


@functools.cache
def made(config: VMoEConfig = SPARSE, seed: int = 0) -> VisionTransformerMoE:
    model = eqx.filter_jit(lambda key: VisionTransformerMoE(config, key=key))(jax.random.key(seed))
    # The head begins with zeros, which would hide everything.
    assert model.head is not None
    kernel = jax.random.normal(jax.random.key(1), model.head.kernel.shape)
    return eqx.tree_at(lambda m: m.head.kernel, model, kernel)


def images(count: int = 3, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (count, 8, 8, 3))


@eqx.filter_jit
def moe_of(config: VMoEConfig) -> MoE:
    return MoE(config, key=jax.random.key(3))


apply = eqx.filter_jit(lambda layer, x: layer(x))
call = eqx.filter_jit(lambda model, x, valid=None, key=None: model(x, valid=valid, key=key))


def test_softmax_comes_before_top_k_and_weights_are_its_values():
    router = NoisyTopKRouter(8, 4, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (1, 6, 8))
    chosen, _ = router(x, SPARSE, valid=jnp.ones((1, 6), bool))
    logits = np.asarray(x[0], np.float64) @ np.asarray(router.kernel, np.float64)
    gates = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    order = np.argsort(-gates, axis=-1)[:, :2]
    np.testing.assert_array_equal(chosen.expert[0], order)
    np.testing.assert_allclose(chosen.weight[0], np.take_along_axis(gates, order, 1), rtol=1e-5)


def test_noise_has_a_deviation_of_one_over_e_and_is_off_without_a_key():
    router = NoisyTopKRouter(8, 4, key=jax.random.key(0))
    router = eqx.tree_at(lambda r: r.kernel, router, jnp.zeros((8, 4)))
    x, valid = jnp.ones((1, 20_000, 8)), jnp.ones((1, 20_000), bool)
    noisy, _ = router(x, SPARSE, valid=valid, key=jax.random.key(2))
    logs = np.log(np.asarray(noisy.gates[0], np.float64))
    # Of 0 + sigma n; the softmax takes the same number from all four.
    spread = (logs[:, 0] - logs[:, 1]).std() / np.sqrt(2)
    assert spread == pytest.approx(1 / 4, rel=0.02)
    clean, _ = router(x, SPARSE, valid=valid)
    np.testing.assert_allclose(clean.gates, 0.25)


def test_importance_is_of_clean_gates_and_load_only_with_noise():
    router = NoisyTopKRouter(8, 4, key=jax.random.key(0))
    x, valid = jax.random.normal(jax.random.key(1), (1, 16, 8)), jnp.ones((1, 16), bool)
    _, clean = router(x, SPARSE, valid=valid)
    _, noisy = router(x, SPARSE, valid=valid, key=jax.random.key(5))
    sums = np.asarray(jax.nn.softmax(x[0] @ router.kernel)).sum(0)
    assert clean.importance == pytest.approx((sums.std() / sums.mean()) ** 2, rel=1e-4)
    assert noisy.importance == pytest.approx(float(clean.importance), rel=1e-6)
    assert clean.load == 0
    assert noisy.load > 0


def dense_of(moe: MoE, config: VMoEConfig) -> FFN:
    """Returns the dense layer that is the first expert."""
    e, ffn = moe.experts, feed_forward(config, jax.random.key(0))
    assert e.b_in is not None
    assert e.b_out is not None
    return eqx.tree_at(
        lambda f: (f.up, f.up_bias, f.down, f.down_bias),
        ffn,
        (e.w_in[0], e.b_in[0], e.w_out[0], e.b_out[0]),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 1, "num_selected_experts": 1},
        {"num_experts": 4, "normalize": "softmax_topk"},
    ],
)
def test_one_expert_or_equal_ones_with_weights_of_sum_one_are_the_dense_layer(changes):
    config = dataclasses.replace(SPARSE, **changes)
    moe = moe_of(config)
    x = jax.random.normal(jax.random.key(1), (3, 5, 16))
    y, report = apply(moe, x)
    np.testing.assert_allclose(y, apply(dense_of(moe, config), x), rtol=1e-5, atol=1e-6)
    assert report.kept.all()


def test_without_drops_priority_changes_nothing_and_with_drops_it_does():
    model, x = made(), images(40)
    first, _ = call(model, x)
    second, _ = call(model.with_routing(batch_priority=True), x)
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)
    tight = model.with_routing(capacity_factor=0.3)
    one, aux = call(tight, x)
    other, told = call(tight.with_routing(batch_priority=True), x)
    assert 0 < float(aux.dropped) < 1
    assert float(told.untouched) > 0
    assert np.abs(one - other).max() > 1e-3


def test_priority_keeps_the_highest_scores_of_all_images_of_a_group():
    model = made().with_routing(
        capacity_factor=0.3, batch_priority=True, num_selected_experts=1, group_size=200,
        capacity_multiple=1,
    )  # fmt: skip
    _, aux = call(model, images(40))
    layer = aux.layers[0]
    expert, weight, kept = (
        np.asarray(x).reshape(-1) for x in (layer.expert, layer.weight, layer.kept)
    )
    room = buffer(model.config)
    for number in range(4):
        scores = np.sort(weight[expert == number])[::-1]
        assert set(weight[(expert == number) & kept]) == set(scores[:room])


@pytest.mark.parametrize("dispatch", ["einsum", "grouped"])
def test_all_ways_of_dispatch_agree(dispatch):
    model, x = made(), images(8)
    np.testing.assert_allclose(
        call(model.with_routing(dispatch=dispatch), x)[0], call(model, x)[0], rtol=1e-4, atol=1e-5
    )


def test_padding_images_change_no_real_output_and_take_no_room():
    model = made().with_routing(capacity_factor=0.6, capacity_multiple=1)
    x = images(5)
    alone, told = call(model, x)
    filled = jnp.concatenate([x, jnp.full((3, 8, 8, 3), jnp.nan)])
    padded, aux = call(model, filled, jnp.arange(8) < 5)
    np.testing.assert_allclose(padded[:5], alone, rtol=1e-5, atol=1e-6)
    assert float(aux.dropped) == pytest.approx(float(told.dropped), abs=1e-6)
    assert float(aux.loss) == pytest.approx(float(told.loss), rel=1e-4)


def test_a_token_that_no_expert_sees_passes_unchanged_and_gradients_stay_finite():
    config = dataclasses.replace(SPARSE, capacity_factor=1e-6, capacity_multiple=1, group_size=200)
    moe = moe_of(config)
    x = jax.random.normal(jax.random.key(1), (40, 5, 16))
    y, report = apply(moe, x)
    lost = ~np.asarray(report.kept).any(-1)
    assert lost.sum() > 150
    np.testing.assert_array_equal(np.asarray(y)[lost], 0)
    grads = eqx.filter_jit(eqx.filter_grad(lambda m: m(x)[0].sum() + m(x)[1].loss))(moe)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(eqx.filter(grads, eqx.is_array)))


def test_a_setting_compiles_once():
    traced = []

    @eqx.filter_jit
    def counted(model, x):
        traced.append(model.config)
        return model(x)[0]

    model, x = made(), images(3)
    for capacity in (1.0, 0.5, 1.0, 0.5):
        counted(model.with_routing(capacity_factor=capacity), x)
    assert len(traced) == 2


def test_one_layer_can_be_routed_in_its_own_way():
    model = made().with_routing(capacity_factor=0.2, layers=[1], capacity_multiple=1)
    _, aux = call(model, images(40))
    assert float(aux.layers[0].dropped) == 0
    assert float(aux.layers[1].dropped) > 0.2
    with pytest.raises(Error, match="layer 2 has no experts"):
        model.with_routing(capacity_factor=1.0, layers=[2])


@pytest.mark.parametrize("classifier", ["token", "gap", "map", "first"])
def test_parameters_are_those_of_the_formula(classifier):
    config = dataclasses.replace(
        SPARSE, classifier=classifier, representation=12, moe_layers=(1,), position="learned"
    )
    shapes = eqx.filter_eval_shape(VisionTransformerMoE, config, key=jax.random.key(0))
    counted = sum(x.size for x in jax.tree.leaves(shapes) if hasattr(x, "size"))
    assert counted == flops(config).parameters


@pytest.mark.parametrize(
    "line", ["S/32,E=8,K=2,last=2", "S/32,E=32,K=2,every=2", "B/16,E=8,K=2,every=2"]
)
def test_flops_are_those_that_the_compiler_counts(line):
    config = VMoEConfig.from_string(line)
    shapes = eqx.filter_eval_shape(VisionTransformerMoE, config, key=jax.random.key(0))
    params, static = eqx.partition(shapes, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    x = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32)
    lowered = jax.jit(lambda p, x: eqx.combine(p, static)(x)[0]).lower(params, x)
    analysis = lowered.cost_analysis()
    assert analysis is not None
    # The compiler counts elementwise work too, which the formula leaves out.
    assert flops(config).flops == pytest.approx(analysis["flops"] / 8, rel=0.02)


@pytest.mark.devices(8)
@pytest.mark.parametrize(
    "axes",
    ["data=2,expert=2,model=2", pytest.param("data=2,expert=4", marks=pytest.mark.slow)],
)
def test_a_mesh_gives_the_values_and_gradients_of_one_device(axes):
    model = made().with_routing(capacity_factor=0.8, group_size=10)
    x = images(16)

    def value(params, static, x):
        logits, aux = eqx.combine(params, static)(x)
        return (logits**2).sum() + aux.loss, logits

    params, static = eqx.partition(model, eqx.is_inexact_array)
    step = jax.jit(functools.partial(jax.grad(value, has_aux=True), static=static))
    grads, alone = step(params, x=x)
    with use(mesh(axes), RULES):
        spread, logits = jax.jit(functools.partial(jax.grad(value, has_aux=True), static=static))(
            params, x=x
        )
    np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-4)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(spread), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-3)


def test_images_of_another_size_are_refused():
    with pytest.raises(Error, match="takes 8 x 8"):
        made()(jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(Error, match="multiples of 4"):
        made()(jnp.zeros((1, 10, 10, 3)))
