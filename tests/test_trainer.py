import math

import pytest
import torch

from trainer import EpochResult, PhaseResult, Trainer, make_optimizer, make_scheduler
from utils import UserError


def phase(correct, loss=1.0):
    return PhaseResult(loss, correct, 10, 1.0)


def test_the_best_epoch_has_the_highest_accuracy_and_ties_keep_the_earlier():
    trainer = Trainer(None, None, None, None, None, torch.device("cpu"))
    chosen = []
    for epoch, correct in enumerate((5, 7, 7, 6, 9)):
        result = EpochResult(epoch, phase(10), phase(correct), 0.1)
        if trainer.is_best(result):
            trainer.best = result
            chosen.append(epoch)
    assert chosen == [0, 1, 4]


def test_a_pass_over_nothing_has_no_accuracy():
    assert math.isnan(PhaseResult(math.nan, 0, 0, 0.0).accuracy)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_optimizer_holds_only_what_trains(name):
    parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)]
    optimizer = make_optimizer(name, parameters, 0.1)
    assert optimizer.param_groups[0]["params"] == parameters[:1]


def test_the_learning_rate_drops_after_step_size_epochs():
    optimizer = make_optimizer("sgd", [torch.nn.Parameter(torch.ones(1))], 1.0)
    scheduler, rates = make_scheduler("step", optimizer, 2, 0.1), []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_unknown_names_list_what_there_is():
    with pytest.raises(UserError, match=r"choose from adam, adamw, sgd; did you mean adam\?"):
        make_optimizer("adan", [], 0.1)
    with pytest.raises(UserError, match="choose from step, none"):
        make_scheduler("stop", None, 1, 0.1)
