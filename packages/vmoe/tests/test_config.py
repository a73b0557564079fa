import pytest

from chapbook.core.errors import Error
from chapbook.vmoe.config import VMoEConfig, placement


@pytest.mark.parametrize(
    ("text", "layers"),
    [("last=2", (5, 7)), ("last=4", (1, 3, 5, 7)), ("every=2", (1, 3, 5, 7)),
     ("every=1", (0, 1, 2, 3, 4, 5, 6, 7)), ("every=3", (2, 5))],
)  # fmt: skip
def test_last_counts_only_odd_layers_and_every_starts_at_the_nth(text, layers):
    assert placement(text, 8) == layers


@pytest.mark.parametrize(
    "text",
    ["S/32,E=8,K=2,last=2", "B/16,E=8,K=2,every=2", "H/14,E=32,K=2,last=5", "B/32",
     "Ti/4,depth=3,width=96,mlp=192,E=4,K=1,layers=0+2", "15B/14,E=32,K=2,every=2"],
)  # fmt: skip
def test_a_line_is_read_and_printed_back(text):
    config = VMoEConfig.from_string(text, image_size=224)
    assert str(config) == text
    assert VMoEConfig.from_string(str(config), image_size=224) == config


def test_the_papers_s_has_eight_layers_of_width_512():
    config = VMoEConfig.from_string("S/32,E=8,K=2,last=2")
    assert (config.num_layers, config.hidden_size, config.mlp_dim, config.num_heads) == (
        8, 512, 2048, 8,
    )  # fmt: skip
    assert config.moe_layers == (5, 7)
    assert config.num_tokens == 50


@pytest.mark.parametrize(
    ("text", "settings", "told"),
    [
        ("X/32", {}, "variants are Ti, S, B, L, H, 15B"),
        ("S/32,Q=3", {}, "'Q=3'"),
        ("S/32,E=8,K=2", {}, "add every=2 or last=2"),
        ("S/32,E=2,K=3,last=1", {}, "K=3 is more than the E=2"),
        ("S/32,E=2,K=0,last=1", {}, "num_selected_experts=0"),
        ("S/32,E=8,K=2,last=9", {}, "last=9 names no layers of 8"),
        ("S/32,E=8,K=2,layers=8", {}, "layers from 0 to 7"),
        ("S/32", {"image_size": 100}, "take 96 or 128"),
        ("S/32", {"image_size": 16}, "smaller than a patch"),
        ("S/32,E=8,K=2,last=2", {"capacity_factor": 0.0}, "capacity_factor=0.0 must be above 0"),
        ("S/32,heads=3", {}, "not divisible by num_heads=3"),
    ],
)
def test_what_is_wrong_is_named(text, settings, told):
    with pytest.raises(Error) as problem:
        VMoEConfig.from_string(text, **settings)
    assert told in str(problem.value)
