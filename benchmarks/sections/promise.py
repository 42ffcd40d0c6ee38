"""What is promised of new photos: sets of classes, whether photos are like the old ones, and what more would bring.

- sets     coverage 0.9 on the half of the photos that the bound has not seen, 100 times; the band is beta-binomial. The
           mean size of the sets, beside adaptive sets and MAPIE's (if it is installed) on the same scores
- drift    how often photos of the same kind are called unlike the old ones, 200 times, and photos of which a fifth is
           of another set
- more     the accuracy that is expected of all photos from half of them, and what it is
"""

from __future__ import annotations

import argparse
import math
import time
from types import SimpleNamespace

import numpy as np
import torch
from common import Findings

from photo_classifier.curation.held_out import JudgedPhotos, held_out_logits
from photo_classifier.evaluation.calibration import fit_temperature
from photo_classifier.evaluation.drift import ALARM, Drift
from photo_classifier.models.conformal import bound, kept_scores, label_scores
from photo_classifier.training.more_photos import curve_of, learning_text
from sections import Photos, photos_of
from sections.unknown import known

COVERAGE, N_SPLITS, N_TESTS = 0.9, 100, 200


def halves(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the indices of two random halves."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[: n // 2], order[n // 2 :]


def adaptive_size(p: torch.Tensor, labels: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> float:
    """The mean size of adaptive sets (Romano et al. 2020), without randomisation."""
    sums = p.sort(1, descending=True).values.cumsum(1)
    place = (p > p.gather(1, labels[:, None])).sum(1, keepdim=True)
    limit = bound(kept_scores(sums[old].gather(1, place[old])[:, 0]), COVERAGE, "", "")
    return (sums[new] < limit).sum(1).add(1).clamp(max=p.shape[1]).double().mean().item()


def mapie_size(p: torch.Tensor, labels: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> float:
    """The mean size of MAPIE's sets; nan if it is not installed."""
    try:
        from mapie.classification import SplitConformalClassifier
    except ImportError:
        return math.nan
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Known(ClassifierMixin, BaseEstimator):
        """Gives the probabilities that are there, by index."""

        classes_, is_fitted_ = np.arange(p.shape[1]), True

        def fit(self, *_: object) -> Known:
            return self

        def predict_proba(self, indices: np.ndarray) -> np.ndarray:
            return p.numpy()[indices[:, 0].astype(int)]

        def predict(self, indices: np.ndarray) -> np.ndarray:
            return self.predict_proba(indices).argmax(1)

    sets = SplitConformalClassifier(Known(), confidence_level=COVERAGE, prefit=True, conformity_score="lac")
    sets.conformalize(old[:, None].numpy(), labels[old].numpy())
    return sets.predict_set(new[:, None].numpy())[1].sum(1).mean()


def check_sets(photos: Photos, logits: torch.Tensor, findings: Findings) -> None:
    """Promises that sets hold the true class."""
    from scipy.stats import betabinom

    labels, n = photos.labels, len(photos.labels)
    temperature = fit_temperature(logits, labels)
    p, scores = (logits.double() / temperature).softmax(1), label_scores(logits, labels, temperature)
    n_outside, covered, sizes = 0, [], []
    for seed in range(N_SPLITS):
        old, new = halves(n, seed)
        limit = bound(kept_scores(scores[old]), COVERAGE, "", "") + 1e-6
        sizes.append([(1 - p[new] <= limit).sum(1).double().mean().item(), adaptive_size(p, labels, old, new)])
        sizes[-1].append(mapie_size(p, labels, old, new) if seed < 20 else math.nan)
        n_in, rank = int((scores[new] <= limit).sum()), math.ceil((len(old) + 1) * COVERAGE)
        low, high = betabinom.ppf([0.005, 0.995], len(new), rank, len(old) + 1 - rank)
        n_outside += not low <= n_in <= high
        covered.append(n_in / len(new))
    ours, adaptive, _ = np.mean(sizes, 0)
    same, theirs = np.mean(sizes[:20], 0)[[0, 2]]
    text = f"coverage {np.mean(covered):.3f}, {n_outside} of {N_SPLITS} outside the band of 99 %"
    text += f"; {ours:.3f} classes, adaptive {adaptive:.3f}; of 20 splits {same:.4f}, MAPIE {theirs:.4f}"
    print(f"{photos.name}: sets: {text}", flush=True)
    what = f"{photos.name}: sets"
    findings.reach(f"{what}: coverage outside the band of 99 %", f"<= 3 of {N_SPLITS}", f"{n_outside}", n_outside <= 3)
    asked = "MAPIE's, not installed" if math.isnan(theirs) else f"MAPIE's, {theirs:.3f}"
    findings.reach(f"{what}: classes in one", asked, f"{same:.3f}", not same > theirs + 1e-3)


def check_drift(photos: Photos, other: Photos | None, findings: Findings) -> None:
    """Compares new photos with old ones."""
    n, n_alarms, n_found = len(photos.labels), 0, 0
    for split in range(4):
        old, new = halves(n, split)
        novelty = known(photos, old, split).novelty()
        rng = np.random.default_rng(split)
        near = novelty.distances(photos.centre[new]).numpy()
        far = novelty.distances(other.centre).numpy() if other else near
        for _ in range(N_TESTS // 4):
            some = rng.choice(near, min(100, len(near) // 2), replace=False)
            n_alarms += _is_unlike(novelty.held_out, some)
            n_found += _is_unlike(novelty.held_out, np.r_[some[: 4 * len(some) // 5], rng.choice(far, len(some) // 5)])
    found = f"; a fifth of {other.name}: found {n_found} of {N_TESTS}" if other else ""
    print(f"{photos.name}: drift: {n_alarms} false alarms of {N_TESTS}{found}", flush=True)
    # an unlucky half is asked 50 times
    most = round(4 * ALARM * N_TESTS)
    findings.reach(f"{photos.name}: drift: false alarms", f"<= {most} of {N_TESTS}", f"{n_alarms}", n_alarms <= most)


def _is_unlike(held_out: torch.Tensor, distances: np.ndarray) -> bool:
    drift = Drift(held_out.numpy())
    drift.add_predictions([SimpleNamespace(file_dir="", distance=distance) for distance in distances])
    return drift.report()["is_unlike"]


def check_more(photos: Photos, logits: torch.Tensor, findings: Findings) -> None:
    """Expects from half of the photos what all come to."""
    n_classes, n = len(photos.class_names), len(photos.labels)
    now = (logits.argmax(1) == photos.labels).double().mean().item()
    inside, texts = 0, []
    for seed in range(4):
        half = halves(n, seed)[0]
        samples = [photos.samples[index] for index in half.tolist()]
        features, labels = photos.features[half], photos.labels[half]
        judged = JudgedPhotos(samples, labels, features, held_out_logits(features, labels, samples, n_classes, seed), 0)
        start = time.perf_counter()
        report = curve_of(judged, photos.class_names, seed)
        seconds = time.perf_counter() - start
        expected = report["learning_curve"][-1]
        inside += expected["low"] - 0.01 <= now <= expected["high"] + 0.01
        texts.append(learning_text(report))
    text = f"{now:.3f} in truth; {inside} of 4 within a point of the band, {seconds:.1f} s for {len(half)} photos"
    print(f"{photos.name}: more: {texts[0]}; {text}", flush=True)
    findings.reach(f"{photos.name}: gain of more photos foreseen", ">= 3 of 4", f"{inside}", inside >= 3)


def work(options: argparse.Namespace, findings: Findings) -> None:
    """All sets."""
    sets = list(photos_of(options))
    for n, photos in enumerate(sets):
        logits = held_out_logits(photos.features, photos.labels, photos.samples, len(photos.class_names), 0)
        check_sets(photos, logits, findings)
        check_drift(photos, sets[n - 1] if len(sets) > 1 else None, findings)
        check_more(photos, logits, findings)
