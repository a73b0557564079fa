"""The whole network: against NumPy, against neuralforecast, and what it must not look at."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.inputs import Group, Inputs, Layout, Windows
from chapbook.tft_forecast.network import TemporalFusionTransformer
from chapbook.tft_forecast.quantile_loss import quantile_loss

KEY = jax.random.key(0)
CONFIG = TFTConfig(encoder=5, horizon=3, hidden=4, heads=2, dropout=0.3, unknown_rate=0.1)
LAYOUT = Layout(
    static=Group(("size",), ("shop",), (4,)),
    observed=Group(("sales", "warmth"), ("state",), (3,)),
    known=Group(("price",), ("weekday", "holiday"), (8, 2)),
)
ALONE = Layout(Group(), Group(("sales",)), Group(("relative_step",)))
OPENINGS = {
    *("static_weights", "static_variables", "past_weights", "past_variables"),
    *("future_weights", "future_variables", "context_selection", "context_enrichment"),
    *("context_hidden", "context_cell", "local", "enrichment", "attention", "position_wise"),
    "final",
}


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def shaken(block, seed=1):
    rng = np.random.default_rng(seed)
    arrays, rest = eqx.partition(block, eqx.is_array)
    move = lambda p: jnp.asarray(np.array(p) + 0.3 * rng.normal(size=p.shape), p.dtype)  # noqa: E731
    return eqx.combine(jax.tree.map(move, arrays), rest)


def some_inputs(rng, group, shape, missing):
    categorical = [rng.integers(0, size, shape) for size in group.sizes]
    return Inputs(
        jnp.asarray(rng.normal(size=(*shape, len(group.real)))),
        jnp.asarray(np.stack(categorical, -1) if categorical else np.zeros((*shape, 0), int)),
        jnp.asarray(rng.random((*shape, len(group))) < missing),
    )


def some_windows(layout=LAYOUT, batch=2, missing=0.1, masked=0.2, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((batch, CONFIG.encoder + CONFIG.horizon)) >= masked
    mask[:, CONFIG.encoder :] = True
    return Windows(
        some_inputs(rng, layout.static, (batch,), missing),
        some_inputs(rng, layout.past, (batch, CONFIG.encoder), missing),
        some_inputs(rng, layout.known, (batch, CONFIG.horizon), missing),
        jnp.asarray(mask),
    )


# What is tested does not depend on how well the compiler optimises, but the time it takes does.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def compiled(rest, arrays, windows, key):
    return eqx.combine(arrays, rest)(windows, key=key)


def run(model, windows, key=None):
    arrays, rest = eqx.partition(model, eqx.is_array)
    return compiled(rest, arrays, windows, key)


@pytest.fixture(scope="module")
def model():
    return shaken(TemporalFusionTransformer(LAYOUT, CONFIG, key=KEY))


# The network in NumPy, written from the paper's equations.


def norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3) * p.scale + p.shift


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def glu(p, x):
    return sigmoid(x @ p.gate.weight + p.gate.bias) * (x @ p.value.weight + p.value.bias)


def grn(p, a, c=None):
    hidden = a @ p.first.weight + p.first.bias
    if c is not None:
        shift = c @ p.context.weight
        hidden = hidden + (shift[:, None] if a.ndim == 3 else shift)
    hidden = np.where(hidden > 0, hidden, np.expm1(np.minimum(hidden, 0)))
    skip = a if p.skip is None else a @ p.skip.weight + p.skip.bias
    return norm(p.norm, skip + glu(p.glu, hidden @ p.second.weight + p.second.bias))


def one_of(stack, number):
    return jax.tree.map(lambda p: p[number], stack.blocks)


def softmax(x):
    exps = np.exp(x - x.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


def select(p, vectors, c=None):
    weights = softmax(grn(p.weights, np.concatenate(vectors, -1), c))
    each = [grn(one_of(p.variables, j), vector) for j, vector in enumerate(vectors)]
    return sum(weights[..., j, None] * each[j] for j in range(len(each))), weights


def embed(weight, bias, tables, missing, inputs):
    """Returns the vectors, one array for each variable."""
    reals = [
        x[..., None] * w + b
        for x, w, b in zip(np.moveaxis(inputs.real, -1, 0), weight, bias, strict=True)
    ]
    rows = [t[i] for t, i in zip(tables, np.moveaxis(inputs.categorical, -1, 0), strict=True)]
    return [
        np.where(inputs.missing[..., j, None], missing[j], vector)
        for j, vector in enumerate(reals + rows)
    ]


def lstm(p, x, h, c):
    outputs = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ p.kernel + h @ p.recurrent + p.bias, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, 1), h, c


def attend(p, x, mask, horizon):
    """Computes all rows of the attention, as the published code does, and returns the last."""
    n, width = x.shape[1], p.value.weight.shape[1]
    allowed = np.tril(np.ones((n, n), bool)) & mask[:, None] | np.eye(n, dtype=bool)
    weights = []
    for query, key in zip(p.query.blocks.weight, p.key.blocks.weight, strict=True):
        scores = (x @ query) @ np.swapaxes(x @ key, 1, 2) / np.sqrt(width)
        weights.append(softmax(np.where(allowed, scores, -np.inf)))
    mean = np.mean(weights, 0)
    return (mean @ (x @ p.value.weight) @ p.output.weight)[:, -horizon:], mean[:, -horizon:]


def reference(model, windows):
    k, horizon = model.config.encoder, model.config.horizon
    p, windows = jax.tree.map(np.array, (model, windows))
    batch, width = len(windows.mask), model.config.hidden
    enriching = context = None
    h = c = np.zeros((batch, width))
    static = np.zeros((batch, 0))
    if len(LAYOUT.static) and p.static_embedding is not None:
        e = p.static_embedding
        tables = np.split(e.table, np.cumsum(model.layout.static.sizes)[:-1])
        selected, static = select(
            p.static_selection, embed(e.weight, e.bias, tables, e.missing, windows.static)
        )
        context, enriching, h, c = (
            grn(one_of(p.static_encoders.encoders, i), selected) for i in range(4)
        )
    e, group, known = p.embedding, model.layout.past, model.layout.known
    tables = np.split(e.table, np.cumsum(group.sizes)[:-1]) if group.sizes else []
    absent = windows.past.missing | ~windows.mask[:, :k, None]
    past = embed(e.weight, e.bias, tables, e.missing, windows.past._replace(missing=absent))
    place = {name: number for number, name in enumerate(group.names)}
    where = [place[name] for name in known.names]
    reals = where[: len(known.real)]
    future = embed(
        e.weight[reals],
        e.bias[reals],
        [tables[i - len(group.real)] for i in where[len(known.real) :]],
        e.missing[where],
        windows.future,
    )
    past, past_weights = select(p.past_selection, past, context)
    future, future_weights = select(p.future_selection, future, context)
    encoded, h, c = lstm(p.encoder, past, h, c)
    decoded, _, _ = lstm(p.decoder, future, h, c)
    sequence = np.concatenate([encoded, decoded], 1)
    selected = np.concatenate([past, future], 1)
    local = norm(p.local_skip.norm, selected + glu(p.local_skip.glu, sequence))
    enriched = grn(p.enrichment, local, enriching)
    attended, attention = attend(p.attention, enriched, windows.mask, horizon)
    gate = p.attention_skip
    fused = norm(gate.norm, enriched[:, -horizon:] + glu(gate.glu, attended))
    fused = grn(p.position_wise, fused)
    fused = norm(p.final_skip.norm, local[:, -horizon:] + glu(p.final_skip.glu, fused))
    quantiles = fused @ p.head.weight + p.head.bias
    shape = (batch, horizon, model.layout.targets, len(model.config.quantiles))
    return quantiles.reshape(shape), (static, past_weights, future_weights, attention)


@pytest.mark.parametrize(
    "layout",
    [
        dataclasses.replace(LAYOUT, targets=2),
        Layout(Group(), LAYOUT.observed, LAYOUT.known),
        ALONE,
    ],
    ids=["two targets", "no static", "one variable"],
)
def test_the_network_equals_its_equations(double, layout):
    model = shaken(TemporalFusionTransformer(layout, CONFIG, key=KEY))
    windows = some_windows(layout)
    found, told = run(model, windows)
    expected, weights = reference(model, windows)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    for one, other in zip(told[:4], weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)


def test_what_it_tells_adds_up(model):
    windows = some_windows()
    quantiles, told = run(model, windows)
    assert quantiles.shape == (2, 3, 1, 3)
    assert told.static.shape == (2, 2)
    assert told.past.shape == (2, 5, 6)
    assert told.future.shape == (2, 3, 3)
    assert told.attention.shape == (2, 3, 8)
    for weights in told[:4]:
        np.testing.assert_allclose(jnp.sum(weights, -1), np.ones(weights.shape[:-1]), rtol=1e-5)
    masked = np.broadcast_to(~np.array(windows.mask)[:, None], told.attention.shape)
    np.testing.assert_array_equal(np.array(told.attention)[masked], 0)
    assert np.all(np.triu(told.attention[:, :, 5:], 1) == 0)
    assert set(told.gates) == OPENINGS
    for opening in told.gates.values():
        assert opening.shape == (2,)
        assert np.all((opening > 0) & (opening < 1))


def test_one_variable_has_all_the_weight():
    model = TemporalFusionTransformer(ALONE, CONFIG, key=KEY)
    _, told = run(model, some_windows(ALONE))
    np.testing.assert_array_equal(told.future, np.ones((2, 3, 1)))
    assert told.static.shape == (2, 0)


@settings(max_examples=25, deadline=None)
@given(step=st.integers(0, 2), seed=st.integers(1, 2**16))
def test_what_is_known_later_does_not_move_earlier_steps(model, step, seed):
    windows, other = some_windows(), some_windows(seed=seed)
    late = lambda mine, its: jnp.concatenate([mine[:, : step + 1], its[:, step + 1 :]], 1)  # noqa: E731
    changed = windows._replace(future=Inputs(*map(late, windows.future, other.future)))
    (before, told), (after, untold) = run(model, windows), run(model, changed)
    upto = slice(0, step + 1)
    np.testing.assert_array_equal(before[:, upto], after[:, upto])
    np.testing.assert_array_equal(told.attention[:, upto], untold.attention[:, upto])
    np.testing.assert_array_equal(told.future[:, upto], untold.future[:, upto])
    if step < 2:
        assert not np.array_equal(before[:, step + 1], after[:, step + 1])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(1, 2**16))
def test_masked_past_steps_do_not_matter(model, seed):
    windows, other = some_windows(masked=0.5), some_windows(seed=seed)
    row = np.array(windows.mask)[:, :5, None]
    mixed = lambda mine, its: jnp.where(row, mine, its)  # noqa: E731
    changed = windows._replace(past=Inputs(*map(mixed, windows.past, other.past)))
    for before, after in zip(
        jax.tree.leaves(run(model, windows)), jax.tree.leaves(run(model, changed)), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_steps_can_be_masked_all(model):
    windows = some_windows()
    nothing = windows._replace(mask=jnp.zeros_like(windows.mask))
    quantiles, told = run(model, nothing)
    assert np.all(np.isfinite(quantiles))
    np.testing.assert_array_equal(told.attention[:, :, 5:], np.stack([np.eye(3)] * 2))


def test_training_is_random_by_its_key_and_inference_is_not(model):
    windows = some_windows()
    plain, again = run(model, windows)[0], run(model, windows)[0]
    one, same = run(model, windows, KEY)[0], run(model, windows, KEY)[0]
    other = run(model, windows, jax.random.key(1))[0]
    np.testing.assert_array_equal(plain, again)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(plain, one)
    assert not np.array_equal(one, other)


def test_windows_do_not_see_each_other(model):
    windows, other = some_windows(), some_windows(seed=7)
    mixed = jax.tree.map(lambda mine, its: jnp.stack([mine[0], its[1]]), windows, other)
    np.testing.assert_array_equal(run(model, windows)[0][0], run(model, mixed)[0][0])


def test_gradients_agree_with_finite_differences(double):
    model = shaken(TemporalFusionTransformer(LAYOUT, CONFIG, key=KEY))
    windows, target = some_windows(), jnp.asarray(np.random.default_rng(5).normal(size=(2, 3, 1)))
    weight = jnp.ones(target.shape, bool).at[0, 1].set(False)
    arrays, rest = eqx.partition(model, eqx.is_array)

    def loss(arrays):
        quantiles, _ = eqx.combine(arrays, rest)(windows, key=KEY)
        return quantile_loss(quantiles, target, CONFIG.quantiles, weight)

    arrays = jax.tree.map(np.array, arrays)
    value = jax.jit(loss, compiler_options=QUICKLY)
    gradients = jax.jit(jax.grad(loss), compiler_options=QUICKLY)(arrays)
    gradients = jax.tree.map(np.array, gradients)
    rng, step = np.random.default_rng(6), 1e-6  # a small one, since the loss has kinks
    for _ in range(5):
        way = jax.tree.map(lambda p: rng.normal(size=p.shape), arrays)
        there, back = (jax.tree.map(lambda p, d: p + s * step * d, arrays, way) for s in (1, -1))  # noqa: B023
        slope = sum(
            np.sum(g * d) for g, d in zip(*map(jax.tree.leaves, (gradients, way)), strict=True)
        )
        np.testing.assert_allclose(slope, (value(there) - value(back)) / (2 * step), rtol=1e-6)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.any(gradient != 0), jax.tree_util.keystr(path)


@pytest.mark.parametrize("part", ["attention", "lstm", "selection", "static_encoders", "gating"])
def test_each_part_can_be_taken_away(model, part):
    full, config = model, dataclasses.replace(CONFIG, **{part: False})
    model = TemporalFusionTransformer(LAYOUT, config, key=KEY)
    windows = some_windows()
    quantiles, told = run(model, windows)
    size = lambda model: sum(p.size for p in jax.tree.leaves(eqx.filter(model, eqx.is_array)))  # noqa: E731
    assert size(model) < size(full)
    assert np.all(np.isfinite(quantiles))
    if part == "attention":
        allowed = np.array(told.attention) > 0
        assert np.all(told.attention == allowed / allowed.sum(-1, keepdims=True))
        assert np.all(allowed[:, :, :5] == np.array(windows.mask)[:, None, :5])
        assert "attention" not in told.gates
    if part == "lstm":
        assert "local" not in told.gates
    if part == "selection":
        np.testing.assert_allclose(told.past, np.full((2, 5, 6), 1 / 6), rtol=1e-6)
    if part == "static_encoders":
        np.testing.assert_array_equal(told.static, np.zeros((2, 2)))
        other = windows._replace(static=some_windows(seed=9).static)
        np.testing.assert_array_equal(run(model, other)[0], quantiles)
    if part == "gating":
        assert all(np.all(opening == 1) for opening in told.gates.values())


def test_without_the_lstm_steps_are_told_apart_by_their_positions():
    config = dataclasses.replace(CONFIG, lstm=False, attention=False)
    model = TemporalFusionTransformer(ALONE, config, key=KEY)
    windows = some_windows(ALONE, missing=1.0)
    quantiles, _ = run(model, windows)
    assert not np.array_equal(quantiles[:, 0], quantiles[:, 1])


@pytest.mark.parametrize("layout", [LAYOUT, Layout(Group(), LAYOUT.observed, LAYOUT.known)])
def test_the_network_equals_the_blocks_of_neuralforecast(double, layout):
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("neuralforecast.models.tft")
    model = shaken(TemporalFusionTransformer(layout, CONFIG, key=KEY))
    windows, width = some_windows(layout, masked=0.0), CONFIG.hidden
    tensor = lambda array: torch.from_numpy(np.array(array))  # noqa: E731

    def set_linear(theirs, ours):
        theirs.weight.data = tensor(ours.weight).T
        if ours.bias is not None:
            theirs.bias.data = tensor(ours.bias)

    def set_norm(theirs, ours):
        theirs.weight.data, theirs.bias.data = tensor(ours.scale), tensor(ours.shift)

    def set_glu(theirs, ours):  # torch gates by the second half
        theirs.lin.weight.data = tensor(jnp.concatenate([ours.value.weight, ours.gate.weight], 1)).T
        theirs.lin.bias.data = tensor(jnp.concatenate([ours.value.bias, ours.gate.bias]))

    def set_grn(theirs, ours):
        set_linear(theirs.lin_a, ours.first)
        set_linear(theirs.lin_i, ours.second)
        if ours.context is not None:
            set_linear(theirs.lin_c, ours.context)
        if ours.skip is not None:
            set_linear(theirs.out_proj, ours.skip)
        set_glu(theirs.glu, ours.glu)
        set_norm(theirs.layer_norm.ln, ours.norm)

    def set_selection(theirs, ours):
        set_grn(theirs.joint_grn, ours.weights)
        for number, grn in enumerate(theirs.var_grns):
            set_grn(grn, one_of(ours.variables, number))

    def set_lstm(theirs, ours):
        theirs.weight_ih_l0.data = tensor(ours.kernel).T
        theirs.weight_hh_l0.data = tensor(ours.recurrent).T
        theirs.bias_ih_l0.data = tensor(ours.bias)
        theirs.bias_hh_l0.data.zero_()

    rates = {"dropout": 0.0, "grn_activation": "ELU"}
    temporal = peer.TemporalCovariateEncoder(width, len(layout.past), len(layout.known), **rates)
    decoder = peer.TemporalFusionDecoder(CONFIG.heads, width, 8, 5, 0.0, **rates)
    head = torch.nn.Linear(width, len(CONFIG.quantiles))
    temporal, decoder, head = temporal.double(), decoder.double(), head.double()
    decoder.attention._mask = decoder.attention._mask.double()
    set_selection(temporal.history_vsn, model.past_selection)
    set_selection(temporal.future_vsn, model.future_selection)
    set_lstm(temporal.history_encoder, model.encoder)
    set_lstm(temporal.future_encoder, model.decoder)
    set_glu(temporal.input_gate, model.local_skip.glu)
    set_norm(temporal.input_gate_ln, model.local_skip.norm)
    set_grn(decoder.enrichment_grn, model.enrichment)
    attention = model.attention
    heads = [attention.query.blocks.weight, attention.key.blocks.weight]
    flat = [jnp.moveaxis(part, 0, 1).reshape(width, width) for part in heads]
    together = jnp.concatenate([*flat, attention.value.weight], 1)
    decoder.attention.qkv_linears.weight.data = tensor(together).T
    set_linear(decoder.attention.out_proj, attention.output)
    set_glu(decoder.attention_gate, model.attention_skip.glu)
    set_norm(decoder.attention_ln, model.attention_skip.norm)
    set_grn(decoder.positionwise_grn, model.position_wise)
    set_glu(decoder.decoder_gate, model.final_skip.glu)
    set_norm(decoder.decoder_ln, model.final_skip.norm)
    set_linear(head, model.head)

    vectors = lambda embedding, inputs: tensor(jnp.moveaxis(embedding(inputs), 0, -2))  # noqa: E731
    zeros = torch.zeros(2, width, dtype=torch.float64)
    cs, ce, ch, cc = zeros, zeros, zeros[None], zeros[None]
    if model.static_embedding is not None:
        static = peer.StaticCovariateEncoder(width, len(layout.static), **rates).double()
        set_selection(static.vsn, model.static_selection)
        for number, grn in enumerate(static.context_grns):
            set_grn(grn, one_of(model.static_encoders.encoders, number))
        cs, ce, ch, cc, _ = static(vectors(model.static_embedding, windows.static))
    else:  # theirs has maps of contexts nevertheless
        temporal.history_vsn.joint_grn.lin_c.weight.data.zero_()
        temporal.future_vsn.joint_grn.lin_c.weight.data.zero_()
        decoder.enrichment_grn.lin_c.weight.data.zero_()
    past, future = (
        vectors(model.embedding, windows.past),
        vectors(model.embedding, windows.future),
    )
    with torch.no_grad():
        features, past_weights, future_weights = temporal(past, future, cs, ch, cc)
        fused, weights = decoder(features, ce)
        expected = head(fused)
    found, told = run(model, windows)
    np.testing.assert_allclose(found[:, :, 0], expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(told.past, past_weights, rtol=0, atol=1e-9)
    np.testing.assert_allclose(told.future, future_weights, rtol=0, atol=1e-9)
    np.testing.assert_allclose(told.attention, weights.mean(1)[:, 5:], rtol=0, atol=1e-9)
