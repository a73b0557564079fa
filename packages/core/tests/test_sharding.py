"""Logical names, rules, and what they do to parameters, activations and optimizer state.

At the end stand what meshes, batches, weights and checkpoints claim on several devices, because
the tests of one file share the process that simulates them.
"""

import functools
import itertools
import logging
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array
from jax.sharding import AbstractMesh, AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from safetensors.flax import load_file

from chapbook.core.checkpoint import Checkpoints
from chapbook.core.data import Batches, arrays, place
from chapbook.core.errors import Error
from chapbook.core.meshes import local_batch, mesh, replicated, simulate
from chapbook.core.sharding import (
    RULES,
    axes,
    constrain,
    create,
    describe,
    like,
    names,
    shardings,
    specs,
    use,
)
from chapbook.core.weights import load_weights, save_weights


class FFN(eqx.Module):
    up: Array = axes("embed", "mlp")
    down: Array = axes("mlp", "embed")
    bias: Array = eqx.field(kw_only=True)
    act: Callable = eqx.field(kw_only=True)

    def __init__(self, embed, mlp, key):
        # Not random: making random numbers on eight devices compiles for a second.
        self.up = jnp.asarray(np.sin(np.arange(embed * mlp, dtype="f")).reshape(embed, mlp))
        self.down = jnp.asarray(np.cos(np.arange(embed * mlp, dtype="f")).reshape(mlp, embed))
        self.bias = jnp.asarray(np.zeros(mlp, "f"))
        self.act = jnp.tanh

    def __call__(self, x):
        x = constrain(x, "batch", "embed")
        hidden = constrain(self.act(x @ self.up + self.bias), "batch", "mlp")
        return constrain(hidden @ self.down, "batch", "embed")


def plan(text):
    """Returns a mesh of no devices at all."""
    sizes = {name: int(size) for name, size in (pair.split("=") for pair in text.split(","))}
    kinds = (AxisType.Auto,) * len(sizes)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds)


def shapes(make, *arguments):
    return eqx.filter_eval_shape(make, *arguments, jax.random.key(0))


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.mark.parametrize(
    ("found", "rules", "text", "wanted"),
    [
        (("embed", "mlp"), {}, "data=2,fsdp=2,model=2", P("fsdp", "model")),
        (("embed", "mlp"), {}, "data=8", P(None, None)),
        (("embed", "mlp"), {}, "model=8", P(None, "model")),
        (("batch", "seq", "embed"), {}, "data=4,fsdp=2", P(("data", "fsdp"), None, None)),
        (("batch", "seq", "embed"), {}, "data=8", P("data", None, None)),
        (("embed", "batch"), {}, "data=4,fsdp=2", P("fsdp", "data")),
        (("heads", "mlp"), {}, "model=2", P("model", None)),
        (("layers", "embed", None), {}, "fsdp=2", P(None, "fsdp", None)),
        (("expert", "embed", "mlp"), {}, "expert=2,model=4", P("expert", None, "model")),
        (("embed", "mlp"), {"embed": None, "mlp": ["model", "data"]}, "data=2,model=4",
         P(None, ("model", "data"))),
    ],
)  # fmt: skip
def test_rules_turn_names_into_specs(found, rules, text, wanted):
    assert specs({"w": found}, {**RULES, **rules}, plan(text)) == {"w": wanted}


def test_a_name_without_a_rule_is_an_error_not_a_copy():
    with pytest.raises(Error) as caught:
        specs({"w": ("embed", "features")}, RULES, plan("data=8"))
    assert str(caught.value).startswith('w: no rule for "features"; the rules name batch, seq,')
    assert caught.value.hint is not None
    assert '{**RULES, "features": ...}' in caught.value.hint


def test_names_are_metadata_and_never_leaves():
    model = shapes(FFN, 8, 16)
    arrays = jax.tree.leaves(eqx.filter(model, lambda x: isinstance(x, jax.ShapeDtypeStruct)))
    assert [leaf.shape for leaf in arrays] == [(8, 16), (16, 8), (16,)]
    found = names(model)
    assert (found.up, found.down, found.bias) == (("embed", "mlp"), ("mlp", "embed"), ())


def test_names_align_to_the_right_and_a_stack_gains_layers():
    stack = shapes(lambda key: eqx.filter_vmap(lambda k: FFN(8, 16, k))(jax.random.split(key, 3)))
    assert names(stack).up == ("layers", "embed", "mlp")

    class Conv(eqx.Module):
        kernel: jax.ShapeDtypeStruct = axes("embed", "mlp")

    with pytest.raises(Error) as caught:
        names(Conv(shape(3, 3, 8, 16)))
    assert str(caught.value) == (
        "Conv.kernel: 2 names for 4 dimensions: embed, mlp (shape (3, 3, 8, 16))"
    )
    with pytest.raises(Error) as caught:
        names({"conv": Conv(shape(16))})
    assert str(caught.value) == ("conv.kernel: 2 names for 1 dimensions: embed, mlp (shape (16,))")


