"""The 1,797 handwritten digits that scikit-learn brings with it."""

import numpy as np

from tcl_jax.data.dataset import ArraySource


def load() -> tuple[ArraySource, ArraySource]:
    """Load the digits, 8 x 8, with their 17 grey levels spread over 0 ... 255.

    Returns:
        The training split, and the test split: a fifth of each class, always the same.
    """
    # Loaded here because scikit-learn takes a second to import and only this needs it.
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = targets.astype(np.int32)
    rng = np.random.default_rng(0)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_test[members[: round(len(members) / 5)]] = True
    # Consecutive digits were written by the same person: a prefix of a split should not be.
    train, test = (rng.permutation(np.flatnonzero(chosen)) for chosen in (~is_test, is_test))
    return ArraySource(images[train], labels[train]), ArraySource(images[test], labels[test])
