"""Prototypes that need no kernel, to compare distilled sets with: real examples and k-means."""

import numpy as np
from jaxtyping import Float, Int

from chapbook.core.errors import Error


def k_means(
    x: Float[np.ndarray, "n ..."], y: Int[np.ndarray, " n"], per_class: int, *, seed: int = 0
) -> tuple[Float[np.ndarray, "prototypes ..."], Int[np.ndarray, " prototypes"]]:
    """Returns the centroids that k-means finds in each class, and their classes.

    Args:
        x: Processed inputs.
        y: Their classes.
        per_class: Centroids of each.
        seed: Of the first centroids.

    Raises:
        Error: A class has fewer examples than that.
    """
    from sklearn.cluster import KMeans

    images, classes = [], []
    for each in np.unique(y):
        group = x[y == each].reshape((y == each).sum(), -1)
        if len(group) < per_class:
            raise Error(f"class {each} has {len(group)} examples, and {per_class} are needed")
        found = KMeans(per_class, random_state=seed).fit(group).cluster_centers_
        images.append(found.reshape(-1, *x.shape[1:]))
        classes += [each] * per_class
    return np.concatenate(images).astype(np.float32), np.array(classes)