def test_every_unnamed_matrix_stands_in_one_error():
    foreign = {
        "a": shape(4, 4),
        "vector": shape(4),
        "scalar": shape(),
        "table": shape(4, 4, dtype=jnp.int32),
        "deep": [shape(2, 4, 4, dtype=jnp.bfloat16)],
    }
    with pytest.raises(Error) as caught:
        shardings(foreign, plan("data=8"))
    assert str(caught.value) == ("no names for the dimensions of a (4, 4), deep.0 (2, 4, 4)")


def test_without_strictness_they_are_replicated_and_logged(caplog):
    with caplog.at_level(logging.WARNING, "chapbook.core.sharding"):
        planned = shardings({"a": shape(4, 4)}, plan("fsdp=8"), strict=False)
    assert planned["a"].spec == P()
    assert caplog.messages == ["replicated for want of names: a (4, 4) (64 bytes)"]


def test_a_size_that_does_not_divide_names_the_parameter():
    with pytest.raises(Error) as caught:
        shardings(shapes(FFN, 512, 1000), plan("model=3"))
    assert str(caught.value) == ("FFN.up: mlp=1000 is not divisible by model=3 (shape (512, 1000))")
    with pytest.raises(Error, match=r"^w: batch=4 is not divisible by data=2,fsdp=4 \(shape"):
        specs({"w": ("batch",)}, RULES, plan("data=2,fsdp=4"), {"w": shape(4)})


def test_small_parameters_can_stay_whole_over_fsdp():
    model = {"small": shape(8, 8), "large": shape(256, 256)}
    named = [("*", ("embed", "mlp"))]
    made = plan("fsdp=2,model=2")
    planned = shardings(model, made, patterns=named, replicate_below=2**16)
    assert planned["small"].spec == P(None, "model")
    assert planned["large"].spec == P("fsdp", "model")
    assert shardings(model, made, patterns=named)["small"].spec == P("fsdp", "model")


LINEAR = [("layers.*.weight", ("mlp", "embed")), ("*.bias", ("mlp",))]


def test_patterns_name_foreign_modules_and_must_match():
    model = shapes(lambda key: eqx.nn.MLP(8, 16, 32, 2, key=key))
    planned = shardings(model, plan("fsdp=2,model=2"), patterns=LINEAR)
    assert planned.layers[0].weight.spec == P("model", "fsdp")
    assert planned.layers[2].bias.spec == P("model")
    assert planned.activation is None
    with pytest.raises(Error, match=r"^the pattern layer.weight matches none of MLP.layers.0.w"):
        shardings(model, plan("fsdp=2"), patterns=[*LINEAR, ("layer.weight", ("mlp",))])


def test_constrain_is_the_identity_outside_a_mesh():
    x = jnp.ones((3, 5))
    assert constrain(x, "batch", "embed") is x
    assert "sharding" not in str(jax.make_jaxpr(lambda x: constrain(x, "batch", "embed"))(x))


@pytest.mark.devices(8)
def test_constrain_works_in_eager_mode_jit_and_vmap():
    x = jnp.ones((8, 4, 16))
    with use(mesh("data=4,model=2")) as made:
        wanted = NamedSharding(made, P("data", None, "model"))
        inner = NamedSharding(made, P(None, "data", "model"))

        def pin(x):
            return constrain(x, "batch", "seq", "mlp")

        def mapped(x):
            return jax.vmap(lambda x: constrain(x, "batch", "mlp"))(x)

        for function in (pin, jax.jit(pin)):
            assert function(x).sharding.is_equivalent_to(wanted, 3)
        for function in (mapped, jax.jit(mapped)):
            assert function(x).sharding.is_equivalent_to(inner, 3)
        with pytest.raises(Error, match=r"more names than dimensions: batch, mlp \(shape \(8,\)\)"):
            constrain(jnp.ones(8), "batch", "mlp")


@pytest.mark.devices(8)
def test_constrain_drops_what_does_not_divide():
    with use(mesh("data=4,model=2")) as made:
        wanted = NamedSharding(made, P(None, "model"))
        for function in (constrain, jax.jit(constrain, static_argnums=(1, 2))):
            x = function(jnp.ones((6, 4)), "batch", "mlp")
            assert x.sharding.is_equivalent_to(wanted, 2)


