"""Which class was taken for which: confusion matrices, and the accuracy of each class.

For example, with the images of ``snn.data.load_images``::

    confusion = Confusion()
    rows = evaluate("safe.h5", images, ["clean", "awgn:20"], confusion=confusion)
    counts = confusion.matrix("safe", "awgn:20")  # (classes, classes), true classes in rows
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from snn.data import few
from snn.runtime.errors import check


class Confusion:
    """Counts of true and predicted classes, which an evaluation fills as it goes.

    :func:`hybrid.evaluate` counts the class with the highest logit of each image, for networks with all of their paths.
    """

    def __init__(self) -> None:
        self._classes: tuple[str, ...] = ()
        self._counts: dict[tuple[str, str, int], np.ndarray] = {}

    def add(
        self, model: str, condition: str, noise_seed: int, true: Tensor, predicted: Tensor, classes: Sequence[str]
    ) -> None:
        """Count images of classes ``true`` (N,) that were taken for ``predicted`` (N,), indices into ``classes``.

        A predicted class beyond these is named by its number. Raises :class:`UserError` for other classes than those
        that were counted before.
        """
        check(
            all(name == known for name, known in zip(classes, self._classes, strict=False)),
            f"images of classes {few(classes)} cannot be counted with those of {few(self._classes)}: give a "
            "Confusion of their own",
        )
        count = max(len(classes), len(self._classes), int(predicted.max()) + 1)
        known = (*classes, *self._classes[len(classes) :])
        self._classes = (*known, *map(str, range(len(known), count)))
        pairs = (count * true + predicted).numpy()
        counted = np.bincount(pairs, minlength=count * count).reshape(count, count)
        self._counts[model, condition, noise_seed] = counted

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], classes: Sequence[str] = ()) -> "Confusion":
        """The counts of :meth:`rows`; ``classes`` come first, others as the rows name them."""
        rows = list(rows)
        named = (str(row[column]) for column in ("true_class", "predicted_class") for row in rows)
        found = cls()
        found._classes = tuple(dict.fromkeys((*classes, *named)))
        place = {name: number for number, name in enumerate(found._classes)}
        for row in rows:
            key = str(row["model"]), str(row["condition"]), int(row["noise_seed"])
            counts = found._counts.setdefault(key, np.zeros((len(place),) * 2, np.int64))
            counts[place[row["true_class"]], place[row["predicted_class"]]] += int(row["images"])
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of rows and columns."""
        return self._classes

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        return list(dict.fromkeys(model for model, _, _ in self._counts))

    @property
    def conditions(self) -> list[str]:
        """The conditions."""
        return list(dict.fromkeys(condition for _, condition, _ in self._counts))

    def matrix(self, model: str, condition: str, noise_seed: int | None = None) -> np.ndarray:
        """Number of images by true class (rows) and predicted class (columns), int64 (classes, classes).

        Summed over noise seeds, unless one is given. Raises :class:`UserError` for what was not counted.
        """
        found = [
            counts
            for (name, under, seed), counts in self._counts.items()
            if (name, under) == (model, condition) and noise_seed in (None, seed)
        ]
        check(
            bool(found),
            f"nothing was counted for model {model}, condition {condition}, noise seed {noise_seed}; there are "
            f"models {', '.join(self.models) or 'none'} and conditions {', '.join(self.conditions) or 'none'}",
        )
        total = np.zeros((len(self._classes),) * 2, np.int64)
        for counts in found:
            total[: len(counts), : len(counts)] += counts
        return total

    def class_accuracy(self, model: str, condition: str) -> dict[str, float]:
        """Accuracy of each class, in %, by its name; classes without images are left out."""
        counts = self.matrix(model, condition)
        images = counts.sum(1)
        return {
            name: 100 * float(counts[number, number] / images[number])
            for number, name in enumerate(self._classes)
            if images[number]
        }

    @property
    def first(self) -> str:
        """``clean`` if it was measured, else the first condition."""
        return "clean" if "clean" in self.conditions else self.conditions[0]

    def strongest(self) -> str:
        """The condition beside :attr:`first` with the lowest accuracy, on average over models; else the first."""
        others = [condition for condition in self.conditions if condition != self.first] or [self.first]
        return min(others, key=lambda condition: sum(self._accuracy(name, condition) for name in self.models))

    def _accuracy(self, model: str, condition: str) -> float:
        counts = self.matrix(model, condition)
        return float(np.trace(counts) / counts.sum())

    def rows(self) -> list[dict[str, str | int]]:
        """A row for each model, condition, noise seed and pair of true and predicted class that occurs."""
        rows: list[dict[str, str | int]] = []
        order = self.models
        for (model, condition, seed), counts in sorted(self._counts.items(), key=lambda item: order.index(item[0][0])):
            for true, predicted in np.argwhere(counts):
                rows.append(
                    {
                        "model": model,
                        "condition": condition,
                        "noise_seed": seed,
                        "true_class": self._classes[true],
                        "predicted_class": self._classes[predicted],
                        "images": int(counts[true, predicted]),
                    }
                )
        return rows
