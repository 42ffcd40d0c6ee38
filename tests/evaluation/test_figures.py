import numpy as np
import pytest
import torch
from helpers import save_image
from matplotlib.figure import Figure
from PIL import Image

from photo_classifier.evaluation import figures, fonts, photo_sheets
from photo_classifier.evaluation.metrics import StreamingMetrics
from photo_classifier.evaluation.report import evaluation_report, metrics_report
from photo_classifier.evaluation.thumbnails import Thumbnails
from photo_classifier.prediction.results import Prediction
from photo_classifier.runtime.seeding import derive_seed

KOREAN = ["개미 $a_b$", "꿀벌\n벌", "العربية"]


def report_of(n_classes=3, n=60, names=None, paths=None):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, n_classes, (n,), generator=generator)
    logits = torch.randn(n, n_classes, generator=generator)
    logits[torch.arange(n), labels] += 1
    names = names or [f"class {k}" for k in range(n_classes)]
    return evaluation_report(logits, labels, paths or ["gone.jpg"] * n, names, 1.0)


@pytest.mark.parametrize("has_fonts", [True, False])
@pytest.mark.filterwarnings("error")
def test_no_class_name_breaks_a_figure_with_and_without_a_font_for_it(has_fonts, monkeypatch, capfd):
    if not has_fonts:
        monkeypatch.setattr(fonts, "_installed_fonts", lambda: iter(()))
        fonts._font_for.cache_clear()
    made = figures.figures_of("test", report_of(names=KOREAN), Thumbnails(10**6, 16))
    assert made.keys() == {"confusion", "calibration", "mistakes"}
    assert capfd.readouterr().err == ""
    fonts._font_for.cache_clear()


def test_letters_that_no_font_has_are_escaped():
    font = fonts.font_for("a")
    assert fonts.readable("a\U0010fffe\n", font) == r"a\U0010fffe\n"


@pytest.mark.parametrize("n_classes", [2, 40, 250])
def test_a_confusion_matrix_shows_the_classes_with_the_most_mistakes(n_classes):
    report = report_of(n_classes, n=500)
    names, counts = figures.most_confused(report)
    assert len(names) == min(n_classes, figures.MOST_SHOWN)
    first = report["confusions"][0]
    if {first["label"], first["predict"]} <= set(names):
        assert counts[names.index(first["label"]), names.index(first["predict"])] == first["n_images"]
    figures.confusion_figure(report, "test")


def predictions(n, path="gone.png", label="dog"):
    return [Prediction(path, "cat", 0.5, (("cat", 0.5),), label=label) for _ in range(n)]


def test_a_sheet_takes_an_even_sample_whatever_the_batches(tmp_path):
    one, two = photo_sheets.PredictionSheet(), photo_sheets.PredictionSheet()
    rows = [Prediction(str(n), "cat", 0.5, (("cat", 0.5),)) for n in range(500)]
    one.add_predictions(rows)
    two.add_predictions(rows[:123])
    again = photo_sheets.PredictionSheet()
    again.restore(two.state())
    again.add_predictions(rows[123:])
    assert sorted(one.state()["chosen"]) == sorted(again.state()["chosen"])
    expected = sorted(range(500), key=lambda n: derive_seed("sheet", n))[: photo_sheets.N_SHEET]
    assert {entry[1] for entry in one.state()["chosen"]} == set(expected)
    assert one.text("a.png") == f"a.png: {photo_sheets.N_SHEET} of 500 photos"


def test_only_known_mistakes_get_a_red_frame(tmp_path):
    photo = str(save_image(tmp_path / "blue.png", 2, 0))

    def n_red(label, predict="cat", best="cat", reason=""):
        sheet = photo_sheets.PredictionSheet()
        sheet.add_predictions([Prediction(photo, predict, 0.5, ((best, 0.5),), label=label, reason=reason)])
        pixels = np.asarray(sheet.draw(Thumbnails(10**6, 16)).convert("RGB")).astype(int)
        return int(((pixels == (255, 0, 0)).all(2)).sum())

    assert n_red("dog") > 100
    assert n_red("dog", "unknown", best="unknown") > 100, "a class may have that name"
    assert n_red("cat") == n_red("") == n_red("dog", "unknown", reason="refused") == 0


def test_restored_metrics_continue_where_they_stopped():
    names = ["cat", "dog"]
    rows = [
        Prediction("a", "cat", 0.75, (("cat", 0.75),), label=label, log_likelihood=-1.0)
        for label in ("cat", "dog", "dog")
    ]
    whole, first, second = (StreamingMetrics(names) for _ in range(3))
    whole.add_predictions(rows)
    first.add_predictions(rows[:2])
    second.restore(first.state())
    second.add_predictions(rows[2:])
    assert metrics_report(second) == metrics_report(whole)


def test_a_saved_picture_is_a_png(tmp_path):
    figures.save_picture(tmp_path / "a.png", Image.new("RGB", (5, 5)))
    assert Image.open(tmp_path / "a.png").text == {"Software": "photo-classifier"}


def test_the_dots_of_the_calibration_figure_stand_for_many_photos_each():
    for n in (1, 30, 3000):
        rows = report_of(n=n)["reliability"]
        assert sum(row["n_images"] for row in rows) == n
        assert min(row["n_images"] for row in rows) >= min(n, 25)
        for row in rows:
            assert row["from"] <= row["confidence"] <= row["to"]
            assert row["accuracy_interval_95"][0] <= row["accuracy"] <= row["accuracy_interval_95"][1]
    assert 6 <= len(rows) <= 8


@pytest.mark.parametrize("rows", [[{"epoch": "1", "valid_loss": "1", "valid_accuracy": "0.5", "train_loss": ""}], []])
def test_curves_are_drawn_of_whatever_was_measured(rows, monkeypatch):
    monkeypatch.setattr(figures, "_render", lambda figure: figure)
    figure = figures.curves_figure(
        [*rows, {**dict.fromkeys(("train_loss", "C"), "2"), "epoch": "2", "valid_accuracy": "1"}], 1, ""
    )
    for axes in figure.axes:
        assert all(tick == round(tick) for tick in axes.get_xticks()), "there is no epoch 1.02"


@pytest.mark.parametrize(("low", "high"), [(0.81, 0.93), (0.5, 1), (0.98, 1), (0.9931, 0.9987)])
def test_axes_of_shares_have_round_numbers_and_say_them_exactly(low, high):
    axes = Figure().subplots()
    axes.plot([0, 1], [low, high])
    figures._show_shares(axes.yaxis)
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    texts = axes.yaxis.get_major_formatter().format_ticks(ticks)
    assert 3 <= len(set(texts)) == len(ticks)
    assert [float(text.removesuffix(" %")) for text in texts] == pytest.approx([100 * tick for tick in ticks])
    assert max(map(len, texts)) <= 6, "steps are of 1, 2 or 5"
