"""What a layer does and no more: operations, metrics and losses at their known ends."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core import experts
from chapbook.core.errors import Error
from chapbook.core.experts.grouped import back_end

TOKENS, EMBED, HIDDEN, COUNT, K = 2048, 4, 8, 16, 2


def work(function, *arguments):
    """Returns the operations of all matrix products that a function really does.

    Loops whose number of steps depends on data are gone through step by step.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    return _run(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))[1]


def _run(jaxpr, consts, arguments):
    values, total = {}, 0
    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(variable):
        return variable.val if hasattr(variable, "val") else values[variable]

    for equation in jaxpr.eqns:
        given, options = [read(v) for v in equation.invars], equation.params
        name, found = equation.primitive.name, None
        inner = options.get("jaxpr") or options.get("call_jaxpr") or options.get("fun_jaxpr")
        if name == "dot_general":
            (contracted, _), _ = options["dimension_numbers"]
            depth = np.prod([given[0].shape[axis] for axis in contracted])
            total += 2 * int(np.prod(equation.outvars[0].aval.shape) * depth)
        elif name == "while":
            found, done = _while(given, options)
            total += done
        elif name == "scan":
            found, done = _scan(given, options)
            total += done
        elif name == "cond":
            body = options["branches"][int(given[0])]
            found, done = _run(body.jaxpr, body.consts, given[1:])
            total += done
        elif inner is not None:
            closed = hasattr(inner, "consts")
            body, consts = (inner.jaxpr, inner.consts) if closed else (inner, [])
            found, done = _run(body, consts, given)
            total += done
        if found is None:
            found = equation.primitive.bind(*given, **options)
            found = found if equation.primitive.multiple_results else [found]
        values.update(zip(equation.outvars, found, strict=True))
    return [read(v) for v in jaxpr.outvars], total


def _while(given, options):
    test, body = options["cond_jaxpr"], options["body_jaxpr"]
    first, second = options["cond_nconsts"], options["cond_nconsts"] + options["body_nconsts"]
    carry, total = given[second:], 0
    while _run(test.jaxpr, test.consts, [*given[:first], *carry])[0][0]:
        carry, done = _run(body.jaxpr, body.consts, [*given[first:second], *carry])
        total += done
    return carry, total


def _scan(given, options):
    body, constant = options["jaxpr"], options["num_consts"]
    after = constant + options["num_carry"]
    carry, rows, total = given[constant:after], [], 0
    for i in range(options["length"]):
        each = [x[i] for x in given[after:]]
        found, done = _run(body.jaxpr, body.consts, [*given[:constant], *carry, *each])
        carry, total = found[: options["num_carry"]], total + done
        rows.append(found[options["num_carry"] :])
    return [*carry, *(jnp.stack(each) for each in zip(*rows, strict=True))], total


def layer(count=COUNT, tokens=TOKENS, embed=EMBED, hidden=HIDDEN):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (tokens, embed))
    bank = experts.Experts(count, embed, hidden, key=keys[1])
    gates = jax.nn.softmax(jax.random.normal(keys[2], (tokens, count)))
    return x, bank, experts.top_k(gates, K)


@pytest.mark.parametrize(("how", "capacity"), [("scatter", 320), ("grouped", None)])
def test_no_path_does_half_as_much_again_as_the_choices_need(how, capacity):
    x, bank, chosen = layer()
    needed = 2 * 2 * K * TOKENS * EMBED * HIDDEN

    def forward(x, bank):
        return bank(x, chosen, how=how, capacity=capacity)[0]

    def gradients(x, bank):
        return jax.grad(lambda x, bank: jnp.sum(forward(x, bank) ** 2), (0, 1))(x, bank)

    assert needed <= work(forward, x, bank) <= 1.5 * needed
    assert 3 * needed <= work(gradients, x, bank) <= 1.5 * 3 * needed


