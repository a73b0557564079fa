"""Claim: a table of routes takes a microsecond a row, beside the model's own pass.

`route_table` beside the same batches, from which a program of the same outputs is run and fetched,
in turn; what the table takes longer is its own time. The model is narrow and has experts in all
layers, so that there are many rows to a pass. Medians of interleaved repeats. Wanted: a million
rows a second.
"""

import argparse
import statistics
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from chapbook.core.data import Batches, arrays
from chapbook.vmoe import VisionTransformerMoE, VMoEConfig, route_table
from chapbook.vmoe.training import normalized

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report, seconds

CLAIM = "a table of routes takes a microsecond a row, beside the model's own pass"
BATCH = 100


@eqx.filter_jit
def routed(model, images, valid):
    """Computes what the table is made of."""
    _, layers = model.tokens(normalized(jnp.asarray(images)), valid=jnp.asarray(valid))
    return [(each.expert, each.weight, each.position, each.kept) for each in layers]


def main() -> None:
    """Times tables, and the passes within them."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--config", default="Ti/4,width=32,mlp=64,E=8,K=2,every=1")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    config = VMoEConfig.from_string(
        options.config, image_size=28, num_classes=10, classifier="gap", equal_experts=False,
        group_size=BATCH * 49,
    )  # fmt: skip
    model = eqx.filter_jit(lambda key: VisionTransformerMoE(config, key=key))(jax.random.key(0))
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (options.images, 28, 28, 3)).astype(np.uint8)

    def passed() -> None:
        for batch in Batches(arrays(image=images), BATCH, shuffle=False, epochs=1, drop_last=False):
            jax.device_get(routed(model, batch["image"], batch["mask"]))

    rows = route_table(model, images).height
    sides = {
        "table": lambda: seconds(route_table, model, images),
        "pass": lambda: seconds(passed),
    }
    taken = interleaved(sides, options.repeats, warm=1)
    own = statistics.median(a - b for a, b in zip(taken["table"], taken["pass"], strict=True))
    found = {
        "rows": rows,
        "rows_per_second": rows / own,
        "with_the_pass": rows / statistics.median(taken["table"]),
        "wanted": 1e6,
        "repeats_ms": {name: [1e3 * t for t in figures] for name, figures in taken.items()},
    }
    distributions = ("chapbook-vmoe", "chapbook-core", "jax", "equinox", "polars")
    report(__file__, CLAIM, [found], distributions, options=vars(options))


if __name__ == "__main__":
    main()
