"""Training of networks of finite width on distilled sets."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from chapbook.core.errors import Error
from chapbook.core.run import Run
from chapbook.kip_distill import (
    DistilledSet,
    Examples,
    Network,
    Preprocess,
    centred,
    kernels,
    max_learning_rate,
    transfer,
)
from chapbook.kip_distill.cli import main
from chapbook.kip_distill.transferring import Diverged, empirical_ntk, split, train

KEY = jax.random.key(0)
LINEAR = kernels.serial(kernels.Dense())


def run(*arguments):
    """Returns the exit code."""
    with pytest.raises(SystemExit) as done:
        main([str(each) for each in arguments])
    return done.value.code or 0


def blobs(count, seed=0, names=("a", "b", "c")):
    """Points of three classes in four dimensions."""
    draw = np.random.default_rng(seed)
    y = np.arange(count) % 3
    x = 2 * np.eye(4)[y] + 0.3 * draw.normal(size=(count, 4))
    return Examples(x.astype(np.float32), y, names)


@pytest.fixture
def held():
    """Eighteen real points as a set."""
    train = blobs(90)
    preprocess = Preprocess.fit(train.x)
    facts = {"arch": "FC1", "names": ["a", "b", "c"]}
    return DistilledSet(preprocess(train.x[:18]), centred(train.y[:18], 3), preprocess, facts)


def test_the_greatest_rate_is_that_of_an_explicit_jacobian():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(4, 4, 4, 1))
        network = Network(kernels.ConvNet(1), (4, 4, 1), width=3, outputs=7, key=KEY)
        parameters, static = eqx.partition(network, eqx.is_inexact_array)
        flat, back = ravel_pytree(parameters)

        @jax.jit
        @jax.jacrev
        def jacobian(flat):
            return eqx.combine(back(flat), static)(jnp.asarray(x)).sum(1) / 7**0.5

        rows = np.asarray(jacobian(flat))
        # Room for the gradients of two inputs beside those of two others.
        found = empirical_ntk(network, x, memory=4 * flat.nbytes)
        np.testing.assert_allclose(found, rows @ rows.T, rtol=1e-12)
        greatest = np.linalg.eigvalsh(rows @ rows.T)[-1]
        assert max_learning_rate(network, x) == pytest.approx(2 * 4 * 7 / greatest, rel=1e-12)


def test_inputs_without_a_gradient_have_no_greatest_rate():
    network = Network(kernels.FC(1), (3,), width=2, outputs=2, key=KEY)
    with pytest.raises(Error, match="greatest eigenvalue nan"):
        max_learning_rate(network, np.full((2, 3), np.nan, np.float32))


def test_training_is_momentum_with_a_cosine_and_decay_of_all_parameters():
    """A linear model, whose gradients are written by hand, on a full batch."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(6, 3)), draw.normal(size=(6, 2))
    rate, l2, steps = 0.3, 0.05, 7
    network = Network(LINEAR, (3,), width=1, outputs=2, key=KEY)
    found = train(
        network, x.astype(np.float32), y.astype(np.float32), learning_rate=rate, l2=l2, steps=steps,
        quiet=True,
    )  # fmt: skip
    weight, bias = (np.asarray(each, np.float64) for each in jax.tree.leaves(network))
    velocity = [np.zeros_like(weight), np.zeros_like(bias)]
    for step in range(steps):
        error = (x @ weight + bias - y) / y.size
        slopes = [x.T @ error + l2 * weight, error.sum(0) + l2 * bias]
        velocity = [0.9 * old + slope for old, slope in zip(velocity, slopes, strict=True)]
        now = rate * (1 + np.cos(np.pi * step / steps)) / 2
        weight, bias = weight - now * velocity[0], bias - now * velocity[1]
    for mine, wanted in zip(jax.tree.leaves(found), (weight, bias), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=1e-7)


def test_a_loss_that_is_not_finite_is_told_with_its_step():
    x, y = np.ones((2, 3), np.float32), np.ones((2, 2), np.float32)
    network = Network(LINEAR, (3,), width=1, outputs=2, key=KEY)
    # Float32 overflows when an error of 1e15 is squared a second time.
    with pytest.raises(Diverged, match="not finite at step 3, with a learning rate of 1e") as told:
        train(network, x, y, learning_rate=1e15, steps=9, quiet=True)
    assert told.value.step == 3
    assert "\n" not in str(told.value)


def test_validation_is_a_share_of_the_given_rows_and_of_no_others():
    chosen, rest = split(50, 0.1, seed=3)
    assert len(chosen) == 5
    np.testing.assert_array_equal(np.sort(np.concatenate([chosen, rest])), np.arange(50))
    np.testing.assert_array_equal(split(50, 0.1, seed=3)[0], chosen)
    assert (split(50, 0.1, seed=4)[0] != chosen).any()
    for share in (0.0, 1.0, 0.001, 0.999, float("nan")):
        with pytest.raises(Error, match="leaves one part empty"):
            split(50, share, seed=0)


