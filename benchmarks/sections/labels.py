"""Wrong labels: some are changed, and how many of them are found.

Labels are changed in 5 % and 10 % of the photos at random, and in 5 % to the class that is most often confused, three
times each.

- changed   average precision of our order, and that of cleanlab (if it is installed) on the same outputs; how many
            labels look wrong to us, and how many of them are
- clean     how many labels look wrong without any change: fewer than 1 %
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from common import Findings

from photo_classifier.curation.held_out import held_out_logits
from photo_classifier.curation.wrong_labels import Judged, rank_labels, suspects
from photo_classifier.data.samples import Sample
from photo_classifier.evaluation.calibration import fit_temperature
from sections import Photos, photos_of

SEEDS = 3
LEAST = {"banana": 0.9, "sign": 0.93}  # average precision at random changes, of leaves and hand signs in such folders


def log_probabilities(photos: Photos, labels: torch.Tensor, seed: int) -> torch.Tensor:
    """What heads of folds say of the photos, given these labels."""
    logits = held_out_logits(photos.features, labels, photos.samples, len(photos.class_names), seed)
    return (logits.double() / fit_temperature(logits, labels)).log_softmax(1)


def ranked(photos: Photos, labels: torch.Tensor, log_p: torch.Tensor) -> list:
    """Our order."""
    named = [
        Sample(sample.path, photos.class_names[label], sample.key)
        for sample, label in zip(photos.samples, labels.tolist(), strict=True)
    ]
    return rank_labels([Judged("train", named, log_p)], photos.class_names)


def changed_labels(photos: Photos, share: float, to: list[int] | None, seed: int) -> torch.Tensor:
    """Changes a share of the labels: at random, or each to the class that is listed for it."""
    generator, n_classes = torch.Generator().manual_seed(seed), len(photos.class_names)
    labels = photos.labels.clone()
    for index in torch.randperm(len(labels), generator=generator)[: round(share * len(labels))].tolist():
        step = int(torch.randint(1, n_classes, (1,), generator=generator))
        labels[index] = to[labels[index]] if to else (labels[index] + step) % n_classes
    return labels


def cleanlab_precision(is_wrong: list[bool], labels: torch.Tensor, log_p: torch.Tensor) -> float:
    """The average precision of cleanlab's default score; nan if it is not installed."""
    from sklearn.metrics import average_precision_score

    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return float("nan")
    return average_precision_score(is_wrong, -get_label_quality_scores(labels.numpy(), log_p.exp().numpy()))


def check(photos: Photos, what: str, share: float, to: list[int] | None, findings: Findings) -> None:
    """One way to change labels, over the seeds."""
    from sklearn.metrics import average_precision_score

    sums = torch.zeros(5, dtype=torch.float64)
    for seed in range(SEEDS):
        labels = changed_labels(photos, share, to, seed)
        log_p = log_probabilities(photos, labels, seed)
        wrong_paths = {photos.samples[index].path for index in (labels != photos.labels).nonzero()[:, 0].tolist()}
        checks = ranked(photos, labels, log_p)
        is_wrong = [check.sample.path in wrong_paths for check in checks]
        ours = average_precision_score(is_wrong, range(len(checks), 0, -1))
        theirs = cleanlab_precision((labels != photos.labels).tolist(), labels, log_p)
        found = suspects(checks)
        n_right = sum(check.sample.path in wrong_paths for check in found)
        sums += torch.tensor([ours, theirs, len(found), n_right, len(wrong_paths)], dtype=torch.float64)
    ours, theirs, n_found, n_right, n_wrong = (sums / SEEDS).tolist()
    print(
        f"{photos.name}: {what}: average precision {ours:.3f}, cleanlab {theirs:.3f}; of {n_wrong:.0f} changed labels "
        f"{n_right:.0f} look wrong, and {n_found - n_right:.0f} others",
        flush=True,
    )
    least = 0.0 if to else LEAST.get(photos.name, 0.0)
    asked = ">= cleanlab's, " + ("not installed" if math.isnan(theirs) else f"{theirs:.3f}")
    is_kept = ours >= least and not ours < theirs - 0.0005
    asked += f", and {least}" if least else ""
    findings.reach(f"{photos.name}: {what}: average precision", asked, f"{ours:.3f}", is_kept)


def work(options: argparse.Namespace, findings: Findings) -> None:
    """All sets."""
    for photos in photos_of(options):
        start = time.perf_counter()
        log_p = log_probabilities(photos, photos.labels, 0)
        found = suspects(ranked(photos, photos.labels, log_p))
        seconds = time.perf_counter() - start
        n, share = len(photos.samples), len(found) / len(photos.samples)
        print(f"{photos.name}: clean: {len(found)} of {n} ({share:.2%}) look wrong, {seconds:.1f} s", flush=True)
        findings.reach(f"{photos.name}: clean labels that look wrong", "< 1 %", f"{share:.2%}", share < 0.01)
        confusions = torch.zeros(len(photos.class_names), len(photos.class_names))
        confusions.index_put_((photos.labels, log_p.argmax(1)), torch.ones(n), accumulate=True)
        most = confusions.fill_diagonal_(-1).argmax(1).tolist()
        check(photos, "5 % at random", 0.05, None, findings)
        check(photos, "10 % at random", 0.1, None, findings)
        check(photos, "5 % to the class most often confused", 0.05, most, findings)
