"""Sparse language models with a mixture of experts, from raw text to few-shot scores.

Names are imported on first use, so that the command's `--help` loads no JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chapbook.glam.accounting import Cost, Energy, cost, energy, ladder, power
    from chapbook.glam.config import GLaMConfig
    from chapbook.glam.documents import read_documents
    from chapbook.glam.evaluating import evaluate
    from chapbook.glam.generating import Decoding, complete, generate
    from chapbook.glam.harness import GLaMLM
    from chapbook.glam.mixture import MixtureSampler, read_mixture
    from chapbook.glam.model import RULES, GLaM, RoutingMetrics
    from chapbook.glam.moe import LayerRouting, MoE
    from chapbook.glam.overlap import EvaluationOverlap, drop_duplicates, near_duplicates
    from chapbook.glam.packing import PackedDataset, write_shards
    from chapbook.glam.pareto import keep_probability, pareto_sample
    from chapbook.glam.quality import QualityClassifier
    from chapbook.glam.routing_analysis import favourites, routes
    from chapbook.glam.saving import in_precision, load, load_checkpoint, save, tokenizer_of
    from chapbook.glam.scoring import bits_per_byte, log_likelihoods
    from chapbook.glam.tasks import Task, read_task
    from chapbook.glam.tokenizer import ByteTokenizer, load_tokenizer, train_tokenizer
    from chapbook.glam.training import StabilityGuard, TrainConfig, evaluation, fit, schedule

_HOMES = {
    "accounting": "Cost Energy cost energy ladder power",
    "config": "GLaMConfig",
    "documents": "read_documents",
    "evaluating": "evaluate",
    "generating": "Decoding complete generate",
    "harness": "GLaMLM",
    "mixture": "MixtureSampler read_mixture",
    "model": "RULES GLaM RoutingMetrics",
    "moe": "LayerRouting MoE",
    "overlap": "EvaluationOverlap drop_duplicates near_duplicates",
    "packing": "PackedDataset write_shards",
    "pareto": "keep_probability pareto_sample",
    "quality": "QualityClassifier",
    "routing_analysis": "favourites routes",
    "saving": "in_precision load load_checkpoint save tokenizer_of",
    "scoring": "bits_per_byte log_likelihoods",
    "tasks": "Task read_task",
    "tokenizer": "ByteTokenizer load_tokenizer train_tokenizer",
    "training": "StabilityGuard TrainConfig evaluation fit schedule",
}
_HOME = {name: home for home, held in _HOMES.items() for name in held.split()}

__all__ = [
    "RULES", "ByteTokenizer", "Cost", "Decoding", "Energy", "EvaluationOverlap", "GLaM",
    "GLaMConfig", "GLaMLM", "LayerRouting", "MixtureSampler", "MoE", "PackedDataset",
    "QualityClassifier", "RoutingMetrics", "StabilityGuard", "Task", "TrainConfig",
    "bits_per_byte", "complete", "cost", "drop_duplicates", "energy", "evaluate", "evaluation",
    "favourites", "fit", "generate", "in_precision", "keep_probability", "ladder", "load",
    "load_checkpoint", "load_tokenizer", "log_likelihoods", "near_duplicates", "pareto_sample",
    "power", "read_documents", "read_mixture", "read_task", "routes", "save", "schedule",
    "tokenizer_of", "train_tokenizer", "write_shards",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'chapbook.glam' has no attribute {name!r}")
    return getattr(import_module(f"chapbook.glam.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
