import numpy as np
import pytest
from scipy.optimize import nnls

from photo_classifier.evaluation.learning_curve import EXPONENTS, UNTOLD, advice, learning_curve, power_law
from photo_classifier.training.more_photos import learning_text

SIZES = np.array([100, 200, 300, 400])


def test_the_power_law_finds_what_a_power_law_goes_on_to():
    errors = 0.02 + 0.3 * (SIZES / 400.0) ** -0.5
    assert abs(power_law(SIZES, errors[None], np.array([800]))[0, 0] - (0.02 + 0.3 * 2**-0.5)) < 1e-6


def test_the_power_law_is_the_best_one_without_a_negative_part():
    def best(errors):
        fits = []
        for exponent in EXPONENTS:
            columns = np.stack([np.ones(4), (SIZES / 400) ** -exponent], 1)
            (floor, slope), residual = nnls(columns, errors)
            fits.append((residual, floor + slope * 2**-exponent))
        return min(fits)[1]

    curves = np.random.default_rng(0).uniform(0, 0.5, (40, 4))
    assert np.allclose(power_law(SIZES, curves, np.array([800]))[:, 0], [best(errors) for errors in curves])


def test_a_rising_curve_asks_for_the_class_that_gains_and_a_flat_one_for_nothing():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 200)
    draws = rng.random(400)
    rising = np.array([draws > np.where(labels, error, 0.02) for error in (0.5, 0.36, 0.29, 0.25)], float)
    rows = learning_curve(SIZES, rising)
    assert rows[-1]["photos"] == 800
    assert rows[-1]["accuracy"] > rows[-2]["accuracy"] + 0.01
    assert rows[-1]["low"] < rows[-1]["accuracy"] < rows[-1]["high"]
    assert advice(rows, rising[1::2], labels, ["a", "b"]) == "more photos of b help most"
    report = {"learning_curve": rows, "more_photos": "more photos of b help most"}
    said = learning_text(report)
    assert said.startswith("more photos of b help most: twice as many would raise the accuracy by ")
    assert "0.8" not in said, "no third accuracy beside those of the run"
    flat = np.array([draws > 0.1] * 4, float)
    rows = learning_curve(SIZES, flat)
    assert advice(rows, flat[1::2], labels, ["a", "b"]) == "more photos will hardly help"


@pytest.mark.parametrize("n_right", [(75, 79, 80, 81), (75, 83, 84, 81), (80, 80, 80, 80), (84, 83, 82, 81)])
def test_twice_the_photos_are_never_expected_to_be_worse_and_few_photos_give_no_advice(n_right):
    shuffled = [np.random.default_rng(seed).permutation(93) for seed in range(4)]
    is_right = np.array([order < n for order, n in zip(shuffled, n_right, strict=True)], float)
    rows = learning_curve([23, 46, 70, 93], is_right)
    now, twice = rows[-2:]
    assert now["accuracy"] <= twice["low"] <= twice["accuracy"] <= twice["high"] <= 1
    said = advice(rows, is_right[1::2], np.arange(93) % 2, ["a", "b"])
    assert said == f"{UNTOLD} 93 photos"
    assert not learning_text({"learning_curve": rows, "more_photos": said})
    rising = [{**now, "accuracy": 0.8}, {**twice, "low": 0.81, "high": 0.83}]
    assert advice(rising, is_right[[3, 3]], np.arange(93) % 2, ["a", "b"]) == "more photos help"
    assert rows == learning_curve([23, 46, 70, 93], is_right)
