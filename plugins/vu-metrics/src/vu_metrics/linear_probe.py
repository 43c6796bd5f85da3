"""Whether the features still tell apart what was forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import numpy as np

from vu_core import Evaluation, Model, Observations, Run, Score, Source, Status, digest, setting
from vu_metrics.answers import Questions, as_json, classifier, embed, neutral, outcomes
from vu_metrics.intervals import Floats, Outcomes
from vu_metrics.shares import share_score

if TYPE_CHECKING:
    from vu_metrics.answers import Labels

TABLES = {"unseen_forget": "forget", "unseen_retain": "retain"}
PROBES = {"probe": "a linear classifier of the features", "knn": "the nearest features"}


@attrs.frozen
class LinearProbeConfig:
    """Settings of `LinearProbe`."""

    penalty: float = setting(1.0, help="C of the logistic regression: the larger, the less its weights are held", gt=0)
    neighbours: int = setting(5, help="how many training images vote", ge=1)
    batch_size: int = setting(256, help="images looked at a time", ge=1, speed_only=True)


class LinearProbe:
    """Read the forgotten class out of the features, without the head of the model.

    Features of the forget and retain images that the run trained on teach two probes, which then name the class of
    unseen images:

    - *probe*: multinomial logistic regression on features scaled to mean 0 and variance 1 ``(C = penalty)``.
    - *knn*: the majority of the ``neighbours`` nearest training images by cosine; of a tie, the class of lowest number.

    ``probe_forget_accuracy``, ``probe_retain_accuracy``, ``knn_forget_accuracy`` and ``knn_retain_accuracy`` tell how
    often they are right. A model whose head alone has changed keeps all of them. They have no right value by
    themselves: a model that never saw the class has features that tell it apart as well; compare with
    ``measure.reference``.

    Intervals, 95 %: Wilson, Newcombe's method 10 for the paired change.

    Source: Alain and Bengio 2016, arXiv 1610.01644.
    """

    Config: ClassVar[type[LinearProbeConfig]] = LinearProbeConfig
    source: ClassVar[Source] = Source(
        "Understanding intermediate layers using linear classifier probes, Alain and Bengio 2016",
        "https://arxiv.org/abs/1610.01644",
        "paper",
    )
    version: ClassVar[str] = "1"
    uses_train: ClassVar[bool] = True

    def __init__(self, config: LinearProbeConfig) -> None:
        self.config = config
        self._questions = Questions("linear-probe", "forget", "retain", *TABLES)

    def fingerprint(self, evaluation: Evaluation) -> str:
        """Return a hash of the version, the settings, and the images and labels of every table."""
        settings = f"{self.config.penalty} {self.config.neighbours}"
        return digest("linear-probe", self.version, settings, self._questions.content(evaluation))

    def observe(self, model: Model, evaluation: Evaluation, run: Run) -> Observations:
        """Return per probe and side whether the class of each unseen image is named.

        Raises:
            MeasureError: the model is no classifier, a table is missing or a feature is not finite.
        """
        asked = classifier(model, "linear-probe")
        self._questions.require(evaluation, "forget", "retain", *TABLES)
        tables = self._questions.prepared(model, evaluation, neutral(run))
        size = self.config.batch_size
        found = {
            name: tuple(
                part.double().cpu().numpy() for part in embed(asked, table, run, batch_size=size, metric="linear-probe")
            )
            for name, table in tables.items()
        }
        x, y = (np.concatenate([found[side][place] for side in ("forget", "retain")]) for place in (0, 1))
        named: dict[str, Any] = {}
        for table, side in TABLES.items():
            targets, right = found[table]
            named[f"probe_{side}_accuracy"] = as_json(self._probe(x, y, targets) == right)
            named[f"knn_{side}_accuracy"] = as_json(self._nearest(x, y, targets) == right)
        return named

    def scores(self, before: Observations, after: Observations, evaluation: Evaluation) -> tuple[Score, ...]:
        """Return the four accuracies. Raises: MeasureError on observations of other images."""
        tables = self._questions.require(evaluation, "forget", "retain", *TABLES)
        fingerprint, found = self.fingerprint(evaluation), []
        for probe, words in PROBES.items():
            for table, side in TABLES.items():
                name = f"{probe}_{side}_accuracy"
                was, now = (outcomes(seen, name, tables[table], "linear-probe") for seen in (before, after))
                text = f"how often {words} names the class of an unseen {side} image"
                found.append(share_score(name, was, now, fingerprint, text, "down" if side == "forget" else "up"))
        return tuple(found)

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Status, str]]:
        """Return nothing: features may tell a class apart that the model never saw."""
        return ()

    def _probe(self, x: Floats, y: Labels, targets: Floats) -> Outcomes:
        """Return the class that logistic regression gives each target."""
        from sklearn.linear_model import LogisticRegression

        mean, spread = x.mean(axis=0), x.std(axis=0)
        scale = np.where(spread > 0, spread, 1.0)
        machine = LogisticRegression(C=self.config.penalty, max_iter=1000).fit((x - mean) / scale, y)
        return np.asarray(machine.predict((targets - mean) / scale))

    def _nearest(self, x: Floats, y: Labels, targets: Floats) -> Outcomes:
        """Return the class that most of the nearest training images have."""
        from sklearn.neighbors import KNeighborsClassifier

        votes = min(self.config.neighbours, len(x))
        machine = KNeighborsClassifier(n_neighbors=votes, metric="cosine", algorithm="brute").fit(x, y)
        return np.asarray(machine.predict(targets))
