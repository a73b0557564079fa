"""Assignments, capacities and plans, against loops over tokens written from the papers."""

import functools
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chapbook.core import experts
from chapbook.core.errors import Error

MODULE = sys.modules["chapbook.core.experts.plan"]  # the package has a function of this name


def draw(seed, tokens=24, count=5, scale=1.0):
    return np.random.default_rng(seed).normal(size=(tokens, count)).astype("f") * scale


def softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def by_hand(expert, valid, count, places, order):
    """Returns positions and what is kept: first choices of all tokens, then second ones, ..."""
    filled = [0] * count
    position, kept = np.zeros_like(expert), np.zeros(expert.shape, bool)
    for rank in range(expert.shape[1]):
        for token in order:
            e = expert[token, rank]
            if valid[token] and e < count:
                position[token, rank] = filled[e]
                kept[token, rank] = filled[e] < places
                filled[e] += 1
    return position, kept


def gshard(logits, valid, places, legacy, cap=0.0):
    """Follows `top2_gating_on_logits` of Praxis for one group, with its masks and sums."""
    tokens, count = logits.shape
    logits = cap * np.tanh(logits / cap) if cap else logits
    raw, real = softmax(logits), valid.astype("f")
    eye = np.eye(count, dtype="f")
    index_1 = raw.argmax(-1)
    mask_1 = eye[index_1] * real[:, None]
    gate_1 = (raw * mask_1).sum(-1)
    others = raw * (1 - mask_1)
    index_2 = others.argmax(-1)
    mask_2 = eye[index_2] * real[:, None]
    gate_2 = (others * mask_2).sum(-1)
    if legacy:
        total = gate_1 + gate_2 + 1e-9
        gate_1, gate_2 = gate_1 / total, gate_2 / total
    share = 1.0 if legacy else real.mean() + 1e-6
    loss = np.mean(mask_1.mean(0) / share * (raw * real[:, None]).mean(0) / share) * count**2
    before = np.cumsum(mask_1, 0) - mask_1
    mask_1 = mask_1 * (before < places)
    after = np.cumsum(mask_2, 0) - mask_2 + mask_1.sum(0)  # first choices that were KEPT
    mask_2 = mask_2 * (after < places)
    gate_1, gate_2 = gate_1 * mask_1.sum(-1), gate_2 * mask_2.sum(-1)
    if not legacy:
        total = gate_1 + gate_2
        total = np.where(total > 0, total, 1)
        gate_1, gate_2 = gate_1 / total, gate_2 / total
    combine = np.zeros((tokens, count, places))
    both = ((index_1, gate_1, mask_1, before), (index_2, gate_2, mask_2, after))
    for index, gate, mask, place in both:
        for t in range(tokens):
            if mask[t].any():
                combine[t, index[t], int(place[t, index[t]])] += gate[t]
    return combine, loss


def table(plan):
    """Returns the combine weights as GShard writes them: [tokens, experts, places]."""
    tokens, choices = plan.kept.shape
    found = np.zeros((tokens, plan.assignment.num_experts, plan.capacity))
    for t in range(tokens):
        for k in range(choices):
            if plan.kept[t, k]:
                place = plan.assignment.expert[t, k], plan.position[t, k]
                found[t, place[0], place[1]] += plan.weight[t, k]
    return found


