"""Claim: with a quarter of the room in the experts' buffers, a model takes less time as counted.

One model, all of whose routers fill by score, at several capacities C, which it is not trained for
again. What the experts' operations are less by at C = 0.25 than at C = 1 is a share of all
operations; at least four fifths of that share of the time must be saved. Best of interleaved
repeats.
"""

import argparse
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

from chapbook.vmoe import VisionTransformerMoE, VMoEConfig, flops

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report, seconds

CLAIM = "with less room in the experts' buffers a model takes less time, as its operations tell"
CAPACITIES = (1.0, 0.5, 0.25, 0.1)


def main() -> None:
    """Times a batch at each capacity in turn, and again."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--config", default="B/32,E=8,K=2,every=2")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    config = VMoEConfig.from_string(options.config, equal_experts=False, batch_priority=True)
    model = eqx.filter_jit(lambda key: VisionTransformerMoE(config, key=key))(jax.random.key(0))
    images = jax.random.uniform(
        jax.random.key(1), (options.images, config.image_size, config.image_size, 3), jnp.float32
    )
    predict = eqx.filter_jit(lambda model, images: model(images)[0])

    def timed(capacity: float):
        routed = model.with_routing(capacity_factor=capacity)
        return lambda: seconds(lambda: jax.block_until_ready(predict(routed, images)))

    taken = interleaved({str(c): timed(c) for c in CAPACITIES}, options.repeats, warm=2)
    best = {c: min(taken[str(c)]) for c in CAPACITIES}
    costs = {c: flops(model.with_routing(capacity_factor=c).config) for c in CAPACITIES}
    rows = []
    for c in CAPACITIES:
        counted = 1 - costs[c].flops / costs[1.0].flops
        saved = 1 - best[c] / best[1.0]
        rows.append({
            "capacity": c, "gflops_per_image": costs[c].flops / 1e9,
            "ms_per_image": 1e3 * best[c] / options.images, "operations_saved": counted,
            "time_saved": saved, "time_over_operations": saved / counted if counted else None,
            "wanted": 0.8 if c == 0.25 else None,
            "repeats_ms": [1e3 * t for t in taken[str(c)]],
        })  # fmt: skip
    distributions = ("chapbook-vmoe", "chapbook-core", "jax", "equinox")
    report(__file__, CLAIM, rows, distributions, options=vars(options))


if __name__ == "__main__":
    main()
