"""Training with label differential privacy."""
