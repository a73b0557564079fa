import logging
import shutil
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chapbook.core.checkpoint import Checkpoints
from chapbook.core.errors import Error


def training_state(seed=0):
    model = eqx.nn.MLP(3, 2, 8, 2, activation=jax.nn.gelu, key=jax.random.key(seed))
    params = eqx.filter(model, eqx.is_inexact_array)
    return {
        "params": model,
        "opt": optax.adam(1e-3).init(params),
        "key": jax.random.key(seed + 1, impl="rbg"),
        "keys": jax.random.split(jax.random.key(seed + 2), 5),
        "half": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3) + seed,
        "count": np.int64(2**40 + seed),
        "step": 7 + seed,
        "best": 0.25 + seed,
        "done": bool(seed),
        "host": np.arange(4) + seed,
        "none": None,
        "empty": jnp.zeros((0, 3)),
    }


def assert_same(left, right):
    left, left_structure = jax.tree.flatten(left)
    right, right_structure = jax.tree.flatten(right)
    assert left_structure == right_structure
    for a, b in zip(left, right, strict=True):
        assert type(a) is type(b)
        if isinstance(a, jax.Array | np.ndarray | np.generic):
            assert a.dtype == b.dtype
            if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        else:
            assert a == b


def saved(folder, *steps):
    for step in steps:
        with Checkpoints(folder) as checkpoints:
            assert checkpoints.save(step, {"w": jnp.full(3, step)}, extra={"at": step})


def damage(step_folder, name):
    [path] = [p for p in Path(step_folder).rglob(name) if p.parent.name != "ocdbt.process_0"]
    path.write_bytes(path.read_bytes()[:-9])


def test_a_whole_training_state_comes_back_as_it_was(tmp_path):
    state = training_state()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.save(7, state, extra={"position": 3, "best": [1, 2.5, None]})
        other = training_state(1) | {"done": False}
        restored, extra = checkpoints.restore(other)
    assert_same(restored, state)
    assert extra == {"position": 3, "best": [1, 2.5, None]}
    x = jnp.ones(3)
    np.testing.assert_array_equal(restored["params"](x), state["params"](x))


def test_shapes_alone_are_enough_to_restore(tmp_path):
    def make():
        model = eqx.nn.MLP(3, 2, 8, 2, key=jax.random.key(3))
        return {"model": model, "key": jax.random.key(4), "empty": jnp.zeros((2, 0))}

    saved_state = make()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved_state)
        restored, _ = checkpoints.restore(eqx.filter_eval_shape(make))
    assert_same(restored, saved_state)


def test_values_are_those_at_the_call_of_save(tmp_path):
    rewrite = jax.jit(lambda w: -w, donate_argnums=0)
    values = np.random.default_rng(0).normal(size=(500, 1000)).astype(np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        device, host = jnp.array(values), values.copy()
        checkpoints.save(1, {"device": device, "host": host})
        host[:] = -1
        for _ in range(5):
            device = rewrite(device)
        restored, _ = checkpoints.restore({"device": device, "host": host})
    np.testing.assert_array_equal(restored["device"], values)
    np.testing.assert_array_equal(restored["host"], values)


def test_the_latest_and_every_so_many_steps_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, {"w": jnp.full(3, step)})
        checkpoints.wait()
        assert checkpoints.steps() == [4, 6, 7]
        assert checkpoints.latest() == 7
        assert checkpoints.restore({"w": jnp.zeros(3, int)}, 4)[0]["w"].tolist() == [4, 4, 4]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [4, 6, 7]