@pytest.mark.devices(8)
def test_other_rules_are_not_met_by_the_old_compiled_function():
    made = mesh("data=4,model=2")
    pin = jax.jit(lambda x: constrain(x, "batch", "mlp"))
    with use(made):
        assert pin(jnp.ones((8, 8))).sharding.spec == P("data", "model")
    with use(made, {"batch": "model", "mlp": "data"}):
        assert pin(jnp.ones((8, 8))).sharding.spec == P("model", "data")


@pytest.mark.devices(8)
def test_constrain_leaves_out_axes_that_shard_map_has_made_manual():
    with use(mesh("data=4,model=2")):
        inside = jax.shard_map(
            lambda x: constrain(x * 2, "batch", "mlp"),
            in_specs=P("data"),
            out_specs=P("data"),
            axis_names={"data"},
        )
        np.testing.assert_array_equal(jax.jit(inside)(jnp.ones((8, 4))), 2)


INPUT = np.linspace(-1, 1, 128, dtype=np.float32).reshape(8, 16)
MESHES = ["data=8", "fsdp=8", "data=4,model=2", "fsdp=2,model=4", "data=2,fsdp=2,model=2"]


def loss(model, x):
    return jnp.mean(model(x) ** 2)


def make(key):
    return FFN(16, 32, key)


@functools.cache
def plain_gradients():
    """Returns the loss and gradients on one device."""
    return eqx.filter_jit(eqx.filter_value_and_grad(loss))(make(jax.random.key(0)), INPUT)


def assert_near(sharded, plain):
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def sharded_gradients(made):
    model = create(make, jax.random.key(0), made)
    with use(made):
        return model, eqx.filter_jit(eqx.filter_value_and_grad(loss))(model, INPUT)


@pytest.mark.devices(8)
@pytest.mark.parametrize("text", MESHES)
def test_eight_devices_give_what_one_gives(text):
    made = mesh(text)
    model, found = sharded_gradients(made)
    assert_near(found, plain_gradients())
    held = model.up.size // made.shape.get("fsdp", 1) // made.shape.get("model", 1)
    assert [shard.data.size for shard in model.up.addressable_shards] == [held] * 8
    assert model.act is jnp.tanh


@settings(max_examples=2, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["data", "fsdp", "model", "expert"]), min_size=1, unique=True))
def test_a_mesh_of_axes_of_size_one_changes_nothing(axis_names):
    text = ",".join(f"{name}=1" for name in axis_names)
    _, found = sharded_gradients(mesh(text, jax.devices()[:1]))
    assert_near(found, plain_gradients())


@pytest.mark.devices(8)
def test_a_foreign_module_with_patterns_gives_what_one_device_gives():
    made = mesh("data=2,fsdp=2,model=2")
    x = np.sin(np.arange(128, dtype=np.float32)).reshape(16, 8)

    def mlp(key):
        return eqx.nn.MLP(8, 16, 32, 1, key=key)

    def run(model, x):
        return jax.vmap(model)(x)

    model = create(mlp, jax.random.key(0), made, patterns=LINEAR)
    sharding = model.layers[0].weight.sharding
    assert isinstance(sharding, NamedSharding)
    assert sharding.spec == P("model", "fsdp")
    spread = jax.device_put(x, NamedSharding(made, P("data")))
    plain = run(mlp(jax.random.key(0)), x)
    np.testing.assert_allclose(eqx.filter_jit(run)(model, spread), plain, rtol=1e-5, atol=1e-6)


def decay():
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.inject_hyperparams(optax.adamw)(1e-3, weight_decay=0.1),
    )


def matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


