import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn import metrics

from photo_classifier.evaluation.calibration import TEMPERATURES, fit_temperature
from photo_classifier.evaluation.metrics import N_BINS, N_MISTAKES, StreamingMetrics, macro_f1, wilson_interval
from photo_classifier.evaluation.report import evaluation_report, metrics_report, report_lines, write_report


def some_logits(n, n_classes, seed=0, skill=2.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    logits = rng.normal(0, 1.5, (n, n_classes))
    logits[np.arange(n), labels] += skill * rng.random(n)
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)


def measured(logits, labels, temperature=1.0, batch=7):
    names = [f"class {k}" for k in range(logits.shape[1])]
    measures = StreamingMetrics(names, temperature)
    for start in range(0, len(labels), batch):
        end = min(start + batch, len(labels))
        measures.add(logits[start:end], labels[start:end], [f"{n}.jpg" for n in range(start, end)])
    return measures


@given(n=st.integers(1, 60), n_classes=st.integers(2, 6), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_streaming_metrics_agree_with_scikit_learn(n, n_classes, seed):
    logits, labels = some_logits(n, n_classes, seed)
    report = metrics_report(measured(logits, labels, temperature=0.7))
    y, predicted, p = labels.numpy(), logits.argmax(1).numpy(), (logits.double() / 0.7).softmax(1).numpy()
    every = list(range(n_classes))
    assert report["accuracy"] == pytest.approx(metrics.accuracy_score(y, predicted))
    assert report["macro_f1"] == pytest.approx(metrics.f1_score(y, predicted, average="macro", zero_division=0))
    assert report["negative_log_likelihood"] == pytest.approx(metrics.log_loss(y, p, labels=every), rel=1e-5)
    assert report["confusion_matrix"] == metrics.confusion_matrix(y, predicted, labels=every).tolist()
    scores = metrics.precision_recall_fscore_support(y, predicted, labels=every, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), scores, strict=True):
        assert [row[name] for row in report["classes"]] == pytest.approx(list(values))


def test_the_calibration_error_follows_its_definition():
    logits, labels = some_logits(500, 4)
    report = metrics_report(measured(logits, labels))
    p, predicted = (values.numpy() for values in logits.softmax(1).max(1))
    right, expected = predicted == labels.numpy(), 0.0
    for k in range(N_BINS):
        inside = (p > k / N_BINS) & (p <= (k + 1) / N_BINS)
        if inside.any():
            expected += inside.mean() * abs(p[inside].mean() - right[inside].mean())
            assert report["calibration"][k]["accuracy"] == pytest.approx(right[inside].mean())
    assert report["expected_calibration_error"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n_correct", "n"), [(0, 1), (1, 1), (144, 153), (0, 50), (50, 50), (999_999, 1_000_000)])
def test_the_interval_is_that_of_wilson(n_correct, n):
    z, p = 1.959963984540054, n_correct / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n**2))
    expected = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    assert wilson_interval(n_correct, n) == pytest.approx(expected, abs=1e-12)
    assert wilson_interval(0, 0) == (0, 1)


def test_the_share_answered_falls_with_the_threshold_and_counts_exactly():
    logits, labels = some_logits(300, 3)
    report = metrics_report(measured(logits, labels))
    p, predicted = logits.softmax(1).max(1)
    for row in report["answered"]:
        inside = p.double() >= row["min_probability"]
        assert row["n_answered"] == int(inside.sum())
        if inside.any():
            assert row["accuracy"] == pytest.approx(float((predicted == labels)[inside].double().mean()))
        else:
            assert row["accuracy"] is None
    assert report["answered"][0]["share"] == 1
    assert [row["min_probability"] for row in report["answered"]] == [k / 100 for k in range(101)]


def test_the_most_confident_mistakes_are_kept_whatever_the_batches():
    logits, labels = some_logits(400, 3)
    p, predicted = logits.softmax(1).max(1)
    wrong = [n for n in p.argsort(descending=True, stable=True).tolist() if predicted[n] != labels[n]][:N_MISTAKES]
    for batch in (7, 400):
        assert [row["file_dir"] for row in metrics_report(measured(logits, labels, batch=batch))["mistakes"]] == [
            f"{n}.jpg" for n in wrong
        ]


def test_images_without_a_label_are_not_counted():
    logits, labels = some_logits(20, 3)
    measures = measured(logits, torch.where(torch.arange(20) < 5, -1, labels), batch=5)
    assert measures.n_images == 15
    report = metrics_report(measures)
    names = {name: report[name] for name in ("mistakes", "examples")}  # their paths are numbers
    assert report == metrics_report(measured(logits[5:], labels[5:], batch=5)) | names


@pytest.mark.parametrize(("n", "n_classes", "factor"), [(300, 4, 3.0), (300, 4, 0.2), (76, 2, 1.0)])
def test_the_temperature_makes_the_labels_most_likely(n, n_classes, factor):
    logits, labels = some_logits(n, n_classes, skill=4.0)
    logits = factor * logits
    share = 1 / (n + 2)
    targets = torch.full((n, n_classes), share / (n_classes - 1)).scatter(1, labels[:, None], 1 - share).double()

    def loss(log_t):
        return torch.nn.functional.cross_entropy(logits.double() / math.exp(log_t), targets).item()

    expected = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x
    assert fit_temperature(logits, labels) == pytest.approx(math.exp(expected), rel=1e-4)


def test_a_temperature_stays_sane_where_there_is_little_to_fit():
    eye = torch.eye(3)
    perfect = fit_temperature(20 * eye.repeat(7, 1), torch.arange(3).repeat(7))
    confidence = (20 * eye / perfect).softmax(1).max().item()
    assert 0.9 < confidence < 1 - 1 / 30, "21 images without an error are no certainty"
    assert fit_temperature(eye, torch.tensor([1, 2, 0])) == TEMPERATURES[1]
    assert fit_temperature(torch.zeros(5, 3), torch.tensor([0, 1, 2, 0, 1])) == 1
    assert fit_temperature(torch.full((4, 3), math.nan), torch.zeros(4, dtype=torch.int64)) == 1
    assert fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) == 1
    wide = fit_temperature(torch.tensor([[1e4, 0.0], [0.0, 1e4]]).repeat(50, 1), torch.tensor([0, 1]).repeat(50))
    assert TEMPERATURES[0] <= wide <= TEMPERATURES[1]


def test_calibration_before_and_after_is_of_the_same_images():
    logits, labels = some_logits(200, 3)
    report = evaluation_report(logits, labels, ["a.jpg"] * 200, ["a", "b", "c"], 2.0)
    assert report["before_temperature"]["negative_log_likelihood"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5
    )
    assert "->" in "\n".join(report_lines("valid", report))


def test_a_report_of_broken_numbers_is_still_json(tmp_path):
    write_report(tmp_path / "report.json", {"a": [math.nan, {"b": math.inf}], "c": 1.5})
    assert json.load(open(tmp_path / "report.json", encoding="utf-8")) == {"a": [None, {"b": None}], "c": 1.5}


def test_classes_that_never_occur_do_not_count_in_macro_f1():
    assert macro_f1(np.array([2, 0, 0]), np.array([1, 1, 0]), np.array([1, 0, 0])) == pytest.approx((2 / 3) / 2)
