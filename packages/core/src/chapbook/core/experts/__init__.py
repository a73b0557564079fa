"""Mixtures of experts: which tokens go to which experts, there and back, and what happened.

The module knows nothing of images, text or tasks. It takes a router's probabilities, or ready
assignments, and works on one device and on a mesh. The way of a token:

- `router_logits`, then `top_k` or `top_2_gshard` (or `hash_route`, `fixed`) make an `Assignment`.
- `capacity` and `plan` give each choice a place at its expert, or drop it.
- `dispatch` and `combine` move tokens to experts and back.
- `moe` is all of this for any expert function, inside `jax.shard_map` as well. `Experts` is a bank
  of feed-forward networks that calls it, and spreads itself over the mesh in force.
- `metrics` tell what happened; the losses teach the router to spread the load.
"""

from chapbook.core.experts.assignment import (
    Assignment,
    fixed,
    hash_route,
    router_logits,
    top_2_gshard,
    top_k,
)
from chapbook.core.experts.dispatch import combine, dispatch
from chapbook.core.experts.layer import Experts, moe
from chapbook.core.experts.losses import (
    gshard_loss,
    importance_loss,
    load_loss,
    switch_loss,
    z_loss,
)
from chapbook.core.experts.metrics import Metrics, metrics
from chapbook.core.experts.plan import Plan, capacity, plan

__all__ = [
    "Assignment", "Experts", "Metrics", "Plan", "capacity", "combine", "dispatch", "fixed",
    "gshard_loss", "hash_route", "importance_loss", "load_loss", "metrics", "moe",
    "plan", "router_logits", "switch_loss", "top_2_gshard", "top_k", "z_loss",
]  # fmt: skip
