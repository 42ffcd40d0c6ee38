from collections import Counter
from dataclasses import replace

import pytest
from helpers import save_image

from photo_classifier.data.checks import group_copies
from photo_classifier.data.folds import assign_folds
from photo_classifier.data.samples import Sample
from photo_classifier.runtime.errors import UserError

SIZES = {"cat": 23, "dog": 10, "개": 4}


def photos(sizes=SIZES, group_size=0):
    return [
        Sample(f"{label}/{n}", label, f"{label}/{n}", f"{label} {n // group_size}" if group_size else "")
        for label, size in sizes.items()
        for n in range(size)
    ]


@pytest.mark.parametrize("n_folds", [2, 5])
def test_every_class_is_spread_evenly(n_folds):
    samples = photos()
    counts = Counter(
        (sample.label, fold) for sample, fold in zip(samples, assign_folds(samples, n_folds, 0), strict=True)
    )
    for label, size in SIZES.items():
        assert {counts[label, fold] for fold in range(n_folds)} <= {size // n_folds, -(-size // n_folds)}


def test_a_group_stays_in_one_fold_and_the_folds_are_about_equal():
    samples = photos({"a": 60, "b": 40}, group_size=4)
    folds = assign_folds(samples, 5, 0)
    assert len({(sample.group, fold) for sample, fold in zip(samples, folds, strict=True)}) == 25
    assert set(Counter(folds).values()) == {20}


def test_rare_classes_are_not_all_in_the_same_folds():
    samples = photos({f"class {n}": 2 for n in range(100)})
    assert max(Counter(assign_folds(samples, 5, 0)).values()) < 60


def test_folds_depend_on_the_seed_and_the_keys_and_one_photo_more_moves_few():
    samples = photos()
    by_key = dict(zip((s.key for s in samples), assign_folds(samples, 5, 0), strict=True))
    assert dict(zip((s.key for s in samples[::-1]), assign_folds(samples[::-1], 5, 0), strict=True)) == by_key
    assert assign_folds(samples, 5, 1) != list(by_key.values())
    grown = [*samples, Sample("cat/new", "cat", "cat/new")]
    moved = [s for s, fold in zip(grown, assign_folds(grown, 5, 0), strict=True) if by_key.get(s.key, fold) != fold]
    assert len(moved) <= 5


def test_copies_of_a_file_stay_in_one_fold(tmp_path):
    made = [save_image(tmp_path / f"{n}.png", 0, n // 2) for n in range(20)]  # each photo twice
    samples = group_copies([Sample(str(path), "cat", path.name) for path in made])
    folds = assign_folds(samples, 5, 0)
    assert folds[::2] == folds[1::2]
    assert len(set(folds)) == 5
    assert group_copies([replace(sample, group="plant") for sample in samples[:2]])[0].group == "plant"


def test_fewer_photos_or_groups_than_folds_are_an_error():
    with pytest.raises(UserError, match="5 folds need at least 5 groups or images, and there are 3 images"):
        assign_folds(photos({"a": 3}), 5, 0)
    with pytest.raises(UserError, match="there are 2 groups"):
        assign_folds(photos({"a": 8}, group_size=4), 5, 0)
