import pytest
from conftest import CLASSES
from PIL import Image

from photo_classifier.data.batches import StreamBatchSampler
from photo_classifier.data.samples import Sample
from photo_classifier.prediction.predictor import Predictor


@pytest.fixture
def predictor(trained):
    return Predictor("tiny.pth", device="cpu", n_workers=0)


def test_paths_and_open_images_get_the_same_answers(predictor, image_folder):
    paths = sorted(image_folder.rglob("*.png"))[:3]
    images = [Image.open(path) for path in paths]
    from_paths, from_images = predictor(paths), predictor(images)
    assert [p.file_dir for p in from_paths] == [p.file_dir for p in from_images] == [str(path) for path in paths]
    assert [(p.predict, p.probability) for p in from_paths] == [(p.predict, p.probability) for p in from_images]
    (made,) = predictor([Image.new("L", (50, 30))])
    assert (made.file_dir, made.status) == ("", "ok")
    assert made.predict in CLASSES
    assert predictor(paths[0]) == from_paths[:1]


def test_an_open_image_stays_as_it_is(predictor, tmp_path):
    Image.new("RGB", (900, 700), "red").save(tmp_path / "large.jpg")
    image = Image.open(tmp_path / "large.jpg")
    predictor([image])
    assert image.size == (900, 700)


def test_what_cannot_be_read_says_why(predictor, image_folder):
    missing, good = predictor(["gone.png", image_folder / "cat" / "00.png"])
    assert (missing.status, missing.predict, missing.probability) == ("error", "", None)
    assert "No such file" in missing.reason
    assert good.status == "ok"


def test_the_temperature_changes_probabilities_and_no_class(trained, image_folder):
    paths = sorted(image_folder.rglob("*.png"))
    predictor, sharp = (Predictor("tiny.pth", device="cpu", n_workers=0, top_k=3) for _ in range(2))
    sharp.temperature = predictor.temperature / 1000
    for soft, hard in zip(predictor(paths), sharp(paths), strict=True):
        assert [name for name, _ in soft.top] == [name for name, _ in hard.top]
        assert soft.probability < hard.probability


def test_a_stream_is_read_only_as_far_as_it_is_used(predictor, image_folder):
    taken = 0

    def samples():
        nonlocal taken
        for path in sorted(image_folder.rglob("*.png")) * 100:
            taken += 1
            yield Sample(str(path))

    next(predictor.stream(samples()))
    assert taken <= 32 * 32


def test_chunks_come_in_order_and_remember_what_they_handed_out():
    samples = [Sample(str(n)) for n in range(10)]
    chunks = StreamBatchSampler(samples, 4)
    assert chunks.peek(2) == 2
    assert chunks.peek(9) == 3
    assert [[sample for _, sample in chunk] for chunk in chunks] == [samples[:4], samples[4:8], samples[8:]]
    assert list(chunks.handed_out) == [samples[:4], samples[4:8], samples[8:]]
