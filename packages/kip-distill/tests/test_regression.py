"""Kernel regression and Label Solve against dense linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core.errors import Error
from chapbook.kip_distill import KernelRidge, centred, kernels, label_solve, regularised, solve

KERNEL = kernels.FC(1)


def inputs(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


def double(values):
    return np.asarray(values, np.float64)


def labels(n, seed=0):
    return centred(np.random.default_rng(seed).integers(0, 3, n), 3)


def test_labels_are_centred():
    np.testing.assert_allclose(centred(np.array([1]), 4), [[-0.25, 0.75, -0.25, -0.25]])
    with pytest.raises(Error, match="label 4 of example 1 is not one of the 4 classes 0 to 3"):
        centred(np.array([0, 4]), 4)


def test_the_regulariser_is_relative_to_the_kernel():
    matrix = np.diag([1.0, 3.0])
    np.testing.assert_allclose(regularised(matrix, 0.1), np.diag([1.2, 3.2]))
    np.testing.assert_allclose(regularised(matrix, -0.1, 1.0), np.diag([2.2, 4.2]))


def test_without_a_regulariser_the_support_is_met_exactly():
    x, y = inputs(12), labels(12)
    found = KernelRidge.fit(KERNEL, x, y, reg=0.0).predict(x)
    np.testing.assert_allclose(found, y, atol=1e-4)


def test_predictions_are_those_of_dense_algebra():
    x, y, new = inputs(12), labels(12), inputs(5000, 1)
    matrix, cross = double(KERNEL(x)), double(KERNEL(new, x))
    wanted = cross @ np.linalg.solve(regularised(matrix, 1e-3), y)
    found = KernelRidge.fit(KERNEL, x, y, reg=1e-3).predict(new)  # in several blocks
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_float64_solves_what_float32_does_not():
    x, y = inputs(60), labels(60)
    matrix = KERNEL(x)
    wanted = np.linalg.solve(regularised(double(matrix), 1e-6), y)

    def error(found):
        return abs(double(found) - wanted).max() / abs(wanted).max()

    single = solve(matrix, jnp.asarray(y), reg=1e-6)
    with jax.enable_x64(True):
        wide = solve(matrix, jnp.asarray(y), reg=1e-6)
    assert wide.dtype == jnp.float64
    assert error(wide) < 1e-9
    assert 1e-7 < error(single) < 1e-3


def test_a_kernel_that_is_not_positive_definite_is_refused_with_what_mends_it():
    x = np.concatenate([inputs(3), inputs(3)])
    with pytest.raises(Error, match=r"not positive definite with reg=0.*use reg=") as problem:
        KernelRidge.fit(KERNEL, x, labels(6), reg=0.0)
    enough = float(str(problem.value).split("use reg=")[1].split()[0])
    KernelRidge.fit(KERNEL, x, labels(6), reg=enough)
    with pytest.raises(Error, match="use jitter"):
        KernelRidge.fit(kernels.FC(1, b_std=0.0), np.zeros((2, 6), np.float32), labels(2))
    with pytest.raises(Error, match="not finite"):
        KernelRidge.fit(KERNEL, x * np.float32(np.nan), labels(6))


def test_label_solve_is_least_squares():
    support, x, y = inputs(8), inputs(500, 1), labels(500, 1)
    matrix, cross = double(KERNEL(support)), double(KERNEL(x, support))
    weights = cross @ np.linalg.inv(regularised(matrix, 1e-6))
    wanted = np.linalg.pinv(weights) @ y
    found = label_solve(KERNEL, support, x, y, rows=64)
    assert found.rank == 8
    np.testing.assert_allclose(found.labels, wanted, rtol=1e-5, atol=1e-8)


def test_label_solve_explains_targets_at_least_as_well_as_their_own_labels():
    support, x, y = inputs(8), inputs(200, 1), labels(200, 1)

    def loss(given):
        found = KernelRidge.fit(KERNEL, support, given).predict(x)
        return ((found - y) ** 2).mean()

    assert loss(label_solve(KERNEL, support, x, y).labels) < loss(labels(8))


def test_label_solve_on_its_own_support_predicts_it():
    x, y = inputs(8), labels(8)
    found = label_solve(KERNEL, x, x, y, reg=1e-12)
    predicted = KernelRidge.fit(KERNEL, x, found.labels, reg=1e-12).predict(x)
    np.testing.assert_allclose(predicted, y, atol=1e-6)


def test_directions_that_targets_do_not_tell_apart_are_left_out():
    support, x = inputs(8), inputs(3, 1)
    found = label_solve(KERNEL, support, x, labels(3))
    assert found.rank == 3


@pytest.mark.wrong_types
def test_targets_without_labels_are_refused():
    with pytest.raises(Error, match="3 targets and 2 labels"):
        label_solve(KERNEL, inputs(8), inputs(3), labels(2))
