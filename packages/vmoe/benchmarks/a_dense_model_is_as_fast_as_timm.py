"""Claim: without experts, a model classifies as many images a second as timm's of the same sizes.

Both run on the CPU in float32 with the same number of threads, the best of interleaved repeats; the
peer in evaluation mode without gradients. Wanted: at least 1.0. Beside it the model with experts,
whose activated operations are those of the dense one with half of its blocks doubled.

The peer's weights are loaded into ours by way of a file, and the logits of both compared first, so
that what is timed is the same function.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import timm
import torch
from safetensors.torch import save_file

from chapbook.vmoe import VisionTransformerMoE, VMoEConfig, flops, load_timm

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report, seconds

CLAIM = "without experts, a model classifies as many images a second as timm's of the same sizes"


def main() -> None:
    """Times both sides in turn, and again."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--configs", nargs="+", default=["S/32", "B/16"])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    predict, rows = eqx.filter_jit(lambda model, x: model(x)[0]), []
    for line in options.configs:
        c = VMoEConfig.from_string(line)
        peer = timm.models.VisionTransformer(
            patch_size=c.patch_size, embed_dim=c.hidden_size, depth=c.num_layers,
            num_heads=c.num_heads, mlp_ratio=c.mlp_dim / c.hidden_size, num_classes=c.num_classes,
        ).eval()  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vit.safetensors"
            save_file(peer.state_dict(), path)
            ours = load_timm(path, num_heads=c.num_heads)
        images = np.random.default_rng(0).normal(
            size=(options.images, c.image_size, c.image_size, 3)
        ).astype(np.float32)  # fmt: skip
        theirs = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        sparse_config = VMoEConfig.from_string(f"{line},E=8,K=2,every=2", equal_experts=False)
        sparse = eqx.filter_jit(
            lambda key, config=sparse_config: VisionTransformerMoE(config, key=key)
        )(jax.random.key(0))  # fmt: skip
        with torch.inference_mode():
            expected = peer(theirs).numpy()
        apart = float(np.abs(np.asarray(predict(ours, images)) - expected).max())
        assert apart < 1e-3 * max(1.0, np.abs(expected).max()), apart

        def classified(peer=peer, theirs=theirs) -> None:
            with torch.inference_mode():
                peer(theirs)

        def timed(model: VisionTransformerMoE, images=images):
            return lambda: seconds(lambda: jax.block_until_ready(predict(model, images)))

        sides = {
            "timm": lambda run=classified: seconds(run), "ours": timed(ours),
            "ours, 8 experts, K = 2": timed(sparse),
        }  # fmt: skip
        taken = interleaved(sides, options.repeats, warm=2)
        best = {name: min(figures) for name, figures in taken.items()}
        counts = (flops(c).flops, flops(c).flops, flops(sparse_config).flops)
        for (name, found), operations in zip(best.items(), counts, strict=True):
            rows.append({
                "model": line, "side": name, "images_per_s": options.images / found,
                "over_timm": best["timm"] / found, "gflops_per_image": operations / 1e9,
                "gflops_per_s": operations * options.images / found / 1e9,
                "wanted": 1.0 if name == "ours" else None, "logits_differ": apart,
                "repeats_ms": [1e3 * t for t in taken[name]],
            })  # fmt: skip
    distributions = ("chapbook-vmoe", "chapbook-core", "jax", "equinox", "timm", "torch")
    report(__file__, CLAIM, rows, distributions, options=vars(options), threads=threads)


if __name__ == "__main__":
    main()
