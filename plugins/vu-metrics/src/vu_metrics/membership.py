"""Membership inference: which numbers give a training image away, and who reads them."""

from __future__ import annotations

from typing import cast

import attrs
import numpy as np
from numpy.typing import NDArray

from vu_metrics.answers import Answers, Labels, Logits
from vu_metrics.intervals import Floats, Outcomes

LEAST = 1e-30
"""Smallest argument of a logarithm."""
SPREAD = 1e-3
"""Smallest standard deviation of logit-scaled confidences in `lira`, so that equal ones have a likelihood."""
HIGH_FOR_MEMBERS = {"confidence": 1, "correctness": 1, "entropy": -1, "m_entropy": -1, "m_entropy_salun_compat": -1}
"""Whether a feature is expected to be larger or smaller for a member."""


def probabilities(logits: Logits) -> Floats:
    """Return the softmax of logits ``(N, K)``."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def log(x: Floats) -> Floats:
    """Return the natural logarithm of ``max(x, 1e-30)``."""
    return np.asarray(np.log(np.maximum(x, LEAST)))


def entropy(p: Floats) -> Floats:
    """Return ``H = -sum_i p_i log p_i`` per row, ``(N,)``, in nats.

    Example:
        >>> entropy(np.array([[0.7, 0.2, 0.1]])).round(6).item()
        0.801819
    """
    return np.asarray(-(p * log(p)).sum(axis=1))


def m_entropy(p: Floats, y: Labels) -> Floats:
    """Return the modified entropy: small where the right class is likely, large where a wrong one is.

    ``M = -(1 - p_y) log p_y - sum_{i != y} p_i log(1 - p_i)`` with logarithms of at least 1e-30.

    Args:
        p: probabilities ``(N, K)``.
        y: right classes ``(N,)``.

    Returns:
        ``(N,)``, in nats.

    Example:
        >>> m_entropy(np.array([[0.7, 0.2, 0.1]]), np.array([0])).round(6).item()
        0.162167

    Source: Song and Mittal 2021, arXiv 2003.10595.
    """
    rows = np.arange(len(p))
    terms = p * log(1 - p)  # (N, K)  # fmt: skip
    terms[rows, y] = (1 - p[rows, y]) * log(p[rows, y])
    return np.asarray(-terms.sum(axis=1))


def m_entropy_salun_compat(p: Floats, y: Labels) -> Floats:
    """Return the modified entropy as the released code of SalUn computes it, which is not `m_entropy`.

    It takes ``log p_i`` in place of ``log(1 - p_i)``, and exchanges ``p`` for ``1 - p`` in the columns of *all* classes
    that occur in the batch, in every row: the number of one image depends on the others. ``p`` is one batch.

    Example:
        >>> p = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
        >>> m_entropy_salun_compat(p, np.array([0, 1])).round(4).tolist()
        [1.6248, 2.3472]
    """
    weights = p.copy()
    weights[:, y] = 1 - p[:, y]
    return np.asarray(-(weights * log(p)).sum(axis=1))


def features(answers: Answers) -> dict[str, Floats]:
    """Return every feature that an attack may read, each ``(N, D)``; D is 1 but for ``probability``, where it is K."""
    p, y = probabilities(answers.logits), answers.labels
    scalars = {
        "correctness": answers.right.astype(np.float64),
        "confidence": p[np.arange(len(p)), y],
        "entropy": entropy(p),
        "m_entropy": m_entropy(p, y),
        "m_entropy_salun_compat": m_entropy_salun_compat(p, y),
    }
    return {**{name: values[:, None] for name, values in scalars.items()}, "probability": p}


@attrs.frozen
class Rows:
    """Which images an attack learns from: rows of the retain table, and of the unseen one."""

    members: NDArray[np.int64]
    others: NDArray[np.int64]


def drawn_rows(retained: int, unseen: int, *, seed: int, first: bool = False) -> Rows:
    """Choose as many members as non-members, ``min(retained, unseen)`` of each.

    Args:
        retained: retain images that the model was trained on.
        unseen: images that no model has seen.
        seed: of the draw without replacement.
        first: take the first members instead, as the released code of SalUn does.
    """
    n, draws = min(retained, unseen), np.random.default_rng(seed)
    members = np.arange(n) if first else np.sort(draws.choice(retained, n, replace=False))
    others = np.arange(unseen) if n == unseen else np.sort(draws.choice(unseen, n, replace=False))
    return Rows(members, others)


def svc_attack(members: Floats, others: Floats, targets: Floats) -> Outcomes:
    """Tell for each target whether a support vector machine takes it for a non-member.

    C = 3, kernel ``exp(-gamma |x - x'|^2)`` with gamma = 1 / D (``gamma="auto"``).

    Args:
        members: features ``(M, D)``.
        others: features of non-members, ``(M', D)``.
        targets: ``(N, D)``.

    Returns:
        ``(N,)``; its mean is the MIA efficacy.
    """
    from sklearn.svm import SVC

    known = np.concatenate([members, others])
    truth = np.concatenate([np.ones(len(members)), np.zeros(len(others))])
    # Without a number of its own the machine would draw one from the global generator.
    machine = SVC(C=3, kernel="rbf", gamma="auto", random_state=0).fit(known, truth)
    return np.asarray(machine.predict(targets) == 0)


def threshold_attack(members: Floats, others: Floats, targets: Floats) -> Outcomes:
    """Tell for each target whether it lies below the best threshold on one number that is high for members.

    The threshold t maximises ``mean(members >= t) + mean(others < t)``; of several, it is the lowest.

    Args:
        members: ``(M,)``.
        others: of non-members, ``(M',)``.
        targets: ``(N,)``.

    Example:
        >>> threshold_attack(np.array([3.0, 4.0]), np.array([1.0, 2.0]), np.array([2.5, 3.5])).tolist()
        [True, False]
    """
    thresholds = np.append(np.unique(np.concatenate([members, others])), np.inf)
    found = 1 - np.searchsorted(np.sort(members), thresholds) / len(members)
    refused = np.searchsorted(np.sort(others), thresholds) / len(others)
    return np.asarray(targets < thresholds[(found + refused).argmax()])


def area_under_curve(positives: Floats, negatives: Floats) -> float:
    """Return how often a positive lies above a negative, a tie counted half: the area under the ROC curve.

    Example:
        >>> area_under_curve(np.array([1.0, 3.0]), np.array([1.0, 2.0]))
        0.625
    """
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left")
    ties = np.searchsorted(ordered, positives, side="right") - below
    return float((below + ties / 2).sum() / (len(positives) * len(negatives)))


def scaled_confidence(confidence: Floats) -> Floats:
    """Return ``log(p / (1 - p))``, with logarithms of at least 1e-30: near to normal where p is not."""
    return np.asarray(log(confidence) - log(1 - confidence))


def lira(members: Floats, others: Floats, targets: Floats) -> Outcomes:
    """Tell for each target whether its confidence is likelier among non-members: LiRA with one model.

    The scaled confidences of members and of non-members are taken as two normal distributions; the larger density wins.

    Deviates: the attack of the paper fits both distributions per image, over many shadow models trained with and
    without it. Here they are fitted over images, on the one model there is ("lite").

    Args:
        members: confidences ``(M,)``.
        others: of non-members, ``(M',)``.
        targets: ``(N,)``.

    Source: Carlini et al. 2022, arXiv 2112.03570.
    """
    z = scaled_confidence(targets)

    def log_density(known: Floats) -> Floats:
        scaled = scaled_confidence(known)
        mean, spread = scaled.mean(), max(float(scaled.std()), SPREAD)
        return cast("Floats", -np.log(spread) - ((z - mean) / spread) ** 2 / 2)

    return np.asarray(log_density(members) < log_density(others))
