import pytest
import torch

from photo_classifier.models.conformal import bound, kept_scores, label_scores
from photo_classifier.runtime.errors import UserError


def test_the_bound_is_kept_by_the_promised_share_of_new_scores():
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(200):
        scores = torch.rand(99, generator=generator)
        shares.append(bound(kept_scores(scores), 0.9, "p", "q"))  # of uniform scores, the share is the bound
    assert abs(sum(shares) / 200 - 0.9) < 0.01


@pytest.mark.parametrize(("n", "share"), [(9, 0.9), (19, 0.95), (99, 0.99)])
def test_the_fewest_photos_for_a_promise(n, share):
    scores = torch.arange(float(n))
    assert bound(scores, share, "p", "q") == n - 1
    with pytest.raises(UserError, match=f"held out {n - 1} photos, and it needs {n}; give q"):
        bound(scores[1:], share, "p", "q")


def test_many_scores_are_thinned_evenly():
    kept = kept_scores(torch.rand(50_000, generator=torch.Generator().manual_seed(0)))
    assert len(kept) == 10_000
    assert abs(bound(kept, 0.9, "p", "q") - 0.9) < 0.01


def test_a_certain_label_scores_0():
    scores = label_scores(torch.tensor([[50.0, 0.0], [0.0, 50.0]]), torch.tensor([0, 0]), 1.0)
    assert scores.tolist() == pytest.approx([0, 1])
