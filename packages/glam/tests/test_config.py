import pytest

from chapbook.core.errors import Error
from chapbook.glam.accounting import cost
from chapbook.glam.config import PRESETS, GLaMConfig


def test_a_line_says_a_configuration_and_is_printed_again():
    config = GLaMConfig.from_string("desk/8E,vocab=2048,context=256")
    assert (config.num_layers, config.embed, config.num_experts) == (4, 128, 8)
    assert str(config) == "desk/8E,vocab=2048,context=256"
    for line in (*PRESETS, "0.1B/64E", "1.7B/8E,layers=2,width=8,heads=3,head=5"):
        config = GLaMConfig.from_string(line)
        assert GLaMConfig.from_string(str(config)) == config


def test_experts_stand_in_every_other_layer():
    assert list(GLaMConfig.preset("desk/4E").moe_layers) == [0, 2]
    assert list(GLaMConfig.preset("desk/4E", moe_offset=1).moe_layers) == [1, 3]
    assert list(GLaMConfig.preset("desk").moe_layers) == []


@pytest.mark.parametrize(
    ("line", "settings", "message"),
    [
        ("big", {}, "'big' is no SIZE"),
        ("desk,depth=3", {}, "'depth=3' in 'desk,depth=3' is not understood"),
        ("desk", {"num_experts": -1}, "num_experts=-1 must be 0"),
        ("desk/4E,layers=3", {}, "num_layers=3 must be even"),
        ("desk,width=0", {}, "embed=0 must be 1 or more"),
        ("desk", {"capacity_factor": 0.0}, "capacity_factor=0.0"),
        ("desk", {"group_size": 0}, "group_size=0"),
        ("desk", {"aux_weight": -1.0}, "aux_weight=-1.0 must be 0 or above"),
        ("desk", {"max_distance": 16}, "max_distance=16"),
    ],
)
def test_a_value_out_of_its_range_is_refused(line, settings, message):
    with pytest.raises(Error, match=message):
        GLaMConfig.from_string(line, **settings)


def test_models_of_a_ladder_are_each_half_as_wide_as_the_next():
    sparse = GLaMConfig.from_string("desk/8E,expert=256,vocab=100")
    sizes = [(c.embed, c.hidden, c.num_heads, c.expert_hidden) for c in sparse.ladder(2)]
    assert sizes == [(32, 128, 1, 64), (64, 256, 2, 128)]
    assert {(c.head_dim, c.num_experts, c.vocab_size) for c in sparse.ladder(2)} == {(32, 8, 100)}
    assert sparse.ladder(0) == []
    with pytest.raises(Error, match="num_heads=4 cannot be halved 3 times"):
        sparse.ladder(3)


def test_the_dense_counterpart_computes_as_much_for_a_token():
    sparse = GLaMConfig.from_string("0.1B/64E,vocab=2048")
    dense = sparse.dense_counterpart()
    assert str(dense) == "0.1B/1E,vocab=2048,expert=6144"
    routers = 2 * len(sparse.moe_layers) * sparse.embed * 64
    assert cost(sparse).flops == cost(dense).flops + routers
    assert dense.dense_counterpart() is dense
