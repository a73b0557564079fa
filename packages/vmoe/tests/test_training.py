import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core.data import arrays
from chapbook.core.errors import Error
from chapbook.core.meshes import mesh
from chapbook.core.run import Run
from chapbook.vmoe.config import VMoEConfig
from chapbook.vmoe.evaluating import features, probabilities, scores, sweep
from chapbook.vmoe.model import VisionTransformerMoE
from chapbook.vmoe.routes import route_table
from chapbook.vmoe.saving import load, save
from chapbook.vmoe.training import TrainConfig, classification_loss, fit, optimizer

CONFIG = VMoEConfig.from_string(
    "Ti/4,depth=2,width=16,mlp=32,heads=2,E=4,K=2,every=1", image_size=8, num_classes=2,
    classifier="gap",
)  # fmt: skip


def bright_or_dark(count: int, seed: int = 0):
    """Images whose class is which half is brighter."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 2, count).astype(np.int32)
    image = generator.integers(0, 128, (count, 8, 8, 3)).astype(np.uint8)
    image[label == 0, :4] += 100
    image[label == 1, 4:] += 100
    return arrays(image=image, label=label)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    model = eqx.filter_jit(lambda key: VisionTransformerMoE(CONFIG, key=key))(jax.random.key(0))
    recipe = TrainConfig.preset(
        "small", steps=60, batch_size=32, learning_rate=1e-2, capacity_factor=1.05, mixup=0.1
    )
    with Run(tmp_path_factory.mktemp("run") / "run", {}) as run:
        return fit(
            model, bright_or_dark(400), recipe, key=jax.random.key(1), run=run, quiet=True,
            valid=bright_or_dark(70, 1), evaluate_every=30,
        )  # fmt: skip


def test_training_learns_and_its_rows_tell_what_routers_did(trained):
    last = trained.metrics.tail(1).to_dicts()[0]
    assert last["valid/accuracy"] > 0.95
    assert 0 <= last["dropped"] < 0.5
    assert last["loss"] == pytest.approx(last["task_loss"] + last["routing_loss"], rel=1e-4)
    assert trained.model.config == CONFIG


def test_a_sweep_has_a_row_for_each_setting_and_an_odd_last_batch(trained):
    source = bright_or_dark(50, 2)
    table = sweep(
        trained.model.with_routing(capacity_multiple=1), source, capacities=(4.0, 0.1),
        priorities=(False, True), batch_size=16,
    )  # fmt: skip
    assert table.select("capacity_factor", "batch_priority").rows() == [
        (4.0, False), (4.0, True), (0.1, False), (0.1, True),
    ]  # fmt: skip
    assert table["accuracy"][0] == table["accuracy"][1] > 0.9
    assert table["dropped"][0] == 0
    assert table["dropped"][2] > 0.5
    assert table["gflops_per_image"][2] < table["gflops_per_image"][0]


def test_probabilities_and_features_do_not_depend_on_the_batch(trained):
    model = trained.model.with_routing(capacity_factor=4.0)
    pixels = bright_or_dark(21, 3)[np.arange(21)]["image"]
    whole = probabilities(model, pixels, batch_size=21)
    np.testing.assert_allclose(probabilities(model, pixels, batch_size=8), whole, atol=1e-5)
    np.testing.assert_allclose(whole.sum(-1), 1, rtol=1e-5)
    assert features(model, arrays(image=pixels), batch_size=8).shape == (21, 16)


def test_the_table_of_routes_holds_every_choice_once(trained):
    pixels, labels = (bright_or_dark(10, 4)[np.arange(10)][name] for name in ("image", "label"))
    table = route_table(trained.model, pixels, labels, names=["up", "down"], batch_size=4)
    assert table.height == 10 * 4 * 2 * 2
    assert table.select("image", "row", "col", "layer", "choice").is_unique().all()
    assert set(table["class"]) == {"up", "down"}
    assert table.group_by("image", "row", "col", "layer").agg(
        distinct=table["expert"].n_unique() > 0
    ).height == 10 * 4 * 2  # fmt: skip
    first, second = (table.filter(choice=n)["weight"].to_numpy() for n in (0, 1))
    assert (first >= second).all()


def test_a_saved_model_predicts_the_same(trained, tmp_path):
    save(trained.model, tmp_path / "model", names=["up", "down"])
    again, names = load(tmp_path)
    assert names == ["up", "down"]
    pixels = bright_or_dark(5, 5)[np.arange(5)]["image"]
    np.testing.assert_array_equal(
        probabilities(again, pixels), probabilities(trained.model, pixels)
    )


def test_routing_that_differs_from_layer_to_layer_is_kept(trained, tmp_path):
    changed = trained.model.with_routing(layers=[1], capacity_factor=0.2, batch_priority=True)
    save(changed, tmp_path)
    again, _ = load(tmp_path)
    pixels = bright_or_dark(40, 6)[np.arange(40)]["image"]
    kept = probabilities(again, pixels)
    np.testing.assert_array_equal(kept, probabilities(changed, pixels))
    assert (kept != probabilities(trained.model, pixels)).any()
    assert again.config == trained.model.config


@pytest.mark.devices(8)
def test_training_takes_the_same_course_on_a_mesh():
    def losses(axes, count):
        model = eqx.filter_jit(lambda key: VisionTransformerMoE(CONFIG, key=key))(jax.random.key(0))
        recipe = TrainConfig.preset("small", steps=60, batch_size=32, learning_rate=1e-2)
        devices = mesh(axes, devices=jax.devices()[:count])
        made = fit(model, bright_or_dark(200), recipe, key=jax.random.key(1), mesh=devices,
                   quiet=True)  # fmt: skip
        return made.metrics["loss"].to_numpy()

    alone = losses("data=1", 1)
    assert len(alone) == 3 and alone[-1] < alone[0]
    np.testing.assert_allclose(losses("data=2,expert=4", 8), alone, rtol=1e-3)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(Error, match="is no folder of a model"):
        load(tmp_path)


def test_rates_rise_and_fall_and_only_kernels_decay():
    config = TrainConfig(steps=100, warmup=10, learning_rate=1.0, weight_decay=0.5, max_norm=1e9,
                         schedule="linear", optimizer="sgd")  # fmt: skip
    model = eqx.filter_jit(lambda key: VisionTransformerMoE(CONFIG, key=key))(jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    rule = optimizer(config, 100)
    state = rule.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved = []
    update = jax.jit(rule.update)
    for _ in range(100):
        updates, state = update(zeros, state, params)
        moved.append(float(-updates.blocks[0].ffn.experts.w_in.sum()))
        assert not updates.position.any()
        assert not updates.norm.scale.any()
        assert not updates.blocks[0].ffn.experts.b_in.any()
    rates = np.array(moved) / (0.5 * float(params.blocks[0].ffn.experts.w_in.sum()))
    np.testing.assert_allclose(rates[[0, 5, 10, 55]], [0, 0.5, 1, 0.5], atol=0.01)


def test_losses_equal_closed_forms():
    logits = jnp.array([[0.0, 0.0, 0.0, 0.0]])
    target = jax.nn.one_hot(jnp.array([1]), 4)
    assert classification_loss(logits, target)[0] == pytest.approx(np.log(4))
    assert classification_loss(logits, target, "sigmoid")[0] == pytest.approx(4 * np.log(2))


def test_scores_equal_hand_counted_ones():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], np.float32))
    found = scores(logits, np.array([0, 1, 2]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["top5"] == 1
    assert found["nll"] == pytest.approx(-np.log([0.7, 0.2, 0.6]).mean(), rel=1e-5)
    # Two of 0.7 with one right: 0.2 apart; one of 0.6, right: 0.4 apart.
    assert found["ece"] == pytest.approx((abs(0.7 - 0.5) * 2 + 0.4) / 3, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("epochs", 0.0), ("learning_rate", -1.0), ("mixup", -0.1)]
)
def test_recipes_out_of_range_are_refused(name, value):
    with pytest.raises(Error, match=name):
        TrainConfig(**{name: value})


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(Error, match="pretrain, ilsvrc2012, finetune, small"):
        TrainConfig.preset("tiny")
