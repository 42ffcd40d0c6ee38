import numpy as np

from photo_classifier.evaluation.learning_curve import advice, learning_curve, power_law

SIZES = np.array([100, 200, 300, 400])


def test_the_power_law_finds_what_a_power_law_goes_on_to():
    errors = 0.02 + 0.3 * (SIZES / 400.0) ** -0.5
    assert abs(power_law(SIZES, errors, 800) - (0.02 + 0.3 * 2**-0.5)) < 1e-6


def test_a_rising_curve_asks_for_the_class_that_gains_and_a_flat_one_for_nothing():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 200)
    draws = rng.random(400)
    rising = np.array([draws > np.where(labels, error, 0.02) for error in (0.5, 0.36, 0.29, 0.25)], float)
    rows = learning_curve(SIZES, rising)
    assert rows[-1]["photos"] == 800
    assert rows[-1]["accuracy"] > rows[-2]["accuracy"] + 0.01
    assert rows[-1]["low"] < rows[-1]["accuracy"] < rows[-1]["high"]
    assert advice(rows, rising[1::2], labels, ["a", "b"]) == "more photos of b help most"
    flat = np.array([draws > 0.1] * 4, float)
    rows = learning_curve(SIZES, flat)
    assert advice(rows, flat[1::2], labels, ["a", "b"]) == "more photos will hardly help"
