"""How the flags of train.py depend on each other: the defaults that follow from others, and what is refused."""

from __future__ import annotations

from photo_classifier.config import NEW_PHOTOS, TrainConfig, has_fixed_backbone, n_views
from photo_classifier.runtime.errors import UserError, choose


def make_config(given: dict) -> TrainConfig:
    """Returns the flags of a new run: those that were given, and the defaults that suit them.

    Raises:
        UserError: the shares of the splits do not sum to 1, or leave nothing to train or to validate on.
    """
    return TrainConfig(**{**known_set_defaults(given), **rate_defaults(given), **given, **ratios(given)})


def known_set_defaults(given: dict) -> dict:
    """Returns the name of the data set, and the defaults that suit it if it is a known one."""
    from photo_classifier.data.known_datasets import DATASETS

    is_own = given.keys() & {"data_dir", "labels", "splits"}
    name = given.get("dataset_name", None if is_own else "digits")
    return {"dataset_name": name, **DATASETS[name].defaults} if name in DATASETS else {}


def rate_defaults(given: dict) -> dict:
    """Returns the learning rate that suits a pretrained backbone that trains, if no rate was given.

    At the rate of the head it forgets: after five epochs of EfficientNet-Lite0 with Adam on 144 ants and bees, 146
    leaves and 180 hand signs, test accuracy was 85, 75 and 75 % at 1e-3, 94, 79 and 73 % at 3e-4, and 94, 75 and 65 %
    at 1e-4. An epoch of warm-up made it 96 and 77 % on the first two at 3e-4: no clear gain.

    After a head that was trained alone it is 1e-4, or that of the head if that is lower. Of 153 ants and bees
    Lite0 at 128 pixels had 142, 143 and 144 right at 1e-4 (three epochs of the head, five of all layers; seeds 0 to 2),
    142, 140 and 144 at 3e-4, and 138 each time after eight epochs of all layers; eight of the head alone had 143, 142
    and 144.
    """
    is_pretrained, is_adam = given.get("use_pretrained") or given.get("weights"), given.get("optimizer") != "sgd"
    if not is_pretrained or not is_adam or "backbone_lr" in given:
        return {}
    if given.get("unfreeze_after"):
        return {"backbone_lr": min(1e-4, given.get("lr", 1e-4))}
    return {} if given.keys() & {"lr", "freeze"} else {"backbone_lr": 3e-4}


def ratios(given: dict) -> dict:
    """Returns the three shares; those that were not given divide the rest in proportion to their defaults.

    Raises:
        UserError: the shares do not sum to 1, or leave nothing to train or to validate on.
    """
    names = ("train_ratio", "valid_ratio", "test_ratio")
    shares = {name: given.get(name, getattr(TrainConfig, name)) for name in names}
    open_names = [name for name in names if name not in given]
    left = 1 - sum(given.get(name, 0) for name in names)
    if open_names and len(open_names) < 3:
        default = sum(getattr(TrainConfig, name) for name in open_names)
        shares |= {name: max(0.0, left) * getattr(TrainConfig, name) / default for name in open_names}
    if abs(sum(shares.values()) - 1) > 1e-6 or shares["train_ratio"] <= 0 or shares["valid_ratio"] <= 0:
        text = " ".join(f"--{name} {share:g}" for name, share in shares.items())
        raise UserError(f"{text} must sum to 1, with train and valid above 0; for example 0.8 0.1 0.1")
    return shares


def check(config: TrainConfig) -> None:
    """Raises a UserError for flags that cannot be combined."""
    if config.data_dir and config.dataset_name:
        raise UserError("--data_dir and --dataset_name were both given; give one of them")
    if config.labels and config.dataset_name:
        raise UserError("--labels and --dataset_name were both given; give one of them")
    if choose("--new_photos", config.new_photos, NEW_PHOTOS) == "train" and not (
        config.splits and (config.data_dir or config.labels or config.dataset_name)
    ):
        raise UserError(
            "--new_photos train needs the splits of an earlier run and the photos; give --splits and --data_dir"
        )
    if config.use_pretrained and config.weights:
        raise UserError("--use_pretrained and --weights were both given; give one of them")
    if config.scheduler == "plateau" and config.gamma >= 1:
        raise UserError(f"--scheduler plateau needs a --gamma below 1, not {config.gamma:g}; 0.1 is usual")
    if config.freeze and config.freeze_until and not config.unfreeze_after:
        raise UserError(
            "--freeze and --freeze_until were both given; --freeze alone freezes all but the head, and with "
            "--unfreeze_after N the layers behind --freeze_until train after N epochs"
        )
    if config.unfreeze_after:
        _check_unfreezing(config)
    if config.head == "logistic" or config.folds:
        _check_folds(config)
    if config.engine == "openvino" and not has_fixed_backbone(config):
        raise UserError(
            "--engine openvino computes stored features, of a backbone that stays as it is; add --freeze, without "
            "--unfreeze_after, --cutmix and --views 0, or leave it out"
        )


def _check_unfreezing(config: TrainConfig) -> None:
    """Raises a UserError where a head cannot train first, and more layers after it."""
    flag = f"--unfreeze_after {config.unfreeze_after}"
    if not config.freeze:
        raise UserError(f"{flag} trains the head alone first; add --freeze, or leave it out")
    if config.head == "logistic" or config.folds:
        other = "--head logistic" if config.head == "logistic" else f"--folds {config.folds}"
        raise UserError(f"{flag} goes on to train all layers, and {other} trains only the head; leave one of them out")
    if config.unfreeze_after >= config.n_epochs:
        raise UserError(
            f"{flag} leaves no epoch for training all layers (--n_epochs is {config.n_epochs}); give a lower number, "
            "or raise --n_epochs"
        )


def _check_folds(config: TrainConfig) -> None:
    """Raises a UserError for flags that leave no stored features to fit heads on."""
    flag = "--head logistic" if config.head == "logistic" else f"--folds {config.folds}"
    if not config.freeze and config.head == "logistic":
        raise UserError("--head logistic solves the head on a frozen backbone; add --freeze, or leave it out")
    if not config.freeze:
        raise UserError(
            f"{flag} without --freeze would train the whole network {config.folds + 1} times, once for each fold and "
            f"once on all images: about {config.folds + 1} times as long; add --freeze, or leave it out"
        )
    if not n_views(config) or config.cutmix:
        other = "--cutmix" if config.cutmix else "--views 0"
        raise UserError(f"{flag} needs stored features, and with {other} none are stored; leave one of them out")
    if config.head == "logistic" and config.head_hidden:
        raise UserError("--head logistic is a single layer, and --head_hidden makes two; leave one of them out")
