"""Claim: greedy decoding is 1.5x as fast as transformers' `generate`, at half memory's speed.

`glam.complete`, tokenizer and all, against `generate` of a Qwen3-MoE, the model of transformers
that can have experts in every other layer: as many layers, as wide, as many heads, as many experts
of which a token meets two, as many parameters (its experts are gated and two thirds as wide), and
weights drawn at random. Our layers are unrolled, as `glam generate` has them. Prompts are short. A
token's time is that of all tokens after the first, so that reading the prompt is left out on both
sides; the best of interleaved repeats counts.

What memory allows for a single sequence: all weights that a token meets must be read for each, at
the speed at which all threads together read, or copy (both ways counted), whichever is greater.

Both sides use all processors that the process may. Needs the packages in `requirements.txt`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from chapbook.glam import Decoding, GLaM, GLaMConfig, complete, cost

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report, seconds

CLAIM = "greedy decoding is 1.5x as fast as transformers' generate, at half memory's speed"
WANTED, WANTED_SHARE = 1.5, 0.5
PROMPT = 8


class Numbers:
    """A tokenizer whose texts are numbers of tokens."""

    def __init__(self, vocab_size: int):
        self.vocab_size, self.end = vocab_size, vocab_size - 1

    def encode(self, text: str) -> np.ndarray:
        """Returns the numbers of a text."""
        return np.array([int(each) for each in text.split()], np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of numbers."""
        return "".join(f" {each}" for each in ids)


def peer_of(config: GLaMConfig) -> Qwen3MoeForCausalLM:
    """Returns the peer of the same sizes."""
    torch.manual_seed(0)
    peer = Qwen3MoeForCausalLM(Qwen3MoeConfig(
        vocab_size=config.vocab_size, hidden_size=config.embed, intermediate_size=config.hidden,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads, head_dim=config.head_dim, decoder_sparse_step=2,
        num_experts=config.num_experts, num_experts_per_tok=2, norm_topk_prob=True,
        moe_intermediate_size=2 * config.expert_width // 3, tie_word_embeddings=True,
        max_position_embeddings=config.context, bos_token_id=None, eos_token_id=None,
        pad_token_id=0,
    ))  # fmt: skip
    return peer.eval()


def ours(model: GLaM, words: Numbers, prompts: np.ndarray, new: int) -> float:
    """Returns the seconds of so many new tokens for each prompt."""
    texts = [" ".join(map(str, row)) for row in prompts]
    how = Decoding(max_new_tokens=new, stop=())
    found = []
    taken = seconds(lambda: found.extend(complete(model, words, texts, how, batch_size=len(texts))))
    if any(len(each.tokens) != new for each in found):
        sys.exit("a random model wrote the end of a document; take another --seed")
    return taken


def theirs(peer: Qwen3MoeForCausalLM, prompts: np.ndarray, new: int) -> float:
    """Returns the seconds of so many new tokens for each prompt."""
    tokens = torch.from_numpy(prompts)
    with torch.inference_mode():
        return seconds(lambda: peer.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, do_sample=False,
        ))  # fmt: skip


def bandwidth(size: int, repeats: int = 5) -> float:
    """Returns the bytes per second that all threads read, or read and write, at best."""
    source = torch.ones(size // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    reading = min(seconds(source.sum) for _ in range(repeats))
    copying = min(seconds(target.copy_, source) for _ in range(repeats))
    return max(size / reading, 2 * size / copying)


def main() -> None:
    """Prints the speeds, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--config", default="0.1B/8E,vocab=32000,context=1024")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--ways", nargs="+", default=["eager", "grouped_mm"])
    parser.add_argument("--memory", type=int, default=1 << 29, help="bytes that are read or copied")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    config = GLaMConfig.from_string(given.config)
    words = Numbers(config.vocab_size)
    model = eqx.filter_jit(partial(GLaM, config))(key=jax.random.key(given.seed)).unrolled()
    peer = peer_of(config)
    counts = {"chapbook": cost(config).parameters}
    read = 4 * cost(config).activated
    rows = []
    for batch in given.batches:
        draw = np.random.default_rng(given.seed)
        prompts = draw.integers(1, config.vocab_size - 1, (batch, PROMPT))

        def peer_side(way: str, new: int, prompts: np.ndarray = prompts) -> float:
            peer.set_experts_implementation(way)
            return theirs(peer, prompts, new)

        sides = {}
        for new in (1, given.new):
            sides["chapbook", new] = partial(ours, model, words, prompts, new)
            for way in given.ways:
                name = f"transformers, {way}"
                sides[name, new] = partial(peer_side, way, new)
                counts[name] = sum(each.numel() for each in peer.parameters())
        speed = bandwidth(given.memory)
        taken = interleaved(sides, given.repeats, warm=1)
        each = {side: min(figures) for side, figures in taken.items()}
        token = {n: (each[n, given.new] - each[n, 1]) / (given.new - 1) for n in counts}
        best = min(found for name, found in token.items() if name != "chapbook")
        for name, found in token.items():
            alone = name == "chapbook" and batch == 1
            rows.append({
                "side": name, "batch": batch, "parameters": counts[name],
                "tokens_per_s": batch / found, "first_token_ms": 1e3 * each[name, 1],
                "times_as_fast_as_the_best_peer": best / found,
                "wanted": WANTED if name == "chapbook" else None,
                "of_what_memory_allows": read / speed / found if alone else None,
                "wanted_of_it": WANTED_SHARE if alone else None,
                "GB_per_s": speed / 1e9,
                "repeats_s": taken[name, given.new], "repeats_first_s": taken[name, 1],
            })  # fmt: skip
    report(
        __file__, CLAIM, rows, ("chapbook-glam", "jax", "torch", "transformers"),
        options=vars(given), threads=threads, MB_read_per_token=read / 1e6,
    )  # fmt: skip


if __name__ == "__main__":
    main()