def test_an_expert_without_tokens_costs_nothing():
    x, bank, _ = layer()
    chosen = experts.fixed(jnp.full((TOKENS, 1), 3), jnp.ones((TOKENS, 1)), COUNT)
    assert work(lambda x: bank(x, chosen)[0], x) == 2 * 2 * TOKENS * EMBED * HIDDEN


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA does on CPUs")
def test_a_token_alone_costs_one_row_of_each_of_its_experts():
    x, bank, _ = layer()
    one = experts.fixed(jnp.asarray([[3, 7]]), jnp.ones((1, K)), COUNT)
    assert work(lambda x: bank(x, one)[0], x[:1]) == 2 * 2 * K * EMBED * HIDDEN


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA does on CPUs")
def test_the_back_end_of_cpus_is_not_the_one_that_multiplies_all_by_all(monkeypatch):
    monkeypatch.delenv("CHAPBOOK_GROUPED", raising=False)
    assert back_end() == "blocked"
    monkeypatch.setenv("CHAPBOOK_GROUPED", "ragged")
    x, bank, chosen = layer(tokens=256, embed=32, hidden=64)
    compiled = jax.jit(lambda x: bank(x, chosen)[0]).lower(x).compile()
    done = dict(compiled.cost_analysis() or {})["flops"]
    assert done > 0.9 * COUNT * 2 * 2 * K * 256 * 32 * 64


@pytest.mark.slow
def test_twice_the_experts_cost_little_more_time():
    def best(count):
        x, bank, chosen = layer(count, 2048, 128, 256)
        run = jax.jit(lambda x, bank: bank(x, chosen)[0])
        run(x, bank).block_until_ready()
        times = []
        for _ in range(10):
            start = time.perf_counter()
            run(x, bank).block_until_ready()
            times.append(time.perf_counter() - start)
        return min(times)

    assert best(32) < 1.3 * best(16)


def test_a_balanced_router_has_the_losses_of_balance_and_a_collapsed_one_the_largest():
    # Token t prefers expert t mod 4.
    logits = jnp.asarray(np.tile(np.eye(4, dtype="f") * 3, (5, 1)))
    balanced = jax.nn.softmax(logits)
    assert experts.importance_loss(balanced) == pytest.approx(0, abs=1e-6)
    assert experts.load_loss(logits, logits, 1, 0.25) == pytest.approx(0, abs=1e-6)
    assert experts.gshard_loss(balanced) == pytest.approx(1)
    collapsed = jnp.tile(jnp.asarray([0.0, 1, 0, 0]), (20, 1))
    assert experts.importance_loss(collapsed) == pytest.approx(3)
    assert experts.gshard_loss(collapsed) == experts.switch_loss(collapsed) == pytest.approx(4)


def losses_by_hand(logits, noisy, k, sigma):
    """The losses of one group, token by token in float64, from the papers."""
    from scipy.stats import norm

    logits, noisy = logits.astype(np.float64), noisy.astype(np.float64)
    gates = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    importance = gates.sum(0)
    threshold = np.sort(noisy, axis=1)[:, -k]
    load = np.mean(
        [1 - norm.cdf((t - row) / sigma) for t, row in zip(threshold, logits, strict=True)], 0
    )
    share = np.bincount(gates.argmax(1), minlength=gates.shape[1]) / len(gates)
    return (
        (importance.std() / importance.mean()) ** 2,
        (load.std() / load.mean()) ** 2,
        gates.shape[1] * np.sum(share * gates.mean(0)),
        np.mean(np.log(np.exp(logits).sum(1)) ** 2),
    )


def losses(logits, noisy, valid=None):
    gates = jax.nn.softmax(logits)
    return (
        experts.importance_loss(gates, valid),
        experts.load_loss(logits, noisy, 2, 0.2, valid),
        experts.gshard_loss(gates, valid),
        experts.z_loss(logits, valid),
    )