def test_a_step_is_saved_once_and_never_out_of_order(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(3, {"w": jnp.ones(3)})
        assert not checkpoints.save(3, {"w": jnp.zeros(3)}, force=True)
        assert not checkpoints.save(2, {"w": jnp.zeros(3)})
        assert checkpoints.restore({"w": jnp.zeros(3)})[0]["w"].tolist() == [1, 1, 1]


def test_steps_that_are_not_due_are_saved_only_by_force(tmp_path):
    with Checkpoints(tmp_path, every_minutes=60) as checkpoints:
        done = [checkpoints.save(1, {"w": jnp.ones(3)}), checkpoints.save(2, {"w": jnp.ones(3)})]
        done.append(checkpoints.save(3, {"w": jnp.ones(3)}, force=True))
        assert done == [True, False, True]
        assert checkpoints.steps() == [1, 3]


def test_every_difference_is_named_and_nothing_is_restored(tmp_path):
    state = training_state() | {"params": None, "opt": {"count": jnp.int32(1), "mu": jnp.ones(3)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        like = state | {
            "more": jnp.ones(2),
            "half": jnp.zeros((2, 3)),
            "key": jax.random.key(0),
            "keys": jnp.zeros(5),
            "host": np.zeros(5, int),
            "step": 1.0,
            "opt": {"count": jnp.int32(0), "nu": jnp.ones(3)},
        }
        with pytest.raises(Error) as error:
            checkpoints.restore(like)
    told = str(error.value)
    assert told.startswith(f"{tmp_path}: step 1 does not fit: ")
    assert "\n" not in told
    for phrase in [
        "missing more",
        "missing opt.nu",
        "unexpected opt.mu",
        "half is bfloat16, not float32 (cast=True converts numbers)",
        "key is key<rbg>, not key<fry>",
        "keys is key<fry>, not float32",
        "host is (4,), not (5,)",
        "step is int64, not float64 (cast=True converts numbers)",
    ]:
        assert phrase in told


def test_at_most_twenty_differences_are_listed_then_counted(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {f"w{i}": jnp.ones(1) for i in range(5)})
        with pytest.raises(Error) as error:
            checkpoints.restore({f"v{i}": jnp.ones(1) for i in range(33)})
    assert str(error.value).count("missing") == 20
    assert str(error.value).endswith("; and 13 more")


def test_a_module_that_lost_a_field_does_not_fit(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, eqx.nn.Linear(2, 3, key=jax.random.key(0)))
        with pytest.raises(Error, match=r"does not fit: unexpected bias$"):
            checkpoints.restore(eqx.nn.Linear(2, 3, use_bias=False, key=jax.random.key(0)))


def test_types_are_cast_only_on_demand(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.array([1.0, 2.0009765625]), "n": 3})
        like = {"w": jnp.zeros(2, jnp.bfloat16), "n": jnp.int32(0)}
        with pytest.raises(Error, match="w is float32, not bfloat16"):
            checkpoints.restore(like)
        restored, _ = checkpoints.restore(like, cast=True)
    assert_same(restored, {"w": jnp.array([1, 2], jnp.bfloat16), "n": jnp.int32(3)})


def bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes by Linux's /proc")
def test_a_sub_tree_reads_its_own_bytes_only(tmp_path):
    generator = np.random.default_rng(0)
    state = {
        "params": {"w": jnp.asarray(generator.normal(size=(100, 100)), jnp.float32)},
        "opt": jnp.asarray(generator.normal(size=(2000, 1000)), jnp.float32),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, extra={"a": 1})
    with Checkpoints(tmp_path) as checkpoints:
        before = bytes_read()
        restored, extra = checkpoints.restore({"params": state["params"]})
        assert bytes_read() - before < 400_000 < state["opt"].nbytes
    assert_same(restored, {"params": state["params"]})
    assert extra == {"a": 1}


def test_an_empty_folder_and_an_unknown_step_are_told(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        with pytest.raises(Error, match=r"new: no checkpoint$"):
            checkpoints.restore({"w": jnp.zeros(3, int)})
        saved(tmp_path / "old", 2, 5)
    with (
        Checkpoints(tmp_path / "old") as checkpoints,
        pytest.raises(Error, match=r"old: no step 3; it has 2, 5$"),
    ):
        checkpoints.restore({"w": jnp.zeros(3, int)}, 3)


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "metadata", "state", "extra"])
def test_a_damaged_latest_step_falls_back_with_one_warning(tmp_path, caplog, name):
    saved(tmp_path, 1, 2)
    if name in ("state", "extra"):
        shutil.rmtree(tmp_path / "2" / name)
    else:
        damage(tmp_path / "2", name)
    like = {"w": jnp.zeros(3, int)}
    with Checkpoints(tmp_path) as checkpoints, caplog.at_level(logging.WARNING, "chapbook"):
        restored, extra = checkpoints.restore(like)
        ours = [r.getMessage() for r in caplog.records if r.name.startswith("chapbook")]
        assert [len(line.splitlines()) for line in ours] == [1]
        assert f"{tmp_path}: step 2 cannot be read (" in ours[0]
        assert (restored["w"].tolist(), extra) == ([1, 1, 1], {"at": 1})
        # The run goes on from step 1: the damaged step must neither block nor outlive newer ones.
        assert checkpoints.steps() == [1]
        assert checkpoints.save(2, {"w": jnp.full(3, 22)})
        assert checkpoints.restore(like)[0]["w"].tolist() == [22, 22, 22]
    assert len(list(tmp_path.glob("2.unreadable-*"))) == 1
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 2]


