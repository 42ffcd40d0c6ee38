import math

import pytest
import torch
from sklearn.metrics import f1_score

from photo_classifier.evaluation.metrics import class_counts, confusion_matrix, macro_f1
from photo_classifier.runtime.errors import UserError
from photo_classifier.training.results import EpochResult, PhaseResult
from trainer import Trainer

NAN = math.nan
# epochs of validation, and those that each monitor takes for a new best
EPOCHS = [
    PhaseResult(loss, correct, 10, 1.0, f1)
    for correct, loss, f1 in (
        (5, NAN, 0.5),
        (7, 0.9, 0.4),
        (7, 0.9, 0.6),
        (7, 0.8, 0.6),
        (6, 0.7, 0.6),
        (9, 0.8, NAN),
        (9, 0.9, 0.2),
    )
]
CHOSEN = {"accuracy": [0, 1, 3, 5], "loss": [0, 1, 3, 4], "macro_f1": [0, 2, 3, 4]}


@pytest.mark.parametrize("monitor", CHOSEN)
def test_the_monitor_chooses_the_best_epoch_and_the_lower_loss_decides_a_tie(monitor):
    trainer, chosen = Trainer(None, None, None, None, torch.device("cpu"), monitor=monitor), []
    for epoch, valid in enumerate(EPOCHS):
        result = EpochResult(epoch, valid, valid, {})
        if trainer.is_best(result):
            trainer.best = result
            chosen.append(epoch)
    assert chosen == CHOSEN[monitor]


def test_an_unknown_monitor_lists_what_there_is():
    with pytest.raises(UserError, match=r"choose from accuracy, loss, macro_f1; did you mean loss\?"):
        Trainer(None, None, None, None, torch.device("cpu"), monitor="los")


@pytest.mark.parametrize("n_classes", [2, 7])
def test_macro_f1_is_that_of_scikit_learn(n_classes):
    labels, predicted = torch.randint(0, n_classes, (2, 50), generator=torch.Generator().manual_seed(n_classes))
    labels[labels == 1] = 0  # a class that is predicted alone
    confusion = sum(
        confusion_matrix(*parts, n_classes + 2) for parts in zip(labels.split(25), predicted.split(25), strict=True)
    )
    assert confusion.sum() == 50
    expected = f1_score(labels, predicted, average="macro", zero_division=0)
    assert macro_f1(*class_counts(confusion)) == pytest.approx(expected, abs=1e-12)


def test_a_pass_over_nothing_has_no_accuracy():
    assert math.isnan(PhaseResult(math.nan, 0, 0, 0.0).accuracy)
