import torch

from photo_classifier.training.known_photos import KnownPhotos


def test_two_classes_are_enough_to_refuse_photos_of_something_else():
    generator = torch.Generator().manual_seed(0)
    usual, other = torch.rand(2, 256, generator=generator)
    apart = 0.3 * torch.randn(256, generator=generator)

    def draw(mean, n):
        labels = torch.arange(n) % 2
        noise = 0.3 * torch.randn(n, 256, generator=generator)
        return (mean + labels[:, None] * apart + noise).relu(), labels

    features, labels = draw(usual, 120)
    folds = torch.arange(120) // 2 % 5
    novelty = KnownPhotos(features, labels, folds, features, labels, folds).novelty()
    is_refused = [novelty.distances(draw(mean, 120)[0]) > novelty.threshold(0.05) for mean in (usual, other)]
    assert is_refused[0].float().mean() < 0.12
    assert is_refused[1].all(), "without the cosine to the mean, a third is not refused"
