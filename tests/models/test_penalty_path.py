import pytest
import torch
from sklearn.linear_model import LogisticRegression

from photo_classifier.models import penalty_path
from photo_classifier.models.penalty_path import HeadData, PenaltyPath


def head_data(n_classes, n=90, n_views=3, d=40):
    generator = torch.Generator().manual_seed(n_classes)
    labels = torch.arange(n) % n_classes
    centres = torch.randn(n_classes, d, generator=generator)
    views = centres[labels][:, None] + 2 * torch.randn(n, n_views, d, generator=generator)
    weights = 0.5 + labels.double() / n_classes
    folds = torch.arange(n) // n_classes % 5
    return HeadData((5 + 3 * views).bfloat16(), labels, folds, weights, n_classes)


def best_of(path):
    return max(path.points(), key=lambda point: point.log_likelihood)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_head_is_the_optimum_of_scikit_learn(n_classes):
    data = head_data(n_classes)
    path = PenaltyPath(data)
    point = path.refined(best_of(path))
    weight, bias = path.linear(point)
    rows = data.views.double().flatten(0, 1)
    scaled = (rows - path.mean) / path.scale
    # of two classes scikit-learn fits only the difference, whose square is twice the sum of both
    strength = point.strength * (2 if n_classes == 2 else 1)
    model = LogisticRegression(C=strength, tol=1e-12, max_iter=10_000)
    model.fit(scaled, data.labels.repeat_interleave(3), sample_weight=data.weights.repeat_interleave(3) / 3)
    ours = (rows @ weight.T + bias).softmax(1)
    assert torch.allclose(ours, torch.tensor(model.predict_proba(scaled)), atol=1e-6, rtol=0)


def test_the_head_of_a_fold_has_not_seen_its_photos():
    data = head_data(3)
    labels = data.labels.clone()
    labels[data.folds == 2] = (labels[data.folds == 2] + 1) % 3  # only heads that see them can learn this
    one, other = (
        PenaltyPath(HeadData(data.views, some, data.folds, torch.ones(90), 3)) for some in (data.labels, labels)
    )
    a, b = (path.refined(next(path.points())).held_out for path in (one, other))
    is_held_out = data.folds == 2
    assert torch.allclose(a[is_held_out], b[is_held_out], atol=1e-3)
    assert not torch.allclose(a[~is_held_out], b[~is_held_out], atol=1e-2)


def test_the_path_ends_when_held_out_photos_get_less_likely():
    points = list(PenaltyPath(head_data(3)).points())
    values = [point.log_likelihood for point in points]
    assert len(points) < len(penalty_path.STRENGTHS)
    assert len(values) - 1 - values.index(max(values)) == penalty_path.PATIENCE


def test_the_number_of_threads_changes_no_prediction():
    results, n = [], torch.get_num_threads()
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            path = PenaltyPath(head_data(2))
            results.append(path.linear(path.refined(next(path.points())))[0])
    finally:
        torch.set_num_threads(n)
    assert torch.allclose(*results, atol=1e-7)


def test_features_that_never_change_and_a_class_that_a_fold_lacks_do_no_harm():
    data = head_data(3)
    views = data.views.clone()
    views[..., :5] = 7.0
    folds = torch.where(data.labels == 2, 0, data.folds)  # the head of fold 0 never sees this class
    path = PenaltyPath(HeadData(views, data.labels, folds, data.weights, 3))
    point = path.refined(best_of(path))
    assert point.held_out.isfinite().all()
    assert torch.cat([*path.linear(point)[0], path.linear(point)[1]]).isfinite().all()
