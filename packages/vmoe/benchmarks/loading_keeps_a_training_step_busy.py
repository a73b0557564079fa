"""Claim: files are read, cropped and batched while a model trains, and do not hold it up.

B/16 trains on JPEG photographs of 256 x 256 pixels, which two threads read, crop, mirror and batch
meanwhile, and on one batch in memory, in turn. The share of the first that the second takes is what
the model computes. Medians of interleaved repeats. Wanted: nine tenths.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax
from PIL import Image

from chapbook.core.data import Batches
from chapbook.vmoe import VisionTransformerMoE, VMoEConfig, read_images
from chapbook.vmoe.data import operations
from chapbook.vmoe.training import TrainConfig, objective

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report, seconds

CLAIM = "files are read, cropped and batched while a model trains, and do not hold it up"
LOADED = 32  # batches of the loader alone


def photographs(folder: str | Path, count: int = 64) -> None:
    """Writes smooth pictures, which compress as photographs do, in two classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    for number, each in enumerate(pixels):
        path = Path(folder) / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(each).resize((256, 256), Image.Resampling.BICUBIC).save(path)


def main() -> None:
    """Times training from files, from memory, and the loader alone."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--config", default="B/16")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    config = VMoEConfig.from_string(options.config, num_classes=2)
    model = eqx.filter_jit(lambda key: VisionTransformerMoE(config, key=key))(jax.random.key(0))
    loss, rule = objective(TrainConfig()), optax.adam(1e-4)
    state = eqx.filter_jit(lambda model: rule.init(eqx.filter(model, eqx.is_inexact_array)))(model)

    @eqx.filter_jit
    def step(model, state, batch):
        grads = eqx.filter_grad(lambda m: loss(m, batch, jax.random.key(0))[0])(model)
        updates, state = rule.update(grads, state)
        return eqx.apply_updates(model, updates), state

    def trained(batches: Iterable) -> None:
        held, kept = model, state
        for _, batch in zip(range(options.steps), batches, strict=False):
            held, kept = step(held, kept, batch)
        jax.block_until_ready(eqx.filter(held, eqx.is_array))

    with tempfile.TemporaryDirectory() as folder:
        photographs(folder)
        photos = read_images(folder)
        mapped = photos.load(*operations("crop", config.image_size))

        def loaded(workers: int) -> Batches:
            return Batches(photos, options.batch, map=mapped, workers=workers)

        first = next(iter(loaded(0)))

        def read() -> None:
            for _ in zip(range(LOADED), loaded(2), strict=False):
                pass

        sides = {
            "files": lambda: seconds(trained, loaded(2)),
            "memory": lambda: seconds(trained, iter(lambda: first, None)),
            "loader": lambda: seconds(read),
        }
        taken = interleaved(sides, options.repeats, warm=1)
    middle = {name: statistics.median(figures) for name, figures in taken.items()}
    found = {
        "model": options.config,
        "share_computed": middle["memory"] / middle["files"],
        "wanted": 0.9,
        "images_per_second": options.steps * options.batch / middle["files"],
        "loader_alone_images_per_second": LOADED * options.batch / middle["loader"],
        "repeats_ms": {name: [1e3 * t for t in figures] for name, figures in taken.items()},
    }
    distributions = ("chapbook-vmoe", "chapbook-core", "jax", "equinox", "pillow")
    report(__file__, CLAIM, [found], distributions, options=vars(options))


if __name__ == "__main__":
    main()
