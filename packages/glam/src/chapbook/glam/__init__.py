"""Sparse language models with a mixture of experts, from raw text to few-shot scores."""

from chapbook.glam.moments import Moments, merge, moments, textbook_variance

__all__ = ["Moments", "merge", "moments", "textbook_variance"]