OPTIMIZERS = {
    "adam": lambda: optax.adam(1e-3),
    "momentum": lambda: optax.sgd(1e-3, momentum=0.9),
    "decay": decay,
    "masked": lambda: optax.masked(optax.adam(1e-3), matrices),
    "adafactor": lambda: optax.adafactor(1e-3, min_dim_size_to_factor=8),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_lies_as_its_parameters_do(name):
    made = plan("fsdp=4,model=2")
    model = shapes(FFN, 16, 32)
    params = eqx.filter(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    optimizer = OPTIMIZERS[name]()
    # The shardings of the whole model will do: leaves that are not trained are left out.
    planned = like(optimizer, params, shardings(model, made))
    state = jax.eval_shape(optimizer.init, params)
    assert jax.tree.structure(state) == jax.tree.structure(planned)
    placed = list(zip(jax.tree.leaves(state), jax.tree.leaves(planned), strict=True))
    large = [sharding.spec for leaf, sharding in placed if leaf.shape == (16, 32)]
    count = {"adam": 2, "momentum": 1, "decay": 2, "masked": 2, "adafactor": 0}[name]
    assert large == [P("fsdp", "model")] * count
    assert all(sharding.spec == P() for leaf, sharding in placed if leaf.ndim < 2)


@pytest.mark.devices(8)
def test_jit_alone_puts_the_moments_on_one_device_and_like_does_not():
    made = mesh("fsdp=4,model=2")
    params = eqx.filter(create(make, jax.random.key(0), made), eqx.is_array)
    optimizer = optax.adam(1e-3)
    planned = like(optimizer, params, shardings(params, made))
    placed = jax.jit(optimizer.init, out_shardings=planned)(params)
    assert placed[0].mu.up.sharding.spec == P("fsdp", "model")
    assert placed[0].count.sharding.is_fully_replicated
    # If this fails, JAX has mended the trap that `like` is for.
    assert isinstance(jax.jit(optimizer.init)(params)[0].mu.up.sharding, SingleDeviceSharding)


def test_describe_counts_bytes_without_any_device():
    model = shapes(FFN, 8, 16)
    frame = describe(model, shardings(model, plan("fsdp=2,model=4")))
    assert frame.rows() == [
        ("FFN.up", "(8, 16)", "float32", "P('fsdp', 'model')", 512, 64),
        ("FFN.down", "(16, 8)", "float32", "P('model', 'fsdp')", 512, 64),
        ("FFN.bias", "(16,)", "float32", "P()", 64, 64),
    ]


@pytest.mark.devices(8)
def test_text_gives_the_axes_in_its_order_with_automatic_axes():
    for text in ("", "auto", " data = -1 "):
        assert dict(mesh(text).shape) == {"data": 8}
    made = mesh("data=-1,fsdp=2,model=2")
    assert made.axis_names == ("data", "fsdp", "model")
    assert made.devices.shape == (2, 2, 2)
    assert made.axis_types == (AxisType.Auto,) * 3
    assert mesh("data=8", explicit=True).axis_types == (AxisType.Explicit,)
    ids = np.vectorize(lambda device: device.id)(made.devices)
    assert (ids == np.arange(8).reshape(2, 2, 2)).all()  # the last axis is the fastest
    assert dict(mesh("data=2,model=2", jax.devices()[:4]).shape) == {"data": 2, "model": 2}


@pytest.mark.devices(8)
def test_a_hybrid_mesh_wants_as_many_hosts_as_it_says():
    assert dict(mesh("data=1x4,model=2").shape) == {"data": 4, "model": 2}
    with pytest.raises(Error) as caught:
        mesh("data=2x2,model=2")
    assert str(caught.value).startswith("mesh data=2x2,model=2 does not lie as the devices do (")
    assert str(caught.value).endswith("); try data=4,model=2")


@pytest.mark.devices(8)
def test_helpers_place_whole_copies_and_count_local_rows():
    made = mesh("data=4,model=2")
    x = jax.device_put(jnp.arange(3.0), replicated(made))
    assert len(x.addressable_shards) == 8
    assert all(shard.data.shape == (3,) for shard in x.addressable_shards)
    assert local_batch(16, made) == 16
    assert local_batch(16, made, ("data", "model")) == 16
    assert local_batch(16, made, "elsewhere") == 16
    with pytest.raises(ValueError, match="partitioned 4 times, but the dimension size is 10"):
        local_batch(10, made)


@pytest.mark.devices(8)
def test_simulate_again_is_refused_only_for_another_count():
    assert jax.device_count() == 8
    simulate(8)
    with pytest.raises(Error, match=r"cannot simulate 4 devices: JAX has started with 8 cpu"):
        simulate(4)
    with pytest.raises(Error, match="give 1 or more"):
        simulate(0)


@pytest.mark.devices(8)
def test_200_sharded_steps_survive_with_one_in_flight():
    # Measured: without the block, XLA aborts at its 40 s rendezvous limit on 2 cores, with
    # asynchronous dispatch on and off alike.
    assert jax.config.read("jax_cpu_enable_async_dispatch") is False
    made = mesh("data=4,model=2")
    across = NamedSharding(made, P("data", "model"))
    turned = NamedSharding(made, P("model", "data"))

    @jax.jit
    def step(w):
        product = jax.lax.with_sharding_constraint(w @ w.T, turned)
        return jax.lax.with_sharding_constraint(product / jnp.abs(product).sum(), across)

    w = jax.device_put(jnp.eye(64), across)
    for _ in range(200):
        w = step(w).block_until_ready()
    np.testing.assert_allclose(w, np.eye(64) / 64, rtol=1e-6)


@pytest.mark.devices(8)
@pytest.mark.parametrize("axes", ["data=8", "data=4,model=2", "fsdp=2,data=4", "model=8"])
def test_each_device_holds_its_rows_of_the_global_batch(axes):
    grid = mesh(axes)
    source = arrays(row=np.arange(64), x=np.arange(64 * 3).reshape(64, 3))
    alone = Batches(source, 16, seed=2)
    with place(Batches(source, 16, seed=2), grid) as placed:
        # The fifth batch is the first of the second epoch.
        *_, (here, expected) = itertools.islice(zip(placed, alone, strict=False), 5)
    for name, column in expected.items():
        np.testing.assert_array_equal(here[name], column)
        for shard in here[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, column[shard.index])
    shards = 16 // here["x"].addressable_shards[0].data.shape[0]
    assert shards == {"data=8": 8, "data=4,model=2": 4, "fsdp=2,data=4": 8, "model=8": 1}[axes]


@pytest.mark.devices(8)
def test_a_batch_that_does_not_divide_among_the_devices_is_refused():
    with pytest.raises(Error, match="batch=12 is not divisible by data=8"):
        place(Batches(arrays(x=np.arange(64)), 12), mesh("data=8"))


@pytest.mark.devices(8)
def test_each_device_reads_its_own_shard_only(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    q = np.arange(3 * 4 * 2, dtype="f").reshape(3, 4, 2)
    save_weights({str(i): q[i] for i in range(3)}, path)
    made = mesh("fsdp=2,model=4")
    sharding = NamedSharding(made, P(None, "fsdp", "model"))
    like = {"q": jax.ShapeDtypeStruct((3, 2, 4), jnp.bfloat16, sharding=sharding)}
    seen = []
    real = jax.make_array_from_callback

    def watched(shape, sharding, read):
        return real(shape, sharding, lambda index: seen.append(read(index).shape) or read(index))

    monkeypatch.setattr(jax, "make_array_from_callback", watched)
    loaded = load_weights(path, like, {"q": "*"}, transpose=["q"])["q"]
    assert seen == [(3, 1, 1)] * 8
    assert (loaded.sharding, loaded.dtype) == (sharding, jnp.bfloat16)
    np.testing.assert_array_equal(loaded, q.swapaxes(1, 2))


@pytest.mark.devices(8)
def test_a_sharded_tree_is_gathered_and_comes_back_onto_another_mesh(tmp_path):
    x = jnp.arange(64.0).reshape(8, 8).astype(jnp.bfloat16)
    sharding = NamedSharding(mesh("fsdp=4,model=2"), P("fsdp", "model"))
    path = tmp_path / "w.safetensors"
    save_weights({"x": jax.device_put(x, sharding), "n": jnp.float32(3)}, path)
    np.testing.assert_array_equal(load_file(path)["x"], x)
    turned = NamedSharding(mesh("fsdp=2,model=4"), P("model", "fsdp"))
    like = {"x": jax.device_put(jnp.zeros_like(x), turned), "n": jnp.float32(0)}
    loaded = load_weights(path, like)
    assert loaded["x"].sharding == turned
    np.testing.assert_array_equal(loaded["x"], x)
    assert (loaded["x"].dtype, loaded["n"]) == (jnp.bfloat16, 3)


@pytest.mark.devices(8)
def test_a_state_moves_between_meshes_and_onto_one_device(tmp_path):
    first, second = mesh("data=8"), mesh("data=2,model=4")
    w = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    state = {
        "w": jax.device_put(w, NamedSharding(first, P("data"))),
        "key": jax.device_put(jax.random.key(5), NamedSharding(first, P())),
        "step": 3,
    }

    def shaped(grid, spec):
        key = jax.eval_shape(lambda: jax.random.key(0))
        whole = NamedSharding(grid, P())
        return {
            "w": jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=NamedSharding(grid, spec)),
            "key": jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole),
            "step": 0,
        }

    likes = [
        shaped(second, P("model", "data")),
        shaped(mesh("data=1", devices=jax.devices()[:1]), P()),
        shaped(mesh("data=2", devices=jax.devices()[4:6]), P(None, "data")),
    ]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
        for like in likes:
            restored, _ = checkpoints.restore(like)
            assert restored["w"].sharding == like["w"].sharding
            assert restored["key"].sharding.is_equivalent_to(like["key"].sharding, 0)
            np.testing.assert_array_equal(restored["w"], w)
            assert restored["key"] == jax.random.key(5)
            assert restored["step"] == 3
