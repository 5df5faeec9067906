"""The most probable classes of images; needs neither JAX nor the rest of the library."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Label:
    """A class and its probability."""

    index: int
    name: str  # the index as a string if the file has no class names
    probability: float


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits `[..., k]`, float32."""
    logits = logits.astype(np.float32)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def top_labels(
    probabilities: np.ndarray, class_names: Sequence[str], top: int
) -> list[list[Label]]:
    """The `top` most probable classes of each row, in descending order of probability."""
    best = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]

    def label(index: int, probability: float) -> Label:
        return Label(index, class_names[index] if class_names else str(index), probability)

    return [
        [label(int(i), float(row[i])) for i in order]
        for row, order in zip(probabilities, best, strict=True)
    ]