def test_capacity_is_a_rounded_share_of_the_choices():
    capacity = experts.capacity
    assert capacity(196, 8, 1, 0.1, multiple_of=1) == 3  # 2.45
    assert capacity(196, 8, 1, 0.1) == 4  # which makes the factor 0.163
    assert capacity(196, 8, 1, 0.1, rounding="round", multiple_of=1) == 2
    assert capacity(1024, 64, 1, 2.0, rounding="floor") == 32
    assert capacity(2048, 16, 2, 1.25) == 320
    assert capacity(1, 64, 1, 0.01, rounding="floor", multiple_of=1) == 1
    for factor, rounding in ((0.0, "ceil"), (-1.0, "ceil"), (float("nan"), "ceil"), (1.0, "up")):
        with pytest.raises(Error, match="a capacity needs a factor above 0"):
            capacity(196, 8, 1, factor, rounding=rounding)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    data=st.data(),
    choices=st.sampled_from([1, 3]),
    places=st.integers(1, 12),
    priority=st.sampled_from(["order", "batch", "array"]),
    counted=st.sampled_from([0, 64]),
)
def test_a_plan_is_that_of_a_loop_over_tokens(data, choices, places, priority, counted):
    count, tokens = 4, 11
    numbers = st.integers(0, 2**31)
    generator = np.random.default_rng(data.draw(numbers))
    expert = np.stack([generator.permutation(count + 1)[:choices] for _ in range(tokens)])
    # Few different weights, so that scores are equal often.
    weight = generator.integers(1, 4, expert.shape).astype("f") / 4
    valid = generator.random(tokens) < 0.8
    scores = generator.integers(0, 3, tokens).astype("f")
    assignment = experts.fixed(
        jnp.asarray(expert), jnp.asarray(weight), count, valid=jnp.asarray(valid)
    )
    order = np.arange(tokens)
    if priority != "order":
        by = scores if priority == "array" else np.where(valid, weight.max(1), 0)
        order = np.argsort(-by, kind="stable")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "COUNTED", counted)
        given_ = jnp.asarray(scores) if priority == "array" else priority
        found = experts.plan(assignment, places, priority=given_)
    position, kept = by_hand(expert, valid, count, places, order)
    np.testing.assert_array_equal(found.kept, kept)
    np.testing.assert_array_equal(np.asarray(found.position)[kept], position[kept])
    told = experts.metrics(assignment, found)
    wanted = valid[:, None] & (expert < count)
    for e in range(count):
        mine = np.sort(np.asarray(found.position)[kept & (expert == e)])
        np.testing.assert_array_equal(mine, np.arange(len(mine)))
        assert len(mine) == told.load[e] <= places
        assert told.demand[e] == (wanted & (expert == e)).sum()
    np.testing.assert_array_equal(told.chosen, wanted.sum(0))
    np.testing.assert_array_equal(told.dropped, (wanted & ~kept).sum(0))
    assert told.load.sum() + told.dropped.sum() == wanted.sum()
    assert told.unserved == (valid & ~kept.any(1)).sum()
    assert told.tokens == valid.sum()


def test_counting_and_sorting_give_the_same_positions_jitted_and_mapped():
    gates = jax.nn.softmax(draw(0, 60, 70).reshape(2, 30, 70))
    assignment = experts.top_k(gates, 3)
    group = jax.jit(jax.vmap(functools.partial(experts.plan, capacity=2, priority="batch")))
    by_sort = group(assignment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "COUNTED", 70)
        by_count = jax.vmap(functools.partial(experts.plan, capacity=2, priority="batch"))
        by_count = by_count(assignment)
    np.testing.assert_array_equal(by_sort.kept, by_count.kept)
    kept = np.asarray(by_sort.kept)
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(by_sort.position, by_count.position)


def test_batch_priority_keeps_the_highest_scored_first_choices_of_each_expert():
    gates = softmax(draw(1, 40, 4))
    places = 5
    found = experts.plan(experts.top_k(jnp.asarray(gates), 2), places, priority="batch")
    first, score = gates.argmax(1), gates.max(1)
    for e in range(4):
        mine = np.flatnonzero(first == e)
        best = mine[np.argsort(-score[mine], kind="stable")][:places]
        np.testing.assert_array_equal(
            np.flatnonzero(found.kept[:, 0] & (first == e)), np.sort(best)
        )


