"""Experts spread over a mesh give what one device gives, with the exchanges they should need."""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from chapbook.core import create, experts, mesh, use
from chapbook.core.errors import Error
from chapbook.core.sharding import RULES

TOKENS, EMBED, HIDDEN, COUNT = 64, 8, 16, 8
FORMS = {"capacity": {"capacity": 3}, "dropless": {"capacity": None}}


@pytest.fixture(autouse=True)
def one_length_of_blocks(monkeypatch):
    """Compiles less; tests of the paths go through all lengths."""
    monkeypatch.setattr(sys.modules["chapbook.core.experts.grouped"], "BLOCKS", {"cpu": (16,)})


def make(key):
    return experts.Experts(COUNT, EMBED, HIDDEN, bias=True, key=key)


def inputs():
    x = np.sin(np.arange(TOKENS * EMBED, dtype="f") ** 1.5).reshape(TOKENS, EMBED)
    router = np.cos(np.arange(EMBED * COUNT, dtype="f") ** 1.3).reshape(EMBED, COUNT)
    return jnp.asarray(x), jnp.asarray(router), make(jax.random.key(0))


def loss(x, router, bank, capacity, num_groups=8, **options):
    valid = jnp.arange(len(x)) % 11 > 0
    gates = jax.nn.softmax(experts.router_logits(x, router, valid))
    chosen = experts.top_k(gates, 2, normalize="after", valid=valid)
    options = {"priority": "batch", "num_groups": num_groups, **options}
    y, told = bank(x, chosen, capacity=capacity, **options)
    return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), (y, told)


@functools.cache
def on_one_device(form):
    gradients = jax.value_and_grad(functools.partial(loss, **FORMS[form]), (0, 1, 2), has_aux=True)
    return jax.tree.map(np.asarray, jax.jit(gradients)(*inputs()))


def on(made, rules=RULES, **options):
    """Returns values and gradients on a mesh, and the compiled program."""
    gradients = jax.value_and_grad(functools.partial(loss, **options), (0, 1, 2), has_aux=True)
    return compiled_on(made, gradients, rules)


def compiled_on(made, function, rules=RULES):
    x, router, _ = inputs()
    bank = create(make, jax.random.key(0), made, rules)
    with use(made, rules):
        compiled = jax.jit(function).lower(x, router, bank).compile()
    return compiled(*jax.device_put((x, router, bank), compiled.input_shardings[0])), compiled


def assert_near(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.devices(8)
@pytest.mark.parametrize(
    ("text", "devices", "form"),
    [
        ("expert=1", 1, "capacity"),
        ("expert=2", 2, "dropless"),
        ("expert=8", 8, "dropless"),
        ("data=2,expert=2,model=2", 8, "capacity"),
        ("data=2,fsdp=2,model=2", 8, "dropless"),
    ],
)
def test_any_mesh_gives_what_one_device_gives(text, devices, form):
    found, _ = on(mesh(text, jax.devices()[:devices]), **FORMS[form])
    assert_near(found, on_one_device(form))
    assert (found[0][1][1].dropped.sum() > 0) == (form == "capacity")


@pytest.mark.devices(8)
def test_experts_may_share_the_axis_of_the_data():
    found, compiled = on(mesh("data=4,fsdp=2"), {**RULES, "expert": "data"}, capacity=3)
    assert_near(found, on_one_device("capacity"))
    assert "all-to-all" in str(compiled.as_text())


def sizes(text, operation):
    """Returns the bytes of what each such instruction of a program gives a device."""
    found = re.findall(rf"= \(?((?:f32|s32)\[[\d,]*\][^=]*?) {operation}(?:-start)?\(", text)
    shapes = [re.findall(r"(?:f32|s32)\[([\d,]*)\]", each) for each in found]
    return [
        4 * sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in each)
        for each in shapes
    ]


@pytest.mark.devices(8)
def test_buffers_travel_twice_and_weights_never():
    made = mesh("expert=4", jax.devices()[:4])
    _, forward = compiled_on(made, lambda *inputs: loss(*inputs, capacity=3)[0])
    found, both = on(made, capacity=3)
    assert_near(found, on_one_device("capacity"))
    groups = 8 // 4
    buffers = COUNT * groups * 3 * EMBED * 4  # bytes, of which a quarter stays on the device
    assert sizes(forward.as_text(), "all-to-all") == [buffers] * 2
    assert sizes(both.as_text(), "all-to-all") == [buffers] * 4
    weights = COUNT * EMBED * HIDDEN * 4
    assert all(each < weights for each in sizes(both.as_text(), "all-gather"))


