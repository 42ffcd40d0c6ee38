"""A predictor inside other programs: what it takes, threads, pools of processes, and memory."""

import io
import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import gallery, on_windows, save_image
from PIL import Image

from photo_classifier import Predictor, UserError

METHODS = ["fork" if sys.platform == "linux" else "spawn"]  # spawned processes import torch, which takes seconds


def answers(predictions):
    return [(p.predict, p.probability, p.status, p.top) for p in predictions]


@pytest.fixture
def predictor(trained):
    return Predictor("tiny.pth", device="cpu", top_k=3)


@pytest.fixture
def paths(image_folder):
    return [str(path) for path in sorted(image_folder.rglob("*.png"))]


def test_paths_bytes_images_and_arrays_get_the_same_answers(predictor, paths):
    expected = answers(predictor(paths))
    contents = [Path(path).read_bytes() for path in paths]
    arrays = [np.asarray(Image.open(path)) for path in paths]
    for photos in (contents, map(bytearray, contents), arrays, np.stack(arrays), map(Image.open, paths)):
        assert answers(predictor(photos)) == expected
    assert answers(predictor(contents[0])) == answers(predictor(arrays[0])) == expected[:1]
    assert answers(predictor([arrays[0][:, ::-1]])) == answers(predictor([arrays[0][:, ::-1].copy()]))


def test_the_bytes_of_every_hard_or_broken_file_get_the_answer_of_its_path(predictor, tmp_path):
    readable, broken = gallery.readable(tmp_path / "good"), gallery.unreadable(tmp_path / "bad")
    files = [str(path) for path in [*readable.values(), *broken.values()] if path.is_file()]
    large = save_image(tmp_path / "large.png", 0, 1, (900, 700))
    unended = io.BytesIO()
    Image.open(large).save(unended, "JPEG")
    (tmp_path / "unended.jpg").write_bytes(unended.getvalue()[:-2])
    files.append(str(tmp_path / "unended.jpg"))
    from_files, from_bytes = predictor(files), predictor([Path(path).read_bytes() for path in files])
    assert answers(from_files) == answers(from_bytes)
    assert from_files[-1].status == "ok"
    texts = {"text", "html"}  # whose names could tell more
    same = [n for n, path in enumerate(files) if Path(path).stem not in texts]
    assert [from_files[n].reason for n in same] == [from_bytes[n].reason for n in same]


@pytest.mark.parametrize(
    "wrong",
    [
        3,
        None,
        [3],
        [None],
        {"a.png": 1},
        np.zeros((4, 4, 3)),
        [np.zeros((4, 4), np.uint8)],
        [["a.png"]],
        io.BytesIO(b"a"),
    ],
)
def test_a_wrong_type_gives_an_error_that_says_what_it_takes(predictor, wrong):
    with pytest.raises(UserError, match=r"was given; a predictor takes paths .*bytes.*PIL.*\(height, width, 3\)"):
        predictor(wrong)


def test_a_number_of_classes_that_the_model_lacks_is_refused(trained):
    for wrong in (0, 4):
        with pytest.raises(UserError, match=f"--top_k {wrong}: tiny.pth has 3 classes; give a number from 1 to 3"):
            Predictor("tiny.pth", top_k=wrong)


def test_a_folder_gives_an_error_that_says_what_it_takes(predictor, image_folder):
    for folder in (image_folder, str(image_folder), [image_folder]):
        with pytest.raises(UserError, match=r"photos is a folder; a predictor takes paths of files"):
            predictor(folder)


def test_eight_threads_get_the_answers_of_one(predictor, paths):
    contents = [Path(path).read_bytes() for path in paths]
    requests = [contents[n % 7 : n % 7 + 1 + n % 3] for n in range(40)] + [contents * 2]
    expected = [answers(predictor(request)) for request in requests]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda request: answers(predictor(request)), requests)) == expected


_loaded = None  # the predictor of a process of the pool


def load():
    global _loaded
    _loaded = Predictor("tiny.pth", device="cpu", top_k=3)


def predict_in_pool(photos):
    return answers(_loaded(photos))


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_of_two_processes_gives_the_same_answers(predictor, two_threads, paths, method):
    requests = [paths[:2], paths, [Path(path).read_bytes() for path in paths * 3]]  # several batches too
    expected = [answers(predictor(request)) for request in requests]
    with multiprocessing.get_context(method).Pool(2, load) as pool:
        assert pool.map_async(predict_in_pool, requests).get(120) == expected


@pytest.mark.skipif(on_windows, reason="needs /proc or getrusage")
def test_memory_stays_flat_over_many_calls(predictor, paths):
    import resource

    contents = [Path(path).read_bytes() for path in paths[:3]]

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)

    def call(n):
        for _ in range(n):
            predictor(contents)

    call(60)
    before = peak()
    call(300)
    assert peak() - before < 8, "MB"