def test_with_room_for_all_nothing_is_dropped_whatever_the_priority():
    assignment = experts.top_k(jax.nn.softmax(draw(2)), 3)
    for priority in ("order", "batch"):
        assert experts.plan(assignment, 24, priority=priority).kept.all()
    assert experts.plan(assignment, None).kept.all()


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(("places", "padding"), [(2, 0), (4, 0), (4, 7), (24, 3)])
def test_top_2_gating_is_that_of_gshard(legacy, places, padding):
    logits = draw(3, scale=2.0)
    valid = np.arange(24) < 24 - padding
    combine, loss = gshard(logits, valid, places, legacy, cap=3.0)
    assignment = experts.top_2_gshard(
        jnp.asarray(logits),
        normalize="before" if legacy else "after",
        valid=jnp.asarray(valid),
        logit_cap=3.0,
    )
    found = experts.plan(assignment, places)
    np.testing.assert_allclose(table(found), combine, rtol=1e-6, atol=1e-7)
    ours = experts.gshard_loss(assignment.gates, jnp.asarray(valid))
    if legacy:  # padding counts in its denominators
        ours *= valid.mean() ** 2
    np.testing.assert_allclose(ours, loss, rtol=1e-5)


def test_the_dispatcher_of_vmoe_gives_the_same_slots_with_and_without_batch_priority():
    gates = softmax(draw(4))
    for priority in ("order", "batch"):
        # After `_get_top_experts_per_item_common`: positions count all first choices.
        expert = np.argsort(-gates, axis=1, kind="stable")[:, :2]
        weight = np.take_along_axis(gates, expert, 1)
        order = np.argsort(-weight[:, 0], kind="stable") if priority == "batch" else np.arange(24)
        one_hot = np.eye(5, dtype=int)[expert[order].T.ravel()]
        index = (np.cumsum(one_hot, 0) * one_hot - 1).reshape(2, 24, 5).swapaxes(0, 1).max(2)
        index = index[np.argsort(order)]
        wanted = np.zeros((24, 5, 6))
        for t, k in np.argwhere(index < 6):
            wanted[t, expert[t, k], index[t, k]] += weight[t, k]
        found = experts.plan(experts.top_k(jnp.asarray(gates), 2), 6, priority=priority)
        np.testing.assert_allclose(table(found), wanted, rtol=1e-6)
        assert not found.kept.all()


def test_the_second_expert_is_drawn_as_its_policy_says():
    logits = jnp.asarray(np.tile(np.array([2, 1, 0, -1], np.float32), (20_000, 1)))
    gates = softmax(np.array([2, 1, 0, -1], np.float32))
    sampled = experts.top_2_gshard(logits, policy="sampling", key=jax.random.key(0))
    assert (sampled.expert[:, 0] == 0).all()
    share = np.bincount(sampled.expert[:, 1], minlength=4) / 20_000
    np.testing.assert_allclose(share, np.r_[0, gates[1:] / gates[1:].sum()], atol=0.015)
    np.testing.assert_allclose(sampled.weight.sum(1), 1, rtol=1e-5)
    drawn = experts.top_2_gshard(logits, policy="random", threshold=0.4, key=jax.random.key(1))
    taken = np.asarray(drawn.expert[:, 1]) == 1
    assert (np.asarray(drawn.expert[:, 1])[~taken] == 4).all()
    second = gates[1] / (gates[0] + gates[1])
    np.testing.assert_allclose(taken.mean(), second / 0.4, atol=0.015)
    np.testing.assert_allclose(drawn.weight[:, 0], 1 - second, rtol=1e-5)
    np.testing.assert_allclose(
        np.asarray(drawn.weight[:, 1]), np.where(taken, second, 0), rtol=1e-5
    )
    plan = experts.plan(drawn, None)
    np.testing.assert_array_equal(plan.kept[:, 1], taken)


