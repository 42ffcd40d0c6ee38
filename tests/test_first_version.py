"""Files that the first version wrote are still read: checkpoints, run folders and results.

`fixtures/first_version.tar.xz` was made with that version on 24 generated photos. It holds a finished run of two
epochs, a run that was stopped in its third of four, a whole prediction and one that was stopped after 8 rows.
`expected.json` tells what the first version itself came to from there. Machines round differently, so numbers are
compared with a tolerance.
"""

import csv
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ARCHIVE = Path(__file__).parent / "fixtures" / "first_version.tar.xz"
ON_CPU = ("--n_workers", 0, "--gpu_id", -1)
PREDICT = ("--model_fn", "finished.pth", "--input", "photos", "--probabilities", *ON_CPU)
TOLERANCE = 1e-4


@pytest.fixture
def expected(tmp_path):
    """What the first version came to; its files are in the working folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return SimpleNamespace(**json.loads((tmp_path / "expected.json").read_text(encoding="utf-8")))


def rows_of(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def head_of(path):
    """The weights and the bias of the last layer, the only one that trains."""
    tensors = torch.load(path, weights_only=True)["state_dict"]
    return {name: value for name, value in tensors.items() if name.startswith("fc.")}


def number_or_text(text):
    try:
        return float(text)
    except ValueError:
        return text


def nearly(value):
    return value if isinstance(value, str) else pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE)


def assert_same_rows(found, expected):
    """Two tables have the same rows in the columns of the second, their numbers within the tolerance."""
    assert len(found) == len(expected)
    for row, before in zip(found, expected, strict=True):
        values = {column: number_or_text(row[column]) for column in before}
        assert values == {column: nearly(number_or_text(text)) for column, text in before.items()}


def assert_same_head(path, expected):
    found = head_of(path)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(values), rtol=TOLERANCE, atol=TOLERANCE)


def test_a_checkpoint_of_the_first_version_predicts_the_same_rows(cli, expected):
    done = cli("predict", *PREDICT, "--result", "again.csv")
    assert done.status == 0, done.err
    assert [name for name in rows_of("again.csv")[0] if name != "correct"] == list(rows_of("result.csv")[0])
    assert_same_rows(rows_of("again.csv"), rows_of("result.csv"))


def test_a_checkpoint_of_the_first_version_finds_its_held_out_photos(cli, expected):
    done = cli("predict", "--model_fn", "finished.pth", "--result", "held_out.csv", *ON_CPU)
    assert done.status == 0, done.err
    assert done.out.splitlines()[-1] == expected.held_out


def test_a_stopped_run_of_the_first_version_goes_on_to_the_same_numbers(cli, expected):
    before = rows_of("stopped/metrics.csv")
    done = cli("train", "--resume", "stopped", "--model_fn", "stopped.pth")
    assert done.status == 0, done.err
    assert "warning:" not in done.err, "the photos are those of the run"
    rows = rows_of("stopped/metrics.csv")
    assert rows[:2] == before, "it began anew: these rows, with their seconds, were there"
    # a mixed image counts by the shares of its classes now, and did not then
    assert_same_rows(rows, [{k: v for k, v in row.items() if k != "train_accuracy"} for row in expected.metrics])
    assert_same_head("stopped/last_model.pth", expected.last_head)
    assert_same_head("stopped.pth", expected.best_head)
    assert done.out.splitlines()[-1] == expected.resumed


def test_a_finished_run_of_the_first_version_trains_on(cli, expected):
    before = rows_of("finished/metrics.csv")
    done = cli("train", "--resume", "finished", "--n_epochs", 3)
    assert done.status == 0, done.err
    rows = rows_of("finished/metrics.csv")
    assert (rows[:2], len(rows)) == (before, 3)


def test_a_prediction_that_the_first_version_left_half_done_is_continued(cli, expected):
    before = Path("partial/result.csv.partial").read_bytes()
    done = cli("predict", *PREDICT, "--result", "partial/result.csv", "--resume")
    assert done.status == 0, done.err
    assert Path("partial/result.csv").read_bytes().startswith(before)
    assert_same_rows(rows_of("partial/result.csv"), rows_of("result.csv"))
    assert list(rows_of("partial/result.csv")[0]) == list(rows_of("result.csv")[0]), "its columns stay as they were"
    assert sorted(path.name for path in Path("partial").iterdir()) == ["result.csv", "result.json"]


def test_a_whole_result_of_the_first_version_is_not_made_again(cli, expected):
    before = Path("result.csv").stat().st_mtime_ns
    done = cli("predict", *PREDICT, "--resume")
    assert done.status == 0, done.err
    assert Path("result.csv").stat().st_mtime_ns == before
    assert not Path("result.csv.prev").exists()


def test_splits_of_the_first_version_are_taken_over(cli, expected):
    flags = ("--data_dir", "photos", "--splits", "finished/splits.csv", "--weights", "finished.pth", "--freeze")
    sizes = ("--image_size", 32, "--resize", 36, "--model_name", "timm/test_resnet")
    done = cli("train", *flags, *sizes, *ON_CPU, "--dry_run", "--run_dir", "new")
    assert done.status == 0, done.err
    assert rows_of("new/splits.csv") == rows_of("finished/splits.csv")
