import torch

from photo_classifier.curation.held_out import held_out_logits
from photo_classifier.curation.wrong_labels import FEWEST, Judged, rank_labels
from photo_classifier.data.samples import Sample

CLASSES = ["ant", "bee", "cat"]


def clusters(n, n_classes=3, d=20):
    """Features that show their class clearly."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(n) % n_classes
    centres = 3 * torch.randn(n_classes, d, generator=generator)
    return centres[classes] + torch.randn(n, d, generator=generator), classes


def samples_of(labels, folder):
    paths = [folder / f"{n}.png" for n in range(len(labels))]
    for n, path in enumerate(paths):
        path.write_bytes(n.to_bytes(4, "big"))
    return [Sample(str(path), CLASSES[label], path.name) for path, label in zip(paths, labels.tolist(), strict=True)]


def test_labels_that_were_changed_come_first_and_are_named(tmp_path):
    features, classes = clusters(90)
    labels = classes.clone()
    changed = [4, 17, 60]
    labels[changed] = (labels[changed] + 1) % 3
    samples = samples_of(labels, tmp_path)
    log_p = held_out_logits(features, labels, samples, 3, seed=0).log_softmax(1)
    checks = rank_labels(
        [Judged("train", samples[:50], log_p[:50]), Judged("valid", samples[50:], log_p[50:])], CLASSES
    )
    assert {check.sample.path for check in checks[:3]} == {samples[n].path for n in changed}
    assert [bool(check.reason) for check in checks] == [True] * 3 + [False] * 87
    for check in checks[:3]:
        n = samples.index(check.sample)
        assert check.suggested == CLASSES[classes[n]]
        assert check.split == ("train" if n < 50 else "valid")
        assert check.reason.startswith(f"{check.suggested} is ")


def test_copies_of_a_photo_do_not_confirm_each_others_label(tmp_path):
    features, classes = clusters(60)
    features[1], classes[1] = features[0], classes[0]
    labels = classes.clone()
    labels[:2] = (labels[:2] + 1) % 3  # the same photo twice, with the same wrong label
    samples = samples_of(labels, tmp_path)
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes())
    log_p = held_out_logits(features, labels, samples, 3, seed=0).log_softmax(1)
    checks = rank_labels([Judged("train", samples, log_p)], CLASSES)
    assert {check.sample.path for check in checks[:2]} == {samples[0].path, samples[1].path}


def bees_taken_for_ants(n_wrong, n_bees):
    """What is said of so many bees, and of ants, by a head that takes some of the bees for ants."""
    samples = [Sample(f"{k}.png", "bee" if k < n_bees else "ant") for k in range(40)]
    log_p = torch.tensor([[-9.0, 0.0, -9.0] if n_wrong <= k < n_bees else [0.0, -9.0, -9.0] for k in range(40)])
    return rank_labels([Judged("train", samples, log_p)], CLASSES)


def test_a_class_of_few_photos_is_not_suspected():
    checks = bees_taken_for_ants(1, FEWEST - 1)
    assert checks[0].sample.label == "bee"
    assert not any(check.reason for check in checks)


def test_a_class_that_is_mostly_missed_is_not_suspected():
    for n_wrong, n_suspects in ((3, 3), (6, 0)):
        checks = bees_taken_for_ants(n_wrong, 10)
        assert [check.sample.label for check in checks[:n_wrong]] == ["bee"] * n_wrong
        assert sum(bool(check.reason) for check in checks) == n_suspects