def test_a_misfit_is_an_error_not_a_reason_to_fall_back(tmp_path):
    saved(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, {"w": jnp.ones(4, int)})
        with pytest.raises(Error, match=r"step 2 does not fit: w is \(4,\), not \(3,\)"):
            checkpoints.restore({"w": jnp.zeros(3, int)})


def test_no_readable_step_is_an_error_never_a_fresh_start(tmp_path):
    saved(tmp_path, 1, 2)
    for step in "12":
        damage(tmp_path / step, "manifest.ocdbt")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(Error, match="step 2 cannot be read"):
            checkpoints.restore({"w": jnp.zeros(3, int)}, 2)
        with pytest.raises(Error, match="step 1 cannot be read") as error:
            checkpoints.restore({"w": jnp.zeros(3, int)})
    assert error.value.hint


def test_extra_that_is_no_json_is_refused_before_anything_is_written(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match="not JSON serializable"):
            checkpoints.save(1, {"w": jnp.ones(3)}, extra={"at": object()})
        assert checkpoints.steps() == []


def test_half_written_steps_are_removed_when_the_folder_is_opened(tmp_path):
    saved(tmp_path, 1)
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        assert checkpoints.save(2, {"w": jnp.zeros(3)})
    assert not unfinished.exists()


# One process imports everything and forks a writer per life, which costs one start, not four.
LIVES = """
import os, random, signal, sys, time
import jax.numpy as jnp
from chapbook.core.checkpoint import Checkpoints

def write(out):
    checkpoints = Checkpoints(sys.argv[1], keep=2)
    like = {"w": [jnp.zeros((300, 300), int) for _ in range(8)], "step": 0}
    start = 0
    if checkpoints.latest():
        state, extra = checkpoints.restore(like)
        start = state["step"]
        assert extra == {"at": start} and all((w == start).all() for w in state["w"])
    for step in range(start + 1, start + 10_000):
        state = {"w": [jnp.full((300, 300), step) for _ in range(8)], "step": step}
        checkpoints.save(step, state, extra={"at": step})
        os.write(out, b"%d %d\\n" % (start, step))

pause = random.Random(0)
for life in range(4):
    out, into = os.pipe()
    writer = os.fork()
    if writer == 0:
        try:
            write(into)
        finally:
            os._exit(1)
    os.close(into)
    told = os.fdopen(out)
    lines = [told.readline() for _ in range(pause.randint(1, 3))]
    time.sleep(pause.uniform(0, 0.1))
    os.kill(writer, signal.SIGKILL)
    lines += told.readlines()
    assert os.waitpid(writer, 0)[1] == signal.SIGKILL
    print(lines[-1].strip(), flush=True)
"""


def test_a_run_killed_while_saving_goes_on_from_a_whole_step(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIVES, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lives = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(lives) == 4
    # A save first waits for the one before, so a kill loses the last two at most.
    reached = 0
    for start, last in lives:
        assert reached - 2 <= start <= reached + 1
        reached = last
    with Checkpoints(tmp_path) as checkpoints:
        like = {"w": [jnp.zeros((300, 300), int) for _ in range(8)], "step": 0}
        state, extra = checkpoints.restore(like)
    assert reached - 2 <= state["step"] == extra["at"] <= reached + 1
    assert all((w == state["step"]).all() for w in state["w"])


def test_ordinary_use_prints_nothing_and_lets_the_interpreter_exit(tmp_path):
    script = """
import sys
import numpy as np
from chapbook.core.data import Batches, arrays, place
assert "jax" not in sys.modules and "jaxtyping" not in sys.modules
import jax.numpy as jnp
from chapbook.core.checkpoint import Checkpoints
from chapbook.core.meshes import mesh
with Checkpoints(sys.argv[1], keep=1, every_minutes=0) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, {"w": jnp.ones(3)}, force=True)
    checkpoints.restore({"w": jnp.zeros(3)})
# Reads ahead in a thread, and is never closed.
source = arrays(x=np.zeros((64, 4), np.float32))
placed = place(Batches(source, 8, workers=2, map=lambda e, g: e), mesh(""))
next(placed)
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
