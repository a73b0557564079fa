"""Claim: routes come as a million rows a second, and loading keeps a step of B/16 busy.

Rows: `route_table` of a model with experts in all layers, less the time of the model's own forward
pass, measured in turn. Loading: JPEG photographs of 256 x 256 pixels are read, cropped, mirrored
and batched by two threads while B/16 trains; the share of the loop that the step alone would take
on batches in memory. Wanted: a million rows a second, and 0.9. Best of interleaved repeats.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from chapbook.core.data import Batches
from chapbook.vmoe import VisionTransformerMoE, VMoEConfig, read_images, route_table
from chapbook.vmoe.data import operations
from chapbook.vmoe.training import TrainConfig, normalized, objective

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report, seconds

CLAIM = "routes come as a million rows a second, and loading keeps a step of B/16 busy"


def routes(repeats: int) -> list[dict]:
    """Times tables of routes, and the forward passes within them."""
    config = VMoEConfig.from_string(
        "Ti/4,E=8,K=2,every=1", image_size=28, num_classes=10, classifier="gap",
        equal_experts=False, group_size=100 * 49,
    )  # fmt: skip
    model = eqx.filter_jit(lambda key: VisionTransformerMoE(config, key=key))(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (1000, 28, 28, 3)).astype(np.uint8)
    forward = eqx.filter_jit(lambda model, x: model.tokens(normalized(x)))

    def passed() -> None:
        for start in range(0, len(images), 100):
            jax.block_until_ready(forward(model, jnp.asarray(images[start : start + 100])))

    sides = {
        "whole": lambda: seconds(lambda: route_table(model, images)),
        "forward": lambda: seconds(passed),
    }
    taken = interleaved(sides, repeats, warm=1)
    best = {name: min(figures) for name, figures in taken.items()}
    count = route_table(model, images).height
    alone = best["whole"] - best["forward"]
    kept = {name: [1e3 * t for t in figures] for name, figures in taken.items()}
    return [
        {"what": "rows of routes a second", "figure": count / alone, "wanted": 1e6,
         "repeats_ms": kept},
        {"what": "rows of routes a second, forward pass included", "figure": count / best["whole"],
         "wanted": None},
    ]  # fmt: skip


def loading(steps: int, batch: int, repeats: int) -> list[dict]:
    """Times training of B/16 from files, from memory, and the loader alone."""
    config = VMoEConfig.from_string("B/16", num_classes=2)
    model = eqx.filter_jit(lambda key: VisionTransformerMoE(config, key=key))(jax.random.key(0))
    loss, rule = objective(TrainConfig()), optax.adam(1e-4)
    state = eqx.filter_jit(lambda model: rule.init(eqx.filter(model, eqx.is_inexact_array)))(model)

    @eqx.filter_jit
    def step(model, state, images):
        grads = eqx.filter_grad(lambda m: loss(m, images, jax.random.key(0))[0])(model)
        updates, state = rule.update(grads, state)
        return eqx.apply_updates(model, updates), state

    with tempfile.TemporaryDirectory() as folder:
        smooth = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3)).astype(np.uint8)
        for number, pixels in enumerate(smooth):
            path = Path(folder) / str(number % 2) / f"{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC).save(path)
        photos = read_images(folder)
        mapped = photos.load(*operations("crop", config.image_size))

        def loaded(workers: int) -> Batches:
            return Batches(photos, batch, map=mapped, workers=workers)

        first = next(iter(loaded(0)))

        def trained(batches) -> None:
            held, kept = model, state
            for _, images in zip(range(steps), batches, strict=False):
                held, kept = step(held, kept, images)
            jax.block_until_ready(eqx.filter(held, eqx.is_array))

        def read() -> None:
            for _ in zip(range(4 * steps), loaded(2), strict=False):
                pass

        sides = {
            "memory": lambda: seconds(trained, iter(lambda: first, None)),
            "files": lambda: seconds(trained, loaded(2)), "loader": lambda: seconds(read),
        }  # fmt: skip
        taken = interleaved(sides, repeats, warm=1)
    best = {name: min(figures) for name, figures in taken.items()}
    kept = {name: [1e3 * t for t in figures] for name, figures in taken.items()}
    return [
        {"what": "share of the loop that B/16 computes", "figure": best["memory"] / best["files"],
         "wanted": 0.9, "repeats_ms": kept},
        {"what": "images a second, B/16 training", "figure": steps * batch / best["files"],
         "wanted": None},
        {"what": "images a second, loader alone", "figure": 4 * steps * batch / best["loader"],
         "wanted": None},
    ]  # fmt: skip


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows = routes(options.repeats) + loading(options.steps, options.batch, options.repeats)
    distributions = ("chapbook-vmoe", "chapbook-core", "jax", "equinox", "polars", "pillow")
    report(__file__, CLAIM, rows, distributions, options=vars(options))


if __name__ == "__main__":
    main()
