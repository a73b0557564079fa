"""Runs that are killed at random times, and runs of two processes of which one is told to stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import pytest

from chapbook.core import Batches, Run, arrays, fit

# A process that has imported all but started nothing, and forks a trainer whenever it is told to:
# so a life costs a fraction of a second, not the seconds of the imports.
NURSERY = """
import os, sys, time, traceback
import jax, numpy as np, optax, polars
import jax.numpy as jnp
from pathlib import Path
from chapbook.core import Batches, Run, arrays, fit

folder = Path(sys.argv[1])

def train(name, slow, save_every):
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    told = []

    def loss(model, batch, key):
        noise = 0.1 * jax.random.normal(key, (4,))
        error = batch["x"] @ (model["w"] + noise) - batch["y"]
        return jnp.mean(error**2), {"w": model["w"][0]}

    class Slow(Batches):
        def take(self, part):
            time.sleep(slow)
            return super().take(part)

    def callback(step, model_fn, row):
        if not told:
            told.append(os.write(1, b"+"))

    with Run(folder / name, {"seed": 0}) as run:
        result = fit(
            loss, {"w": jnp.ones(4)}, optax.adam(0.01), Slow(arrays(x=x, y=x.sum(1)), 8),
            steps=STEPS, key=jax.random.key(0), run=run, log_every=3, save_every=save_every,
            evaluate=lambda model, key: {"norm": jnp.abs(model["w"]).sum()}, evaluate_every=10,
            callbacks=[callback], quiet=True,
        )
    np.save(folder / f"{name}.npy", np.asarray(result.model["w"]))

for line in sys.stdin:
    name, slow, save_every = line.split()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(name, float(slow), int(save_every))
            code = 0
        except BaseException:
            traceback.print_exc()
        os.write(1, b".")
        os._exit(code)
    os.write(1, b"%d\\n" % child)
    _, status = os.waitpid(child, 0)
    os.write(1, b"=%d\\n" % status)
"""


class Nursery:
    def __init__(self, folder: Path, steps: int):
        (folder / "nursery.py").write_text(NURSERY.replace("STEPS", str(steps)))
        self.errors = (folder / "errors.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, folder / "nursery.py", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.orders, self.reports = self.process.stdin, self.process.stdout

    def live(self, name: str, slow: float, save_every: int, kill_after=None, at_once=False) -> int:
        """Lets one trainer live; returns its status, as from `waitpid`."""
        self.orders.write(f"{name} {slow} {save_every}\n".encode())
        self.orders.flush()
        child = int(self.reports.readline())
        if kill_after is not None:
            if not at_once and self.reports.read(1) != b"+":
                self.fail()
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        return int(self.reports.readline().rpartition(b"=")[2])

    def fail(self):
        self.errors.seek(0)
        raise AssertionError(self.errors.read())

    def close(self):
        self.orders.close()
        self.process.wait()
        self.errors.close()


def rows(path):
    """The rows without what depends on the clock."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "step_ms", "examples/s")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


@pytest.mark.parametrize("lives", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_times_ends_as_an_unbroken_one(tmp_path, lives):
    chance = np.random.default_rng(0)
    nursery = Nursery(tmp_path, steps=800)
    try:
        if nursery.live("whole", 0.0, 10_000):
            nursery.fail()
        unfinished = []
        for life in range(20):
            if life >= lives and unfinished:
                break
            # Checkpoints follow one another so closely that most kills fall into a save; every
            # fourth falls into starting, restoring or compiling.
            at_once = life % 4 == 3
            after = chance.uniform(0, 0.8 if at_once else 0.4)
            status = nursery.live("killed", 0.002, 4, after, at_once)
            assert status == signal.SIGKILL, status
            unfinished += [*(tmp_path / "killed" / "checkpoints").glob("*tmp*")]
        assert unfinished, "no kill fell into a save"
        if nursery.live("killed", 0.0, 10_000):
            nursery.fail()
    finally:
        nursery.close()
    np.testing.assert_array_equal(np.load(tmp_path / "killed.npy"), np.load(tmp_path / "whole.npy"))
    found, wanted = rows(tmp_path / "killed"), rows(tmp_path / "whole")
    assert [row["step"] for row in found] == sorted({row["step"] for row in found})
    assert found == wanted
    table = pl.read_parquet(tmp_path / "killed" / "metrics.parquet")
    assert table["step"].to_list() == [row["step"] for row in wanted]


PAIR = """
import sys, time
import jax, jax.numpy as jnp, numpy as np, optax
from chapbook.core import Batches, Run, arrays, fit, init

folder, port, process, together = sys.argv[1:]
init(f"127.0.0.1:{port}", 2, int(process))
x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)

class Slow(Batches):
    def take(self, part):
        time.sleep(0.01)
        return super().take(part)

def callback(step, model_fn, row):
    print("row", flush=True)

with Run(folder, {}, writer=process == "0") as run:
    result = fit(
        lambda model, batch, key: jnp.mean((batch["x"] @ model - batch["y"]) ** 2),
        jnp.ones(4), optax.adam(0.01), Slow(arrays(x=x, y=x.sum(1) + x[:, 0]), 8), steps=100_000,
        key=jax.random.key(0), run=run, log_every=5, callbacks=[callback],
        steps_per_dispatch=int(together),
    )
print("ended", result.reason, result.step, flush=True)
"""


@pytest.mark.parametrize("together", [1, 3])
def test_of_two_processes_one_is_told_and_both_save_the_same_step(tmp_path, together):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (tmp_path / "pair.py").write_text(PAIR)
    command = [sys.executable, tmp_path / "pair.py", tmp_path / "run", port]
    pair = [
        subprocess.Popen(
            [*command, str(process), str(together)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for process in range(2)
    ]
    try:
        for process in pair:
            # Gloo speaks on stdout too, so the first line may be its.
            assert process.stdout is not None and process.stderr is not None
            while (line := process.stdout.readline()) != "row\n":
                assert line, process.stderr.read()
        pair[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=120) for process in pair]
    finally:
        for process in pair:
            process.kill()
    ends = [out.splitlines()[-1].split() for out, _ in said]
    assert ends[0] == ends[1] and ends[0][:2] == ["ended", "preempted"], said
    step = int(ends[0][2])
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [str(step)]
    assert "stopped by SIGTERM" in said[0][1] and "stopped by SIGTERM" not in said[1][1]

    def alone(run, steps):
        x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
        return fit(
            lambda model, batch, key: jnp.mean((batch["x"] @ model - batch["y"]) ** 2),
            jnp.ones(4), optax.adam(0.01), Batches(arrays(x=x, y=x.sum(1) + x[:, 0]), 8),
            steps=steps, key=jax.random.key(0), run=run, log_every=5,
        )  # fmt: skip

    with Run(tmp_path / "run", {}) as run:
        resumed = alone(run, step + 10)
    whole = alone(None, step + 10)
    np.testing.assert_allclose(resumed.model, whole.model, rtol=1e-5)
    np.testing.assert_allclose(resumed.metrics["loss"], whole.metrics["loss"], rtol=1e-4)