def test_weights_are_normalised_as_asked():
    gates = jnp.asarray([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
    for normalize, wanted in (
        ("none", [[0.5, 0.3], [0.6, 0.3]]),
        ("before", [[0.625, 0.375], [2 / 3, 1 / 3]]),
        ("softmax_topk", [[0.625, 0.375], [2 / 3, 1 / 3]]),
    ):
        found = experts.top_k(gates, 2, normalize=normalize)
        np.testing.assert_array_equal(found.expert, [[0, 1], [1, 2]])
        np.testing.assert_allclose(found.weight, wanted, rtol=1e-6)
    # One place each: token 1 takes expert 1 first, so token 0 keeps expert 0 alone.
    after = experts.plan(experts.top_k(gates, 2, normalize="after"), 1)
    np.testing.assert_allclose(after.weight, [[1, 0], [2 / 3, 1 / 3]], rtol=1e-6)
    before = experts.plan(experts.top_k(gates, 2, normalize="before"), 1)
    np.testing.assert_allclose(before.weight, [[0.625, 0], [2 / 3, 1 / 3]], rtol=1e-6)


def test_mixtral_weighs_by_the_softmax_of_the_chosen_logits():
    logits = draw(5)
    found = experts.top_k(jax.nn.softmax(logits), 2, normalize="softmax_topk")
    largest = -np.sort(-logits, axis=1)[:, :2]
    np.testing.assert_allclose(found.weight, softmax(largest), rtol=1e-5)
    np.testing.assert_array_equal(found.expert, np.argsort(-logits, axis=1)[:, :2])


def test_one_choice_with_the_weight_1_is_warned_of():
    gates = jax.nn.softmax(draw(6))
    with pytest.warns(UserWarning, match="the router learns nothing from it"):
        experts.top_k(gates, 1, normalize="before")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        experts.top_k(gates, 1)
        experts.top_k(gates, 2, normalize="before")


def test_of_equal_gates_the_lowest_number_wins():
    found = experts.top_k(jnp.full((3, 6), 1 / 6), 3)
    np.testing.assert_array_equal(found.expert, np.tile(np.arange(3), (3, 1)))


def test_hashing_is_even_and_moves_only_to_an_expert_that_is_added():
    ids = jnp.arange(20_000)
    found = experts.hash_route(ids, 8, 2, seed=3)
    assert (found.expert[:, 0] != found.expert[:, 1]).all()
    np.testing.assert_allclose(
        np.bincount(found.expert.ravel(), minlength=8) / 40_000, 1 / 8, atol=0.006
    )
    np.testing.assert_array_equal(found.weight, 0.5)
    more = experts.hash_route(ids, 9, 1, seed=3).expert[:, 0]
    one = experts.hash_route(ids, 8, 1, seed=3).expert[:, 0]
    assert ((more == one) | (more == 8)).all()
    assert (experts.hash_route(ids, 8, 1, seed=4).expert[:, 0] == one).mean() < 0.2


def test_what_cannot_be_is_said():
    gates = jax.nn.softmax(draw(7))
    with pytest.raises(Error, match="cannot choose 6 of 5 experts"):
        experts.top_k(gates, 6)
    with pytest.raises(Error, match="cannot choose 0 of 5"):
        experts.hash_route(jnp.arange(3), 5, 0, seed=0)
    with pytest.raises(Error, match='normalize "all" is neither'):
        experts.top_k(gates, 2, normalize="all")
    with pytest.raises(Error, match="draws at random; pass key"):
        experts.top_2_gshard(gates, policy="sampling")
    with pytest.raises(Error, match="cannot choose 2 of 1 experts"):
        experts.top_2_gshard(gates[:, :1])
    with pytest.raises(Error, match='policy "best"'):
        experts.top_2_gshard(gates, policy="best")
    with pytest.raises(Error, match="at least one place, not capacity=0"):
        experts.plan(experts.top_k(gates, 2), 0)
    with pytest.raises(Error, match='priority "random" is neither order, batch'):
        experts.plan(experts.top_k(gates, 2), 1, priority="random")
    with pytest.raises(Error, match="buffers need a plan with a capacity"):
        experts.dispatch(experts.plan(experts.top_k(gates, 2), None), jnp.ones((24, 2)))
