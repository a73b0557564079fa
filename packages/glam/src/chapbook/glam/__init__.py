"""Sparse language models with a mixture of experts, from raw text to few-shot scores."""
