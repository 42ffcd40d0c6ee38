"""The page: what it says, that names cannot break it, that it stays small, and that a browser shows it."""

import csv
import os
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import save_image
from PIL import Image

from photo_classifier.evaluation import page, page_photos
from photo_classifier.evaluation.page import About, write_page
from photo_classifier.evaluation.page_doubts import label_content
from photo_classifier.evaluation.report import evaluation_report, write_report
from photo_classifier.evaluation.thumbnails import Thumbnails

CLASSES = ["<script>alert(1)</script>", """a  "b" 'c' & d""", "개"]
N_WRONG = 9
EXTRAS = {
    "next_steps": [
        {"text": "validation is still <b>improving</b>", "command": "python train.py --n_epochs 30 --data_dir '<b>'"}
    ],
    "learning_curve": [
        {"photos": n, "accuracy": a, "low": a - 0.1, "high": a + 0.05} for n, a in ((20, 0.6), (40, 0.8), (80, 0.85))
    ]
    + [{"photos": 160, "accuracy": 0.9, "low": 0.85, "high": 0.95, "is_expected": True}],
    "more_photos": f"more photos of {CLASSES[0]} help most",
    "refusal": [{"class": CLASSES[0], "auroc": 0.87}],
}


def report_of(paths, names=CLASSES, seed=0):
    """A report in which the first `N_WRONG` answers are wrong, each labelled with the class before."""
    labels = torch.arange(len(paths)) % len(names)
    logits = 2 * torch.rand(len(paths), len(names), generator=torch.Generator().manual_seed(seed))
    answers = torch.where(torch.arange(len(paths)) < N_WRONG, (labels + 1) % len(names), labels)
    logits[torch.arange(len(paths)), answers] += 3
    return evaluation_report(logits, labels, paths, names, 1.0)