@pytest.mark.devices(8)
def test_inside_a_shard_map_of_ones_own():
    made, (x, router, bank) = mesh("data=2,expert=4"), inputs()
    chosen = experts.top_k(jax.nn.softmax(x @ router), 2)
    both = ("data", "expert")

    def total(x, bank):
        def local(x, chosen, bank):
            y, told = experts.moe(x, chosen, experts.Experts.apply, bank, mesh_axis="expert")
            return y, told.reduce(both)

        split = jax.shard_map(
            local, mesh=made, in_specs=(P(both), P(both), P("expert")), out_specs=(P(both), P())
        )
        y, told = split(x, chosen, bank)
        return jnp.sum(jnp.sin(y)), told

    def plain(x, bank):
        y, told = bank(x, chosen)
        return jnp.sum(jnp.sin(y)), told

    gradients = functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    assert_near(jax.jit(gradients(total))(x, bank), jax.jit(gradients(plain))(x, bank))


@pytest.mark.devices(8)
def test_little_room_drops_what_overflows_and_counts_it():
    def layer(x, router, bank):
        # All tokens want experts 0 and 1: a device has 8 of them, and room for 2 of their 16
        # choices at each other device.
        return loss(x, 0 * router, bank, capacity=None, overflow_factor=1.0)[1]

    (y, told), _ = compiled_on(mesh("expert=8"), layer)
    np.testing.assert_array_equal(told.load, [16, 16, 0, 0, 0, 0, 0, 0])
    assert told.dropped.sum() == told.chosen.sum() - 32
    served = (np.asarray(y) != 0).any(1)
    assert served.sum() == told.tokens - told.unserved == 16


@pytest.mark.devices(8)
def test_tokens_that_do_not_divide_are_padded_where_nothing_is_dropped():
    made, (x, router, bank) = mesh("data=2,expert=4"), inputs()
    wanted = jax.jit(functools.partial(loss, capacity=None))(x[:13], router, bank)
    spread = create(make, jax.random.key(0), made)
    with use(made):
        found = jax.jit(functools.partial(loss, capacity=None))(x[:13], router, spread)
    assert_near(found, wanted)


@pytest.mark.devices(8)
def test_rows_may_travel_in_bfloat16():
    light = functools.partial(loss, capacity=3, exchange_dtype=jnp.bfloat16)
    (_, (y, _)), _ = compiled_on(mesh("expert=8"), light)
    wanted = on_one_device("capacity")[0][1][0]
    np.testing.assert_allclose(y, wanted, atol=0.02 * np.abs(wanted).max())
    assert np.abs(np.asarray(y) - wanted).max() > 0


@pytest.mark.devices(8)
def test_what_does_not_divide_is_refused_with_the_numbers():
    made, (x, router, bank) = mesh("data=2,expert=4"), inputs()
    with use(made), pytest.raises(Error) as caught:
        jax.eval_shape(functools.partial(loss, capacity=3, num_groups=4), x, router, bank)
    assert str(caught.value) == (
        "num_groups=4 does not divide among the 8 devices of data=2,expert=4; "
        "each holds groups of its own"
    )
    six = experts.Experts(6, EMBED, HIDDEN, key=jax.random.key(0))
    with use(made), pytest.raises(Error, match="expert=6 is not divisible by expert=4"):
        jax.eval_shape(functools.partial(loss, capacity=None), x, router[:, :6], six)
    chosen = experts.fixed(jnp.zeros((TOKENS, 1), int), jnp.ones((TOKENS, 1)), 6)
    split = jax.shard_map(
        lambda x, chosen: experts.moe(
            x, chosen, experts.Experts.apply, six, mesh_axis="expert", capacity=4
        )[0],
        mesh=made,
        in_specs=P("expert"),
        out_specs=P("expert"),
    )
    with pytest.raises(Error, match="6 experts do not divide among the 4 devices of mesh axis"):
        jax.eval_shape(split, x, chosen)