def test_a_grid_is_judged_by_validation_alone_and_shows_what_diverged(held):
    examples = blobs(60, seed=1)
    # What is for validation is right; test labels are wrong, and must not matter.
    test = Examples(examples.x, (examples.y + 1) % 3, examples.names)
    found = transfer(
        held, LINEAR, examples, test, steps=60, factors=(1e-4, 0.3, 1e12), quiet=True,
    )  # fmt: skip
    assert found.trial.factor == 0.3
    assert found.trial.accuracy == 1
    assert found.accuracy < 0.1
    assert found.examples == 60
    slow, _, diverged = found.trials
    assert slow.mse is not None and slow.mse > found.trial.mse  # pyright: ignore
    assert diverged.diverged is not None
    assert f"diverged at step {diverged.diverged}" in str(diverged)
    with pytest.raises(Error, match=r"no trial ended with a finite loss: factor .*step"):
        transfer(held, LINEAR, examples, steps=9, factors=(1e12, 2e12), quiet=True)


def test_numbers_to_be_predicted_are_refused(held):
    examples = blobs(60)
    numbers = Examples(examples.x, np.zeros((60, 3), np.float32), examples.names)
    with pytest.raises(Error, match="trained on classes, not on numbers"):
        transfer(held, LINEAR, numbers, steps=1, quiet=True)


def test_without_a_test_part_the_rest_of_the_examples_is_tested(held):
    found = transfer(
        held, LINEAR, blobs(60, seed=1), steps=60, factors=(0.3,), validation=0.25, quiet=True,
    )  # fmt: skip
    assert found.examples == 45
    assert found.accuracy > 0.9


def test_a_run_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(9, 3)).astype(np.float32)
    y = draw.normal(size=(9, 2)).astype(np.float32)
    network = Network(LINEAR, (3,), width=8, outputs=2, key=KEY)
    given = {"learning_rate": 0.1, "steps": 12, "batch": 4, "quiet": True}
    whole = train(network, x, y, **given)

    class Killed(Exception):  # noqa: N818
        pass

    calls = iter(range(99))

    def evaluated(*_):
        if next(calls) == 6:
            raise Killed
        return {"accuracy": 0.0}

    monkeypatch.setattr("chapbook.kip_distill.transferring.scored", evaluated)
    monkeypatch.setattr("chapbook.kip_distill.transferring.SAVE_EVERY", 3)
    with Run(tmp_path / "run", {}) as folder, pytest.raises(Killed):
        train(network, x, y, run=folder, validation=(x, y), **given)
    assert (tmp_path / "run" / "checkpoints" / "6").exists()
    with Run(tmp_path / "run", {}) as folder:
        found = train(network, x, y, run=folder, validation=(x, y), **given)
    for mine, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(mine, wanted)


def test_the_command_trains_on_a_set_and_goes_on_with_its_run(tmp_path, capsys):
    from chapbook.kip_distill.data import digits

    real, test = digits()
    rows = np.concatenate([np.flatnonzero(real.y == each)[:5] for each in range(10)])
    preprocess = Preprocess.fit(real.x)
    facts = {"arch": "FC1", "classes": list(real.names)}
    x, y = preprocess(real.x[rows]), centred(real.y[rows], 10)
    DistilledSet(x, y, preprocess, facts).save(tmp_path / "set.npz")
    given = ("transfer", "--set", tmp_path / "set.npz", "--data", "digits", "--width", 64,
             "--steps", 60, "--run", tmp_path / "run", "--quiet")  # fmt: skip
    assert run(*given, "--lr-factor", "0.5,1e9") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("trial factor 0.5, l2 0.001: validation accuracy 0.")
    assert lines[1].startswith("trial factor 1e+09, l2 0.001: diverged at step ")
    assert any(line.startswith("learning_rate ") for line in lines)
    assert {each.name for each in (tmp_path / "run").iterdir()} >= {
        "results.json", "trials", "weights.safetensors",
    }  # fmt: skip
    # A smaller grid, of which nothing is left to do.
    assert run(*given, "--lr-factor", "0.5", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["accuracy"] > 0.3
    assert (told["arch"], told["width"], told["steps"]) == ("FC1", 64, 60)
    assert told["examples"] == len(test.y)
    assert told["learning_rate"] > 0
    assert run(*given, "--width", 32) == 2
    assert "width=64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--lr-factor", "1,x"), "--lr-factor 1,x: give a number"),
        (("--lr-factor", "-1"), "factors of the learning rate are positive, not -1"),
        (("--l2", "-1"), "regularisers are not negative"),
        (("--validation", "1"), "leaves one part empty"),
        (("--arch", "resnet"), 'no architecture is called "resnet"'),
        (("--arch", "ConvNet"), "expected (n, height, width, channels)"),
        (("--mesh", "target=1"), "the mesh has axes target; use data alone"),
        (("--data", "digits"), "inputs of shape (8, 8, 1) do not fit"),
    ],
)
def test_wrong_arguments_get_one_line(arguments, told, held, tmp_path, capsys):
    held.save(tmp_path / "set.npz")
    examples = blobs(60, seed=1)
    np.savez(tmp_path / "real.npz", images=examples.x, labels=examples.y)
    given = ("transfer", "--set", tmp_path / "set.npz", "--data", f"npz:{tmp_path / 'real.npz'}",
             "--width", 8, "--steps", 9, "--quiet")  # fmt: skip
    assert run(*given, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert len(error.splitlines()) == 1