def test_losses_are_those_of_the_papers_and_do_not_see_padding():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(2, 14, 5)).astype("f")
    noisy = logits + 0.2 * draw.normal(size=logits.shape).astype("f")
    wanted = np.mean(
        [losses_by_hand(a, b, 2, 0.2) for a, b in zip(logits, noisy, strict=True)], axis=0
    )
    np.testing.assert_allclose(jax.jit(losses)(logits, noisy), wanted, rtol=2e-5)
    padded = np.full((2, 3, 5), np.nan, "f")
    valid = jnp.arange(17) < 14
    longer = [jnp.asarray(np.concatenate([x, padded], axis=1)) for x in (logits, noisy)]
    found = losses(longer[0], longer[1], jnp.stack([valid, valid]))
    np.testing.assert_allclose(found, wanted, rtol=2e-5)
    # Nor a third group that is nothing else.
    more = [jnp.concatenate([x, x[:1]]) for x in longer]
    found = losses(more[0], more[1], jnp.stack([valid, valid, valid & False]))
    np.testing.assert_allclose(found, wanted, rtol=2e-5)
    # A token of weight 2 is that token twice.
    twice = [jnp.asarray(np.concatenate([x, x[:, :3]], axis=1)) for x in (logits, noisy)]
    weight = jnp.where(jnp.arange(14) < 3, 2.0, 1.0) * jnp.ones((2, 1))
    weighed = losses(jnp.asarray(logits), jnp.asarray(noisy), weight)
    np.testing.assert_allclose(weighed, losses(twice[0], twice[1]), rtol=1e-5)


def test_gradients_of_losses_are_those_of_finite_differences():
    with jax.enable_x64(True):
        draw = np.random.default_rng(1)
        logits = jnp.asarray(draw.normal(size=(9, 4)))
        noise = jnp.asarray(0.2 * draw.normal(size=(9, 4)))
        valid, direction = jnp.arange(9) < 7, jnp.asarray(draw.normal(size=(9, 4)))
        run = jax.jit(lambda logits: jnp.stack(losses(logits, logits + noise, valid)))
        _, slopes = jax.jvp(run, (logits,), (direction,))
        step = 1e-6
        wanted = (run(logits + step * direction) - run(logits - step * direction)) / (2 * step)
        np.testing.assert_allclose(slopes, wanted, rtol=1e-6, atol=1e-9)
        assert np.isfinite(
            jax.jacobian(lambda x: jnp.stack(losses(x, x, valid & False)))(logits)
        ).all()


def test_the_load_loss_refuses_a_router_without_noise():
    logits = jnp.ones((3, 4))
    with pytest.raises(Error, match="the load loss needs noise, and sigma is 0") as caught:
        jax.jit(functools.partial(experts.load_loss, k=2, sigma=0.0))(logits, logits)
    assert caught.value.hint == "leave it out where the router has none, as at inference"


def test_metrics_tell_rates_and_add_up():
    gates = jnp.asarray([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.2, 0.2, 0.6]])
    assignment = experts.top_k(gates, 2, valid=jnp.asarray([True, True, True, False]))
    told = experts.metrics(assignment, experts.plan(assignment, 2))
    np.testing.assert_allclose(told.load, [2, 2, 1])
    np.testing.assert_allclose(told.demand, [3, 2, 1])
    np.testing.assert_allclose(told.importance, [1.8, 0.6, 0.6], rtol=1e-6)
    np.testing.assert_allclose(told.dropped_fraction, [1 / 3, 0])
    assert told.unserved_fraction == 0
    assert told.max_over_mean == pytest.approx(2 / (5 / 3))
    assert told.coefficient_of_variation == pytest.approx(np.std([2, 2, 1]) / (5 / 3))
    real = np.asarray(gates[:3])
    assert told.entropy == pytest.approx(-(real * np.log(real)).sum() / 3, rel=1e-6)
    assert told.largest_gate == pytest.approx(0.6)
    assert told.summary()["dropped_1"] == pytest.approx(1 / 3)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(told))
    both = jax.tree.map(jnp.add, told, told)
    np.testing.assert_allclose(both.entropy, told.entropy, rtol=1e-6)
    np.testing.assert_allclose(both.dropped_fraction, told.dropped_fraction)
