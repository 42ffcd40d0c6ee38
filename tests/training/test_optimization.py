import numpy as np
import pytest
import torch
from torch import nn

from photo_classifier.runtime.errors import UserError
from photo_classifier.training.optimization import Plan, Schedule, TrainingLoss, balanced_weights, make_optimizer


def parameter():
    return nn.Parameter(torch.ones(1))


def optimizer_of(lr=1.0, **rates):
    rates = {"head": lr, **rates}
    return make_optimizer("sgd", {name: [parameter()] for name in rates}, rates)


def rates_of(schedule, optimizer, losses, n_steps=1):
    """The head's rate at every step; an epoch for each validation loss."""
    rates = []
    for loss in losses:
        for _ in range(n_steps):
            rates.append(schedule.rates["head"])
            optimizer.step()
            schedule.after_step()
        schedule.after_epoch(loss)
    return rates


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_optimizer_holds_only_what_trains(name):
    frozen, trained = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))
    rates = {"backbone": 0.1, "head": 0.2}
    optimizer = make_optimizer(name, {"backbone": [frozen], "head": [frozen, trained]}, rates)
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [("head", 0.2)]
    assert optimizer.param_groups[0]["params"] == [trained]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_weight_decay_leaves_out_norms_and_biases(name):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    optimizer = make_optimizer(name, {"head": list(net.parameters())}, {"head": 0.1}, weight_decay=0.5)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    kept = {key for key, p in net.named_parameters() if decays[id(p)]}
    assert kept == {"0.weight", "2.weight"}
    assert Schedule("none", optimizer, Plan(1)).rates == {"head": 0.1}


SCHEDULES = {
    "step": (Plan(6, step_size=2), [1, 1, 0.1, 0.1, 0.01, 0.01]),
    "cosine": (Plan(6), [1, 0.933013, 0.75, 0.5, 0.25, 0.066987]),
    "none": (Plan(6), [1] * 6),
    # the loss falls in the first epoch alone; the third without a lower one is one too many
    "plateau": (Plan(6, patience=2, gamma=0.5), [1, 1, 1, 1, 0.5, 0.5]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_learning_rate_moves_as_the_schedule_says(name):
    plan, expected = SCHEDULES[name]
    optimizer = optimizer_of(backbone=0.1)
    schedule = Schedule(name, optimizer, plan)
    assert rates_of(schedule, optimizer, [1.0] * 6) == pytest.approx(expected, abs=1e-6)
    assert schedule.rates["backbone"] == pytest.approx(0.1 * schedule.rates["head"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_warm_up_grows_with_every_step_and_multiplies_the_schedule(name):
    plan, by_epoch = SCHEDULES[name]
    optimizer = optimizer_of()
    rates = rates_of(Schedule(name, optimizer, plan, warmup_steps=6), optimizer, [1.0] * 6, n_steps=4)
    expected = [min(1, (step + 1) / 6) * by_epoch[step // 4] for step in range(24)]
    assert rates == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_from_its_state(name):
    plan = SCHEDULES[name][0]
    losses = [3.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    whole = optimizer_of()
    expected = rates_of(Schedule(name, whole, plan, warmup_steps=9), whole, losses, n_steps=3)

    first = optimizer_of()
    schedule = Schedule(name, first, plan, warmup_steps=9)
    rates = rates_of(schedule, first, losses[:2], n_steps=3)
    second = optimizer_of()
    resumed = Schedule(name, second, plan, warmup_steps=9)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert rates + rates_of(resumed, second, losses[2:], n_steps=3) == expected


def test_a_plateau_says_when_it_drops_the_rate():
    schedule = Schedule("plateau", optimizer_of(0.1, backbone=0.01), Plan(9, patience=1))
    said = [schedule.after_epoch(loss) for loss in (0.5, 0.6, 0.6)]
    assert said[:2] == ["", ""]
    assert said[2].startswith("plateau: validation loss not below 0.5000 for 2 epochs, learning rate 0.1 -> 0.01")


def test_unknown_names_list_what_there_is():
    with pytest.raises(UserError, match=r"choose from adam, adamw, sgd; did you mean adam\?"):
        make_optimizer("adan", {}, {})
    with pytest.raises(UserError, match="choose from step, plateau, cosine, none"):
        Schedule("stop", optimizer_of(), Plan(1))


# --- the loss ---------------------------------------------------------------------------------


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2], [7, 2, 1])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_weights([7, 2, 1]).tolist() == pytest.approx(expected.tolist())
    assert balanced_weights([4, 0, 4])[1] == 0


WEIGHTS = torch.tensor([0.5, 2.0, 4.0])
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 0, 1, 2, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_weighted_loss_is_normalised_by_the_weights_of_the_batch(smoothing):
    expected = nn.functional.cross_entropy(LOGITS, LABELS, WEIGHTS, label_smoothing=smoothing)  # as torch has it
    assert TrainingLoss(WEIGHTS, smoothing)(LOGITS, LABELS) == pytest.approx(expected.item())


def test_two_copies_of_a_class_count_as_much_as_one_of_twice_the_weight():
    logits, labels = LOGITS[[3, 4]], torch.tensor([1, 2])
    weighted = TrainingLoss(torch.tensor([1.0, 1.0, 2.0]))(logits, labels)
    assert weighted == pytest.approx(TrainingLoss()(LOGITS[[3, 4, 4]], torch.tensor([1, 2, 2])).item())


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_mixed_labels_are_weighted_by_their_shares(smoothing):
    loss = TrainingLoss(WEIGHTS, smoothing)
    whole = nn.functional.one_hot(LABELS, 3).float()
    assert loss(LOGITS, whole) == pytest.approx(loss(LOGITS, LABELS).item())
    mixed = 0.7 * whole + 0.3 * whole.roll(1, 0)
    smoothed = mixed * (1 - smoothing) + smoothing / 3
    expected = -(smoothed * WEIGHTS * LOGITS.log_softmax(1)).sum() / (mixed @ WEIGHTS).sum()
    assert loss(LOGITS, mixed) == pytest.approx(expected.item())


def test_without_weights_the_loss_is_plain():
    assert TrainingLoss()(LOGITS, LABELS) == nn.functional.cross_entropy(LOGITS, LABELS)


def test_class_weights_move_to_the_device_of_the_logits_once_and_not_in_every_step():
    loss = TrainingLoss(WEIGHTS)
    loss(LOGITS.to("meta"), LABELS.to("meta"))
    assert loss.class_weights.device.type == "meta"
