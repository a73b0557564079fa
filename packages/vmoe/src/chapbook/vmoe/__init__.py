"""Vision Transformers with sparse experts, whose cost is a knob at inference.

Names are imported on first use, so that the command's `--help` loads no JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chapbook.core.experts import gshard_loss, importance_loss, load_loss
    from chapbook.vmoe.augmentation import (
        CentralCrop,
        HorizontalFlip,
        InceptionCrop,
        RandAugment,
        RandomShift,
        augment,
        mixup,
    )
    from chapbook.vmoe.config import VMoEConfig
    from chapbook.vmoe.cost import Cost, flops
    from chapbook.vmoe.data import Images, emoji, mnist5k, read_images
    from chapbook.vmoe.evaluating import features, probabilities, sweep
    from chapbook.vmoe.few_shot import Task, choose_penalty, fewshot
    from chapbook.vmoe.loading import adapt, load_timm, load_vit_npz, load_vmoe, parameters_of
    from chapbook.vmoe.model import RULES, RoutingMetrics, VisionTransformerMoE
    from chapbook.vmoe.moe import LayerRouting, MoE
    from chapbook.vmoe.official import inspect
    from chapbook.vmoe.router import NoisyTopKRouter, RoutingLosses
    from chapbook.vmoe.routes import route_table
    from chapbook.vmoe.routing_analysis import class_information, class_weights, loads, seriate
    from chapbook.vmoe.saving import load, save
    from chapbook.vmoe.training import TrainConfig, classification_loss, fit

_HOMES = {
    "augmentation": "CentralCrop HorizontalFlip InceptionCrop RandAugment RandomShift augment "
    "mixup",
    "config": "VMoEConfig",
    "data": "Images emoji mnist5k read_images",
    "evaluating": "features probabilities sweep",
    "few_shot": "Task choose_penalty fewshot",
    "cost": "Cost flops",
    "loading": "adapt load_timm load_vit_npz load_vmoe parameters_of",
    "model": "RULES RoutingMetrics VisionTransformerMoE",
    "moe": "LayerRouting MoE",
    "official": "inspect",
    "router": "NoisyTopKRouter RoutingLosses gshard_loss importance_loss load_loss",
    "routes": "route_table",
    "routing_analysis": "class_information class_weights loads seriate",
    "saving": "load save",
    "training": "TrainConfig classification_loss fit",
}
_HOME = {name: home for home, held in _HOMES.items() for name in held.split()}

__all__ = [
    "RULES", "CentralCrop", "Cost", "HorizontalFlip", "Images", "InceptionCrop", "LayerRouting",
    "MoE", "NoisyTopKRouter", "RandAugment", "RandomShift", "RoutingLosses", "RoutingMetrics",
    "Task", "TrainConfig", "VMoEConfig", "VisionTransformerMoE", "adapt", "augment",
    "choose_penalty", "class_information", "class_weights", "classification_loss", "emoji",
    "features", "fewshot", "fit", "flops", "gshard_loss", "importance_loss", "inspect", "load",
    "load_loss", "load_timm", "load_vit_npz", "load_vmoe", "loads", "mixup", "mnist5k",
    "parameters_of", "probabilities", "read_images", "route_table", "save", "seriate", "sweep",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'chapbook.vmoe' has no attribute {name!r}")
    return getattr(import_module(f"chapbook.vmoe.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