def write_table(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def about(**more):
    return About("photos, some_net", {"Data": [("folder", "<i>photos</i>")]}, {CLASSES[0]: 7}, kept=2, **more)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page of everything that there can be, from a folder with all tables, and names that could break it."""
    folder = tmp_path_factory.mktemp("run")
    paths = [str(save_image(folder / f'"{n}" <img src=x>.png', n, n)) for n in range(60)]
    reports = {"validation": report_of(paths[:30], seed=1), "test": report_of(paths[30:])}
    reports["test"]["examples"][0]["no_heat"] = "there was no time for more"
    write_report(folder / "report.json", {**reports, **EXTRAS})
    doubt = {"label": CLASSES[1], "suggested": CLASSES[0], "probability": 0.97, "reason": "<u>99 times</u> as likely"}
    write_table(folder / "suspects.csv", [{"path": path, **doubt, "split": "train"} for path in paths[:2]])
    twins = [
        {"path": paths[n], "similar_to": like, "similarity": 0.98, "cluster": n // 2, "label": label, "split": split}
        for n, like, label, split in (
            (0, "", "개", "train"),
            (1, paths[0], "개", "train"),
            (2, "", "개", "test"),
            (3, paths[2], CLASSES[0], "valid"),
            (4, "", "개", "valid"),
            (5, paths[4], "개", "train"),
        )
    ]
    write_table(folder / "duplicates.csv", twins)
    write_table(folder / "odd.csv", [{"path": paths[3], "label": "개", "reason": "far from all others", "score": 3}])
    losses = [{"epoch": n, "train_loss": 1 / n, "train_accuracy": 0.7, "valid_loss": 2 / n} for n in (1, 2, 3)]
    write_table(folder / "metrics.csv", [{**row, "valid_accuracy": 0.75, "seconds": 1} for row in losses])
    path = write_page(folder, about(command="python predict.py --input new"), Thumbnails(10**6, 16))
    return SimpleNamespace(path=path, text=path.read_text(encoding="utf-8"), reports=reports, folder=folder)


class Elements(HTMLParser):
    """Counts elements, and collects the text and what they refer to."""

    def __init__(self, text):
        super().__init__()
        self.counts, self.sources, self.ids, self.links, self.words = {}, [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.sources += [attrs["src"]] if "src" in attrs else []
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []

    def handle_data(self, data):
        self.words.append(data)


def test_no_name_becomes_markup_and_nothing_is_fetched(written):
    found = Elements(written.text)
    assert found.counts["script"] == 1
    assert "i" in found.counts
    assert found.counts.get("u", 0) == 0
    assert CLASSES[0] in found.words
    assert "<i>photos</i>" in found.words
    assert {source[:11] for source in found.sources} <= {"data:image/"}
    assert not re.findall(r"https?://", written.text)
    assert "default-src 'none'" in written.text
    assert len(found.ids) == len(set(found.ids))
    inside = [link[1:] for link in found.links if link.startswith("#") and len(link) > 1]
    assert set(inside) <= set(found.ids)
    assert all(link.startswith(("#", "file:///")) for link in found.links)


def test_the_sections_come_in_their_order_and_say_what_was_measured(written):
    order = ["verdict", "curves", "matrix", "mistakes", "classes", "probabilities", "photos", "facts", "next"]
    assert [name for name in Elements(written.text).ids if name in order] == order
    words = " ".join("".join(Elements(written.text).words).replace("\N{NO-BREAK SPACE}", " ").split())
    assert "70 % of the 30 test photos are right (95 % interval 52.1 to 83.3 %)" in words.replace(
        "52.1 % to", "52.1 to"
    )
    assert "would be right for 33.3 %" in words
    assert "Validation: 70 % of 30 photos are right (95 % interval" in words.replace("\N{NO-BREAK SPACE}", " ")
    assert "says " + " ".join(CLASSES[1].split()) in words
    assert '"30" <img src=x>.png' in words
    assert "Validation is still <b>improving</b>" in words
    assert "--n_epochs 30 --data_dir '<b>'" in words
    assert "far from all others" in words
    assert "In 1 cluster of such photos one is trained on while another is held out" in words
    assert re.search("labelled 개, validation.*trained on and held out, similarity 0.98", words)
    assert [pair["photos"][0].name[1] for pair in label_content(written.folder)["pairs"]] == ["5", "3", "1"]
    assert "0.87" in words
    assert "1 of these photos has no heat map: there was no time for more." in words
    assert "not reached with ten or more answers" in words
    assert "160 (expected)" in words
    assert f"More photos of {CLASSES[0]} help most." in words


def test_a_single_epoch_is_one_in_the_page(tmp_path):
    losses = {"epoch": 1, "train_loss": 1, "train_accuracy": 0.4, "valid_loss": 2, "valid_accuracy": 0.6}
    write_report(tmp_path / "report.json", {"validation": report_of(["gone.png"] * 12)})
    write_table(tmp_path / "metrics.csv", [losses])
    text = write_page(tmp_path, about(), Thumbnails(10**6, 16)).read_text(encoding="utf-8")
    assert "The epoch as a table" in text
    charts = text.partition('id="matrix"')[0]
    assert charts.count('text-anchor="middle">1</text>') == 2, "a tick of the loss, and one of the accuracy"


def test_only_what_is_there_is_shown(tmp_path):
    write_report(tmp_path / "report.json", {"input": report_of(["gone.png"] * 12)})
    path = write_page(tmp_path, about(), Thumbnails(10**6, 16))
    found = Elements(path.read_text(encoding="utf-8"))
    assert not {"curves", "photos", "next", "answers"} & set(found.ids)
    assert "no picture" in found.words
    assert "have no picture here" in "".join(found.words)


def test_a_page_of_an_earlier_report_shows_its_mistakes(tmp_path, written):
    earlier = {
        name: value for name, value in written.reports["test"].items() if name not in ("examples", "reliability")
    }
    write_report(tmp_path / "report.json", {"test": earlier})
    text = write_page(tmp_path, about(), Thumbnails(10**6, 16)).read_text(encoding="utf-8")
    assert text.count('href="file://') == N_WRONG


def test_a_page_stays_small_however_many_photos_and_classes_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_BYTES", 900_000)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype="uint8"))
    names = [f"class {n:03d} {'x' * 20}" for n in range(400)]
    labels = torch.arange(4000) % 400
    logits = torch.randn(4000, 400, generator=torch.Generator().manual_seed(0))
    report = evaluation_report(logits, labels, [f"{n}.jpg" for n in range(4000)], names, 1.0)
    write_report(tmp_path / "report.json", {"test": report, "validation": report})
    path = write_page(tmp_path, about(), lambda _path: noise)
    assert 500_000 < os.path.getsize(path) <= 900_000
    text = path.read_text(encoding="utf-8")
    assert "The 30 of 400 classes with the most mistakes." in text
    assert "The weakest 300 of 400 classes; report.json has all." in text
    assert re.search(r"200 of 3,9\d\d test photos that were answered wrongly", text)


def test_photos_that_cannot_be_opened_in_time_are_named_without_a_picture(monkeypatch):
    photos = [page_photos.PagePhoto(f"{n}.jpg", {}) for n in range(50)]
    page_photos.embed(photos, 10**6, lambda _path: Image.new("RGB", (9, 9)), seconds=0)
    assert not all(photo.source for photo in photos)


# --- in a browser -----------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not BROWSER:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, written):
    """Opens the page from the disk, as a double click does; nothing may be fetched or go wrong."""
    contexts, wrong = [], []

    def open_page(path=written.path, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda request: wrong.append(request.url) if request.url[:5] not in ("file:", "data:") else 0)
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def test_a_cell_of_the_matrix_shows_its_photos_and_a_photo_opens_larger(opened, written):
    tab = opened()
    n_all = tab.locator("#mistakes .group:visible").count()
    cell = tab.locator(".matrix td.wrong a").first
    n_photos = int(cell.evaluate("cell => cell.firstChild.textContent"))
    cell.focus()
    tab.keyboard.press("Enter")
    tab.locator(".group:not([hidden])").nth(1).wait_for(state="detached")
    assert n_all > 1
    assert tab.locator(".group:visible figure").count() == n_photos
    assert tab.evaluate("document.activeElement.className") == "group"
    photo = tab.locator(".group:visible a.photo").first
    small = photo.locator("img").bounding_box()["width"]
    photo.click()
    assert tab.locator("dialog img:not(.heat)").bounding_box()["width"] > 2 * small
    first = tab.locator("dialog img:not(.heat)").get_attribute("src")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("dialog img:not(.heat)").get_attribute("src") != first
    tab.keyboard.press("Escape")
    assert not tab.locator("dialog").is_visible()
    tab.locator("#filter button").click()
    assert tab.locator("#mistakes .group:visible").count() == n_all
    for name in CLASSES[:2]:  # one has two spaces
        tab.locator("#by-answer").select_option(name)
        assert 0 < tab.locator("#mistakes .group:visible").count() < n_all


def test_a_page_fits_a_phone_is_dark_where_the_system_is_and_works_without_scripts(opened):
    tab = opened(viewport={"width": 360, "height": 700}, color_scheme="dark", java_script_enabled=False)
    # without scripts nothing can be asked inside the page, but a locator can
    assert tab.locator("html").evaluate("e => e.scrollWidth") <= 360
    for table in tab.locator(".scroll:visible").all():
        assert table.evaluate("e => e.tabIndex") == 0, "arrow keys move what is wider than the screen"
    curve = tab.get_by_role("region", name="Accuracy by number of training photos")
    assert curve.evaluate("e => e.scrollWidth <= e.clientWidth")
    light = opened(color_scheme="light").locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
    assert tab.locator("body").evaluate("e => getComputedStyle(e).backgroundColor") != light
    assert tab.locator("#mistakes .group").first.is_visible()
    assert not tab.locator("#filter").is_visible()
    target = tab.locator(".matrix td.wrong a").first.get_attribute("href")
    assert tab.locator(f"#mistakes {target}").is_visible()


def test_a_page_of_many_classes_fits_a_phone(opened, tmp_path):
    names = [f"a class with a long name {n}" for n in range(40)]
    write_report(tmp_path / "report.json", {"test": report_of(["gone.png"] * 200, names)})
    path = write_page(tmp_path, about(), Thumbnails(10**6, 16))
    tab = opened(path, viewport={"width": 360, "height": 700})
    assert tab.locator("html").evaluate("e => e.scrollWidth") <= 360
