import json
from types import SimpleNamespace

import numpy as np
from scipy.stats import ks_2samp

from photo_classifier.evaluation.drift import Drift, drift_lines
from photo_classifier.prediction.results import Prediction, Totals


def predictions(distances):
    return [SimpleNamespace(file_dir=f"{n}.jpg", distance=float(d)) for n, d in enumerate(distances)]


def test_the_p_value_is_that_of_the_one_sided_test_in_whatever_batches():
    rng = np.random.default_rng(0)
    held_out, far = np.sort(rng.normal(size=300)), rng.normal(0.4, size=200)
    drift, found = Drift(held_out), predictions(far)
    drift.add_predictions(found[:70])
    again = Drift(held_out)
    again.restore(json.loads(json.dumps(drift.state())))
    again.add_predictions([*found[70:], SimpleNamespace(file_dir="bad.jpg", distance=None)])
    expected = ks_2samp(held_out, far, "greater", method="asymp")
    assert abs(np.log(again.p_value) - np.log(expected.pvalue)) < 0.3
    assert again.report()["is_unlike"]
    assert again.report()["n_images"] == 200
    assert again.report()["most_unlike"][0]["file_dir"] == f"{far.argmax()}.jpg"


def test_like_photos_are_seldom_called_unlike_and_nearer_ones_never():
    rng = np.random.default_rng(1)
    held_out = np.sort(rng.normal(size=200))
    n_alarms = 0
    for _ in range(300):
        drift = Drift(np.sort(rng.normal(size=200)))
        drift.add_predictions(predictions(rng.normal(size=100)))
        n_alarms += drift.report()["is_unlike"]
    assert n_alarms <= 9
    drift = Drift(held_out)
    drift.add_predictions(predictions(rng.normal(-1, size=100)))
    assert drift.p_value > 0.5


def test_few_photos_are_called_unlike_the_training_photos_but_not_like_them():
    for distances, said in (
        ([99, 99], "2 photos are too few to tell whether your photos are like the training photos"),
        ([99, 99, 99], "your photos differ from the training photos"),
        ([-3] * 3, "3 photos are too few"),
        ([-3] * 9, "9 photos are too few"),
        ([-3] * 10, "your photos look like the training photos"),
    ):
        drift = Drift(np.linspace(-2, 2, 200))
        drift.add_predictions(predictions(distances))
        assert drift_lines(drift.report())[0].startswith(f"inputs  {said}")


def test_photos_of_the_training_say_nothing_of_new_ones():
    drift = Drift(np.linspace(-2, 2, 200))
    totals = Totals({"drift": drift}, seen_files={"0", "1"}, of_new=("drift",))
    totals.add([Prediction(str(n), "cat", distance=-3.0) for n in range(3)])
    assert drift.report()["n_images"] == 1
    assert [row["file_dir"] for row in drift.report()["most_unlike"]] == ["2"]
