import equinox as eqx
import jax
import jax.numpy as jnp
import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.glam.accounting import UNEXPLAINED, cost, energy, ladder, power
from chapbook.glam.config import GLaMConfig
from chapbook.glam.model import GLaM

SMALL = "desk/8E,vocab=512,context=64,layers=2,width=128,hidden=512,heads=2,head=64"
DENSE = SMALL.replace("/8E", "").replace("layers=2", "layers=1")  # XLA counts a loop's body once


@pytest.mark.parametrize("line", [SMALL, DENSE, "0.1B/64E", "64B/64E", "desk/1E"])
def test_parameters_are_those_of_the_model(line):
    config = GLaMConfig.from_string(line)
    shapes = eqx.filter_eval_shape(GLaM, config, key=jax.random.key(0))
    assert cost(config).parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    spared = max(config.num_experts - 2, 0) * len(config.moe_layers)
    expert = 2 * config.embed * config.hidden
    assert cost(config).activated == cost(config).parameters - spared * expert


def test_the_papers_table_of_sizes_comes_out_but_for_the_rows_that_no_vocabulary_explains():
    table = ladder()
    wrong = table.filter(~pl.col("agrees")).select("model", "number").rows()
    assert set(wrong) == UNEXPLAINED
    largest = table.filter(pl.col("model") == "64B/64E")["ours"].to_list()
    assert largest == pytest.approx([1.1618e12, 9.6605e10], rel=1e-4)


@pytest.mark.parametrize("line", [SMALL, DENSE])
def test_operations_are_within_two_percent_of_the_compilers_count(line):
    config = GLaMConfig.from_string(line)
    model, tokens = eqx.filter_jit(GLaM)(config, key=jax.random.key(0)), jnp.zeros((4, 64), int)
    # With a key, since XLA does not look into the loops of the experts without limits.
    params, static = eqx.partition(model, eqx.is_array)
    call = jax.jit(lambda p, x: eqx.combine(p, static)(x, key=jax.random.key(0))[0])
    analysis = call.lower(params, tokens).compile().cost_analysis()
    assert analysis is not None
    counted = analysis["flops"]
    expected = (cost(config).flops + cost(config).attention_flops) * 4 * 64
    assert counted == pytest.approx(expected, rel=0.02)


def test_energy_of_the_papers_largest_training_comes_out():
    # 574 hours were those of the first 280 of 600 billion tokens.
    found = power(574 * 600 / 280, 1024, 326, 1.11, 0.088)
    assert found.megawatt_hours == pytest.approx(456, rel=0.01)
    assert found.tonnes == pytest.approx(40.2, rel=0.01)
    config = GLaMConfig.preset("64B/64E")
    made = energy(config, tokens=6e11, chips=1024, peak_flops=275e12, utilisation=0.4, watts=300.0)
    seconds = 6e11 * cost(config).training_flops / (1024 * 275e12 * 0.4)
    assert made.hours == pytest.approx(seconds / 3600)
    assert made.tonnes == pytest.approx(made.megawatt_hours * 0.4)
    with pytest.raises(Error, match="utilisation=2 is a share"):
        energy(config, tokens=1, chips=1, peak_flops=1.0, utilisation=2, watts=1.0)
    with pytest.raises(Error, match="watts=0 must be above 0"):
        energy(config, tokens=1, chips=1, peak_flops=1.0, utilisation=0.5, watts=0)
