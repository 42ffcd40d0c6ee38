"""The photos that a frozen run knows: what a checkpoint keeps of them, and how well a class would be refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from photo_classifier.data.checks import group_copies
from photo_classifier.data.folds import assign_folds
from photo_classifier.data.samples import Sample, Splits
from photo_classifier.features.loader import SplitFeatures
from photo_classifier.models.novelty import N_SCORES, Novelty, fit_novelty, fit_space, pooled
from photo_classifier.runtime.text import pluralize

N_FOLDS, N_PARTS = 40, 5  # the parts are of several folds each, where a class is left out as well
FEWEST = 10  # held-out photos that a figure is worth giving for
MOST_NAMED = 3  # classes
NO_FEATURES = (
    "no features were stored; start a new run with --freeze, and without --unfreeze_after, --cutmix and --views 0"
)
MOST_LEFT_OUT = 20  # classes that are left out in turn, the largest first; each takes a tenth of a second or so


@dataclass(frozen=True)
class KnownPhotos:
    """Photos to learn from, and photos that were held out, each by the fold that holds it out.

    `features` are (n, d) with `labels` and `folds`, int64 (n,); `held_out`, (m, d), has the centre views alone, as a
    prediction has, with `held_out_labels` and `held_out_folds`. A photo to learn from that no fold holds out is in
    fold -1.
    """

    features: torch.Tensor
    labels: torch.Tensor
    folds: torch.Tensor
    held_out: torch.Tensor
    held_out_labels: torch.Tensor
    held_out_folds: torch.Tensor

    def novelty(self) -> Novelty | None:
        """Returns the distances that a checkpoint keeps, or None if there are too few photos or classes."""
        scores = torch.full((len(self.held_out), N_SCORES), torch.nan)
        for fold in self.held_out_folds.unique().tolist():
            seen, asked = self.folds != fold, self.held_out_folds == fold
            if len(self.labels[seen].unique()) < 2:
                return None
            space = fit_space(self.features[seen], self.labels[seen])
            scores[asked] = space.scores(self.held_out[asked])
        if not len(scores):
            return None
        whole = space if seen.all() else fit_space(self.features, self.labels)
        return fit_novelty(whole, scores)

    def why_no_novelty(self, class_names: Sequence[str]) -> str:
        """Returns why `novelty` is None, and what to do."""
        for fold in self.held_out_folds.unique().tolist():
            left = set(self.labels[self.folds != fold].tolist())
            if len(left) < 2:
                gone = ", ".join([name for label, name in enumerate(class_names) if label not in left][:MOST_NAMED])
                return (
                    f"all photos of {gone} were held out at once, because they are a single photo, copies or one "
                    "group; add others, and start a new run"
                )
        return f"too few different photos were held out ({len(self.held_out)}); add photos, and start a new run"

    def few(self, class_names: Sequence[str]) -> list[str]:
        """Returns the classes of which fewer photos were held out than a figure needs."""
        counts = self.held_out_labels.bincount(minlength=len(class_names)).tolist()
        return [name for name, n in zip(class_names, counts, strict=True) if n < FEWEST]

    def refusal(self, class_names: Sequence[str]) -> list[dict]:
        """Returns for each class how well its photos would be told from held-out ones, had it been left out.

        `auroc` is the probability that a photo of that class has a larger distance than one of another class. Classes
        with few held-out photos are left out, as the figure of these says nothing.
        """
        parts, held_out_parts = self.folds % N_PARTS, self.held_out_folds % N_PARTS
        turns, rows = held_out_parts.unique().tolist(), []
        for n, (label, _) in enumerate(Counter(self.labels.tolist()).most_common(MOST_LEFT_OUT)):
            turn = turns[n % len(turns)] if turns else 0
            seen = (parts != turn) & (self.labels != label)
            is_unknown = self.held_out_labels == label
            is_known = (held_out_parts == turn) & ~is_unknown
            if len(self.labels[seen].unique()) < 2 or min(is_unknown.sum(), is_known.sum()) < FEWEST:
                continue
            space, known = fit_space(self.features[seen], self.labels[seen]), self.held_out[is_known]
            if novelty := fit_novelty(space, space.scores(known)):
                area = auroc(novelty.distances(known), novelty.distances(self.held_out[is_unknown]))
                rows.append((label, {"class": class_names[label], "auroc": area, "n_photos": int(is_unknown.sum())}))
        return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def known_photos(splits: Splits, features: Mapping[str, SplitFeatures], seed: int) -> KnownPhotos | None:
    """Returns the photos of a frozen run; None for another run, or if none could be read.

    Args:
        features: by split. Training photos are as they are trained on, those of validation as they are predicted. By
            folds these are the same photos; otherwise those of validation are held out.
    """
    if not features:
        return None
    train, valid = features["train"], features["valid"]
    folds = _many_folds(splits.train, seed) if splits.is_pooled else []
    seen, asked = (part.is_readable.nonzero()[:, 0] for part in (train, valid))
    if not len(seen) or not len(asked):
        return None
    n_views = train.locations.shape[1]
    features = sum(pooled(train.rows(seen, view)) for view in range(n_views)) / n_views
    by_fold = torch.tensor(folds or [-1] * len(train.locations), dtype=torch.int64)
    of_held_out = by_fold if folds else torch.zeros(len(valid.locations), dtype=torch.int64)
    labels, held_out_labels = (
        torch.tensor([part.dataset.label_of(index) for index in indices.tolist()], dtype=torch.int64)
        for part, indices in ((train, seen), (valid, asked))
    )
    queries = pooled(valid.rows(asked))
    return KnownPhotos(features, labels, by_fold[seen], queries, held_out_labels, of_held_out[asked])


def known_distances(splits: Splits, features: Mapping[str, SplitFeatures], seed: int) -> tuple[Novelty | None, str]:
    """Returns the distances that a checkpoint keeps, or why it keeps none; `features` are those of `known_photos`."""
    if not features:
        return None, NO_FEATURES
    known = known_photos(splits, features, seed)
    if not known:
        return None, "no photo of training or validation could be read; start a new run with others"
    novelty = known.novelty()
    return novelty, "" if novelty else known.why_no_novelty(splits.class_names)


def refusal_text(rows: Sequence[dict]) -> str:
    """Returns how well classes would be refused that were left out, in a line; empty if there are none."""
    if not rows:
        return ""
    worst, mean = min(rows, key=lambda row: row["auroc"]), sum(row["auroc"] for row in rows) / len(rows)
    of_worst, scale = f"{worst['auroc']:.3f} ({pluralize(worst['n_photos'], 'photo')})", "1 is perfect, 0.5 is chance"
    about = "predict.py --unknown refuses photos of none of your classes. Tried with"
    if len(rows) == 1:
        return f"{about} {worst['class']} left out: AUROC {of_worst}; {scale}"
    return (
        f"{about} {len(rows)} classes left out in turn: AUROC {mean:.3f} on average ({scale}), lowest for "
        f"{worst['class']}: {of_worst}"
    )


def _many_folds(samples: Sequence[Sample], seed: int) -> list[int]:
    """Returns the fold of each photo; copies, and photos of one group, are in the same.

    Distances by folds are too large, as the space of all photos has learned from more: of 404 leaves 4.4 % of new ones
    were refused at a false-alarm rate of 5 % by twenty folds, 4.7 % by forty.
    """
    together = group_copies(samples)
    n_units = len({sample.group or sample.key for sample in together})
    return assign_folds(together, max(1, min(N_FOLDS, n_units)), seed)


def auroc(known: torch.Tensor, unknown: torch.Tensor) -> float:
    """Returns the probability that one of `unknown` is larger than one of `known`; equal ones count half."""
    is_larger, is_equal = unknown[:, None] > known, unknown[:, None] == known
    return round((is_larger.double().mean() + is_equal.double().mean() / 2).item(), 4)
