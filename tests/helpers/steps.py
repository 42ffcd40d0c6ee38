"""What the tool advises: the situation in which it does, and the step that follows from its words."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from helpers import NAME, make_class_folders, save_image

SMALL = f"--model_name {NAME} --image_size 32 --n_workers 0 --gpu_id -1"
FROZEN = f"{SMALL} --freeze --views 1 --n_epochs 1 --model_fn m.pth"
WORDS = {
    "S": SMALL,
    "F": FROZEN,
    "D": f"--data_dir photos {FROZEN}",  # a head on frozen features
    "A": f"--data_dir photos {SMALL} --n_epochs 1 --model_fn m.pth",  # all layers
    "P": "--model_fn tiny.pth --n_workers 0 --gpu_id -1 --input photos",
    "Q": f"--n_workers 0 --gpu_id -1 --input photos --model_name {NAME} --class_names cat cow dog --image_size 32",
}


@dataclass
class Step:
    """An advice, known by words that no other message has.

    Args:
        says: the words, from the message's text in the source.
        run: the command that prints it, with `{D}` and so on from `WORDS`.
        then: how that command is to be changed: `--flag value` is set, `no --flag` left out; or a whole command.
            `{0}`, `{1}`, ... stand for what `take` finds in the printed text.
        before: makes the situation; it gets pytest's monkeypatch, whose changes end with the first command.
        fix: does what is to be done outside of the command line.
        is_dry: whether trainings end after one step.
    """

    says: str
    run: str
    then: str = ""
    take: str = ""
    before: Callable | None = None
    fix: Callable | None = None
    is_dry: bool = True


def prepare(folder: Path) -> None:
    """Makes the files that the commands speak of."""
    make_class_folders(folder / "photos", 5, ("cat", "cow", "dog"))
    make_class_folders(folder / "split" / "train", 4, ("cat", "dog"), seed=300)
    make_class_folders(folder / "split" / "val", 2, ("cat", "dog"), seed=600)
    paths = sorted((folder / "photos").rglob("*.png"))
    rows = [f"{path.parent.name}/{path.name},{path.parent.name}" for path in paths]
    (folder / "tables").mkdir()
    (folder / "tables" / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    for path in paths:
        (folder / "loose").mkdir(exist_ok=True)
        shutil.copy(path, folder / "loose" / f"{path.parent.name}{path.name}")
    shutil.copytree(folder / "photos", folder / "of mine")
    (folder / "empty").mkdir()
    for name in ("note.txt", "weights.pth", "broken.zip"):
        (folder / name).write_text("hello, this is text")
    (folder / "table.csv").write_text("a,b\n1,2\n")


# --- situations -------------------------------------------------------------------------------


def write(name: str, *lines: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def loose_rows() -> list[str]:
    return [f"{path.name},{path.name[:3]}" for path in sorted(Path("loose").glob("*.png"))]


def spoil(pattern: str) -> None:
    for path in Path().glob(pattern):
        path.write_bytes(b"")


def remake_split() -> None:
    make_class_folders(Path("split") / "val", 2, ("cat", "dog"), seed=600)


def pack() -> None:
    os.unlink("broken.zip")
    shutil.make_archive("broken", "zip", "photos")


def deep_photos() -> None:
    for path in Path("photos").rglob("*.png"):
        pixels = np.random.default_rng(0).integers(0, 4000, (40, 40)).astype("uint16")
        pixels[0, 0] = 4095
        Image.fromarray(pixels).save(path)


def long_photos() -> None:
    for n, path in enumerate(sorted(Path("photos").rglob("*.png"))):
        save_image(path, n // 5, n, (90, 40))


def change(path: str, **values: object) -> None:
    torch.save({**torch.load(path, weights_only=True), **values}, path)


def plain(edit: Callable = dict, name: str = "plain.pth") -> None:
    torch.save(edit(torch.load("tiny.pth", weights_only=True)["state_dict"]), name)


def two_heads(state: dict) -> dict:
    weight, bias = state.pop("fc.weight"), state.pop("fc.bias")
    hidden = {"fc.0.weight": torch.eye(weight.shape[1]), "fc.0.bias": torch.zeros(weight.shape[1])}
    return {**state, **hidden, "fc.2.weight": weight, "fc.2.bias": bias}


def two_networks(prefixes: tuple[str, str]) -> Callable[[dict], dict]:
    return lambda state: {
        prefixes[0]: dict(state),
        prefixes[1]: {k: v + 1 if v.is_floating_point() else v for k, v in state.items()},
    }


def partial_result() -> None:
    lines = Path("result.csv").read_bytes().splitlines(keepends=True)
    Path("result.csv.partial").write_bytes(b"".join(lines[:4]))
    content = json.loads(Path("result.json").read_text())
    Path("result.json.partial").write_text(json.dumps({**content, "n_rows": 3}))
    for name in ("result.csv", "result.json"):
        os.unlink(name)


def both_forms() -> None:
    for form in ("NFC", "NFD"):
        save_image(Path("photos") / unicodedata.normalize(form, "개") / f"{form}.png", 0, 7)


def merge_forms() -> None:
    composed, decomposed = (Path("photos") / unicodedata.normalize(form, "개") for form in ("NFC", "NFD"))
    for n in range(5):
        save_image(composed / f"{n}.png", 0, n)
    shutil.rmtree(decomposed)


def move(old: str, new: str) -> None:
    shutil.move(old, new)


def grouped(*groups: str) -> None:
    rows = [f"photos/{name}/{n:02d}.png,{name},{name}{groups[n]}" for name in ("cat", "dog") for n in range(5)]
    write("grouped.csv", "path,label,group", *rows)


def flat(other: str) -> None:
    for n in range(10):
        save_image(Path("flat") / f"{'cat' if n % 2 else 'dog'}.{n}.png", n, n)
    save_image(Path("flat") / other, 0, 99)


def no_memory(monkeypatch) -> None:
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("trainer.Trainer._add_gradients", fail)


def memory_runs_out(monkeypatch) -> None:
    import trainer

    real, calls = trainer.Trainer._add_gradients, []

    def fail(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return real(self, *args)

    monkeypatch.setattr("trainer.Trainer._add_gradients", fail)


def other_memory_runs_out(monkeypatch) -> None:
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("trainer.Trainer.evaluate", fail)


def prediction_stops(monkeypatch) -> None:
    from photo_classifier.prediction.result_file import ResultFile
    from photo_classifier.runtime import signals

    real = ResultFile.write

    def write_and_stop(self, *args):
        real(self, *args)
        signals.raise_stopped()

    monkeypatch.setattr(ResultFile, "write", write_and_stop)


def offline(monkeypatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def no_numbers(monkeypatch) -> None:
    from photo_classifier.models.inference import Engine

    def no_number(self, images, *_measures):
        return self(images) * float("nan"), images.new_zeros(len(images), 1).float()

    monkeypatch.setattr(Engine, "observe", no_number)


def another_run_writes(monkeypatch) -> None:
    from photo_classifier.training.run import Run

    real = Run.save_measured

    def overwritten(self, *args, **kwargs):
        real(self, *args, **kwargs)
        change("tiny.pth", run_id="another")

    monkeypatch.setattr(Run, "save_measured", overwritten)
    monkeypatch.setattr("trainer.Trainer.is_best", lambda *_: False)


def wrong_best(monkeypatch) -> None:
    shutil.copy("tiny.pth", "kept.pth")
    change("tiny.pth", metrics={"epoch": 9})
    state = torch.load("r/last.pth", weights_only=True)["trainer"]
    best = {**state["best"], "valid": {**state["best"]["valid"], "loss": -1.0, "correct": 10**6}}
    change("r/last.pth", trainer={**state, "best": best})


def headless(monkeypatch) -> None:
    monkeypatch.setattr("photo_classifier.models.classifier.Classifier.head_module", lambda _: None)


def lose_best() -> None:
    for name in ("tiny.pth", "r/finished.json"):
        os.unlink(name)


def flags_of_run(**flags: object) -> Callable:
    def before(_) -> None:
        change("r/last.pth", config={**torch.load("r/last.pth", weights_only=True)["config"], **flags})

    return before


def replace_best() -> None:
    shutil.copy("tiny.pth", "tiny.pth.prev")
    change("tiny.pth", run_id="another")


def no_held_out() -> None:
    splits = torch.load("tiny.pth", weights_only=True)["splits"]
    change("tiny.pth", splits={**splits, splits["held_out"]: []})


def restore_names() -> None:
    os.replace("tiny.pth.prev", "tiny.pth")


def write_outside() -> None:
    state = torch.load("r/last.pth", weights_only=True)
    name = str(Path.cwd().parent / "elsewhere.pth")
    change("r/last.pth", config={**state["config"], "model_fn": name}, folder="/elsewhere/r")


def only(function: Callable, *args: object) -> Callable:
    """Returns a `before` or `fix` that calls a function, whatever it is given."""
    return lambda *_: function(*args)


def each(*functions: Callable) -> Callable:
    return lambda *_: [function() for function in functions]


# --- steps ------------------------------------------------------------------------------------

DATA = [
    Step("copy or download it again", "train {F} --data_dir broken.zip", fix=only(pack)),
    Step(
        "see skipped.csv and duplicates.csv",
        "train {D} --max_bad 1",
        before=only(spoil, "photos/cow/*"),
        fix=only(shutil.rmtree, "photos/cow"),
    ),
    Step(
        "see --max_bad and --on_leak",
        "train {F} --data_dir split --max_bad 1",
        before=only(spoil, "split/val/*/*"),
        fix=only(remake_split),
    ),
    Step("more than --max_pixels {}; raise it", "train {D} --max_pixels 10", "--max_pixels 100000"),
    Step("or allow more (--max_bad)", "train {D}", "--max_bad 0.5", before=only(spoil, "photos/cat/01.png")),
    Step("give their folder with --data_dir, or", "train {F} --labels tables/list.csv", "--data_dir photos"),
    Step(
        "; to use it: --labels {}",
        "train {D}",
        "--labels {0}",
        r"to use it: --labels (\S+)",
        before=only(shutil.copy, "tables/list.csv", "photos"),
    ),
    Step(
        "or leave these classes out (--min_images 1)",
        "train {F} --data_dir split",
        "--min_images 1",
        before=only(move, "split/val/dog", "split/val/dgo"),
    ),
    Step(
        "rename or remove those folders or labels",
        "train {F} --data_dir split",
        before=only(move, "split/val/dog", "split/val/dgo"),
        fix=only(move, "split/val/dgo", "split/val/dog"),
    ),
    Step(
        "add images (of other groups)",
        "train {F} --labels grouped.csv",
        before=only(grouped, *"aaaaa"),
        fix=only(grouped, *"abcde"),
    ),
    Step(
        "write its {} too",
        "train {F} --labels twice.csv --data_dir photos",
        before=only(write, "twice.csv", "path,label", *[f"{n:02d}.png,{'cat' if n else 'dog'}" for n in range(5)]),
        fix=only(write, "twice.csv", "path,label", *[f"{c}/{n:02d}.png,{c}" for c in ("cat", "dog") for n in range(5)]),
    ),
    Step(
        "has no ending that tells its format",
        "train {D}",
        before=only(move, "photos/cat/01.png", "photos/cat/01"),
        fix=only(move, "photos/cat/01", "photos/cat/01.png"),
    ),
    Step("folds need at least", "train {D} --folds 50", "--folds {0}", r"there are (\d+)"),
    Step("two folders named", "train {D}", before=only(both_forms), fix=only(merge_forms)),
    Step(
        "for a folder elsewhere use --data_dir DIR",
        "train {F} --dataset_name digist",
        "no --dataset_name --data_dir photos",
    ),
    Step(
        "{}; name it with --labels FILE",
        "train {F} --data_dir loose --label_column kind",
        "--labels kinds.csv",
        before=lambda _: write("kinds.csv", "path,kind", *[f"loose/{row}" for row in loose_rows()]),
        fix=lambda: write("kinds.csv", "path,kind", *loose_rows()),
    ),
    Step(
        "save it as .xlsx or .csv",
        "train {F} --data_dir loose",
        before=only(write, "loose/labels.ods", "x"),
        fix=lambda: write("loose/labels.csv", "path,label", *loose_rows()),
    ),
    Step(
        "for the labels in {} add --labels {}",
        "train {F} --data_dir loose",
        "{0}",
        r"add (--labels \S+)",
        before=lambda _: write("tables/list.csv", "path,label", *loose_rows()),
    ),
    Step(
        "rename it or move it away",
        "train {F} --data_dir flat",
        before=only(flat, "other.png"),
        fix=only(os.unlink, "flat/other.png"),
    ),
    Step(
        "contains no images but an archive",
        "train {F} --data_dir packed",
        "{0}",
        r"use (--data_dir \S+)",
        before=only(shutil.make_archive, "packed/all", "zip", "photos"),
    ),
    Step(
        "; did you mean --data_dir {}?",
        "train {F} --data_dir outer",
        "{0}",
        r"did you mean (--data_dir \S+)\?",
        before=each(lambda: shutil.copytree("split", "outer/x"), lambda: os.mkdir("outer/a")),
    ),
    Step(
        "{}; add them or remove it",
        "train {F} --data_dir split",
        before=each(lambda: shutil.rmtree("split/val"), lambda: os.mkdir("split/val")),
        fix=only(shutil.rmtree, "split/val"),
    ),
    Step(
        "choose one with --labels FILE",
        "train {F} --data_dir loose",
        "--labels {0}",
        r"\((\S+),",
        before=lambda _: [write(f"loose/{name}.csv", "path,label", *loose_rows()) for name in "ab"],
    ),
    Step("more than --bit_depth {} allows", "train {D} --bit_depth 10", "--bit_depth 16", before=only(deep_photos)),
    Step("; give at least {}", "train {D} --resize 10", "--resize {0}", r"at least (\d+)"),
    Step("choose at most {} (--min_images)", "train {D} --min_images 50", "--min_images {0}", r"at most (\d+)"),
    *(
        Step(
            says,
            "train {D}",
            "--min_images {0}",
            take,
            before=only(lambda: save_image(Path("photos/rare/0.png"), 0, 5)),
        )
        for says, take in (
            ("leave out the classes with fewer", r"fewer than 2 images \(--min_images (\d+)\)"),
            ("keep every class that has an image", r"training alone \(--min_images (\d+)\)"),
        )
    ),
    Step(
        "leave out the classes without any", "train {D}", "--min_images 1", before=only(lambda: os.mkdir("photos/new"))
    ),
    Step(
        "; give the folder of the photos with --data_dir",
        "train {F} --splits r/splits.csv",
        "--data_dir moved",
        before=only(move, "photos", "moved"),
    ),
    Step("give the splits.csv of a run, or", "train {D} --splits nowhere.csv", "--splits r"),
    Step(
        "expected path, label, split",
        "train {D} --splits mine.csv",
        before=only(write, "mine.csv", "a,b", "1,2"),
        fix=only(shutil.copy, "r/splits.csv", "mine.csv"),
    ),
    Step(
        "expected path, label and train, valid or test",
        "train {F} --splits mine.csv",
        before=only(write, "mine.csv", "path,label,split", "photos/cat/00.png,cat,trian"),
        fix=only(shutil.copy, "r/splits.csv", "mine.csv"),
    ),
    Step(
        "{} is in {}; remove one",
        "train {F} --splits mine.csv",
        before=only(write, "mine.csv", "path,label,split", *["photos/cat/00.png,cat,train"] * 2),
        fix=only(shutil.copy, "r/splits.csv", "mine.csv"),
    ),
    Step("--fit squash or --fit pad shows all", "train {D}", "{0}", r"; (--fit squash) or", before=only(long_photos)),
    Step("--bit_depth {} brightens them", "train {D}", "{0}", r"(--bit_depth \d+) bright", before=only(deep_photos)),
    *(
        Step(says, "train {F} --labels mine.csv --data_dir photos", before=before, fix=fix)
        for before, fix, says in (
            (
                only(write, "mine.csv", "path,label", "cat/00.png,cat,a"),
                only(shutil.copy, "tables/list.csv", "mine.csv"),
                "put a cell that contains the separator in quotes",
            ),
            (
                only(write, "mine.csv", "path,label", 'cat/00.png,"cat'),
                only(shutil.copy, "tables/list.csv", "mine.csv"),
                "opens a quote that is never closed",
            ),
            (
                only(shutil.copy, "photos/cat/00.png", "mine.csv"),
                only(shutil.copy, "tables/list.csv", "mine.csv"),
                "is not a text file; save the table as CSV",
            ),
            (
                only(write, "mine.csv", *[f"{n},{n % 2}" for n in range(1, 9)]),
                only(shutil.copy, "tables/list.csv", "mine.csv"),
                "add a line above them that gives the names",
            ),
        )
    ),
    Step(
        "has the columns {}; name {}{}",
        "train {F} --labels mine.csv --data_dir photos",
        "--path_column a --label_column b",
        before=lambda _: write("mine.csv", "a,b,c", *[f"{row},x" for row in rows_of("tables/list.csv")]),
    ),
    Step(
        "or name another column with --label_column",
        "train {F} --labels mine.csv --data_dir photos",
        "--label_column {0}",
        r"with --label_column \((\w+)",
        before=lambda _: write(
            "mine.csv", "path,label,name", *[row.replace(",", ",x,") for row in rows_of("tables/list.csv")]
        ),
    ),
    Step(
        "merge them or remove one",
        "train {F} --data_dir split",
        before=only(shutil.copytree, "split/val", "split/valid"),
        fix=only(shutil.rmtree, "split/valid"),
    ),
    Step(
        "remove the folders that are not classes",
        "train {D}",
        before=only(lambda: os.mkdir("photos/new")),
        fix=only(os.rmdir, "photos/new"),
    ),
    Step(
        "add lines of other classes to",
        "train {F} --labels mine.csv --data_dir photos",
        before=lambda _: write("mine.csv", "path,label", *rows_of("tables/list.csv")[:5]),
        fix=only(shutil.copy, "tables/list.csv", "mine.csv"),
    ),
    Step(
        "has no header line; its columns are called {}; name",
        "train {F} --labels mine.csv --data_dir photos",
        "--label_column '{0}'",
        r"(column \d) \(c",
        before=lambda _: write("mine.csv", *[f"{row},x" for row in rows_of("tables/list.csv")]),
    ),
    Step(
        "or use --dataset_name digits, which needs",
        "train {F} --dataset_name hymenoptera",
        "{0}",
        r"use (--dataset_name digits)",
        before=offline,
    ),
    Step("training on the built-in digits", "train {F}", "--data_dir photos"),
    *(
        Step(says, f"train {{D}} {flags}", "--on_leak drop", before=only(shutil.copy, *copy))
        for says, flags in (
            ("; --on_leak drop leaves out", ""),
            ("or use --on_leak drop or warn", "--on_leak error"),
        )
        for copy in [("photos/cat/00.png", "photos/dog/copy.png")]
    ),
]


def rows_of(name: str) -> list[str]:
    return Path(name).read_text().splitlines()[1:]


MODELS = [
    Step(
        "of the usual sizes it takes",
        "train {D} --model_name timm/test_vit --image_size 8",
        "--image_size {0}",
        r"takes (\d+)",
    ),
    Step(
        "has no checkpoint any more",
        "train {D} --weights r",
        "--weights other.pth",
        before=each(lambda: move("tiny.pth", "other.pth"), lambda: os.unlink("r/last_model.pth")),
    ),
    Step(
        "has another hidden layer (--head_hidden)", "train {D} --weights tiny.pth --head_hidden 8", "no --head_hidden"
    ),
    Step(
        "timm has no pretrained weights for",
        "train {D} --use_pretrained --model_name timm/test_vit4",
        f"no --use_pretrained --weights tiny.pth --model_name {NAME}",
    ),
    Step("(--freeze_until); choose from", "train {A} --freeze_until layr2", "--freeze_until {0}", r"choose from (\w+)"),
    Step("would freeze the head too", "train {A} --freeze_until fc", "--freeze_until layer4"),
    Step(
        "take that model (--model_name)",
        "train {D} --model_name resnet18 --weights tiny.pth",
        "--model_name {0}",
        r"is a checkpoint of (\S+);",
    ),
    Step(
        "there are no weights",
        "train {A} --model_name resnet18.V9 --dry_run",
        "--model_name resnet18.{0}",
        r"from (\w+)",
    ),
    Step(
        "is unknown; choose from {}, a torchvision",
        "train {D} --model_name resnte18",
        "--model_name {0}",
        r"mean (\w+)\?",
    ),
    Step(
        "write it as in timm/resnet18", "train {D} --model_name timm/test_resnett", "--model_name {0}", r"mean (\S+)\?"
    ),
    Step("leave out --{}", "predict {P} --image_size 64", "no --image_size"),
    Step(
        "cannot be used: {}; train it again",
        "predict {P}",
        "train --data_dir photos {S} --freeze --n_epochs 1 --model_fn tiny.pth",
        before=lambda _: change("tiny.pth", precision="fp7"),
    ),
    Step(
        "give both: --model_name NAME --class_names A B C",
        "predict --model_fn plain.pth --input photos --image_size 32 --n_workers 0",
        f"--model_name {NAME} --class_names cat cow dog",
        before=only(plain),
    ),
    Step(
        "different; give two or more, each once",
        "predict {Q} --model_fn plain.pth --class_names cat cat",
        "--class_names cat cow dog",
        before=only(plain),
    ),
    Step(
        "give one name for each output",
        "predict {Q} --model_fn plain.pth --class_names a b",
        "--class_names a b c",
        before=only(plain),
    ),
    Step(
        "give two or more names, or a text file",
        "predict {Q} --model_fn plain.pth --class_names names.txt",
        before=only(plain),
        fix=only(write, "names.txt", "cat", "cow", "dog"),
    ),
    Step("predict with {}", "predict {P} --model_fn r/last.pth", "--model_fn {0}", r"or (\S+last_model\.pth)"),
    Step(
        "is not a checkpoint of this tool; give the .pth",
        "predict {P} --model_fn odd.pth",
        "--model_fn tiny.pth",
        before=only(torch.save, {"format_version": 1}, "odd.pth"),
    ),
    Step(
        "NAME takes others",
        "predict {Q} --model_fn plain.pth",
        "--weights_key model",
        r"networks: (model), ",
        before=only(plain, two_networks(("model", "model_ema"))),
    ),
    Step(
        "there are none in {} (--weights_key)",
        "predict {Q} --model_fn plain.pth --weights_key modle",
        "--weights_key {0}",
        r"mean (\w+)\?",
        before=only(plain, two_networks(("model", "model_ema"))),
    ),
    Step(
        "choose one (--weights_key {})",
        "predict {Q} --model_fn plain.pth",
        "{0}",
        r"\((--weights_key \w+)\)",
        before=only(plain, two_networks(("student", "teacher"))),
    ),
    Step(
        "holds no tensors; give a state_dict",
        "train {D} --weights odd.pth",
        "--weights tiny.pth",
        before=only(torch.save, {"a": 1}, "odd.pth"),
    ),
    Step(
        "head_activation {} is unknown",
        "predict {Q} --model_fn plain.pth --head_activation rleu",
        "--head_activation {0}",
        r"choose from (\w+)",
        before=only(plain, two_heads),
    ),
    Step(
        "nothing to compute between layers of its head",
        "predict {Q} --model_fn plain.pth --head_activation relu",
        "no --head_activation",
        before=only(plain),
    ),
    Step("with one set of weights; leave", "train {D} --weights tiny.pth --weights_key a", "no --weights_key"),
    Step(
        "does not tell what its head computes at",
        "predict {Q} --model_fn plain.pth",
        "{0}",
        r"example (--head_activation \w+)",
        before=only(plain, two_heads),
    ),
    Step(
        "needs a linear head, but that of this model",
        "train {D} --model_name squeezenet --head_hidden 8",
        "no --head_hidden",
    ),
    Step(
        "was it made with another --model_name or --image_size?",
        "train {D} --model_name resnet18 --weights plain.pth",
        f"--model_name {NAME}",
        before=only(plain),
    ),
    Step("not a PyTorch file; give a checkpoint", "train {D} --weights weights.pth", "--weights tiny.pth"),
    Step(
        "save only the weights where it was made",
        "train {D} --weights whole.pth",
        before=only(lambda: torch.save(torch.nn.Linear(1, 1), "whole.pth")),
        fix=only(lambda: plain(name="whole.pth")),
    ),
    Step(
        "delete it and get it again",
        "train {D} --weights cut.pth",
        before=only(lambda: Path("cut.pth").write_bytes(Path("tiny.pth").read_bytes()[:9000])),
        fix=only(shutil.copy, "tiny.pth", "cut.pth"),
    ),
    Step("give an existing .pth or .safetensors", "train {D} --weights tny.pth", "--weights {0}", r"mean (\S+)\?"),
    Step(
        "save plain tensors where it was made",
        "train {D} --weights odd.pth",
        before=only(lambda: torch.save({"a": torch.eye(3).to_sparse()}, "odd.pth")),
        fix=only(lambda: plain(name="odd.pth")),
    ),
    Step(
        "save its state_dict instead",
        "train {D} --weights odd.pth",
        before=only(lambda: torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1, 1)).save("odd.pth")),
        fix=only(lambda: plain(name="odd.pth")),
    ),
    Step(
        "or use weights that need no network",
        "train {D} --model_name resnet18 --use_pretrained",
        "{0}",
        r"(--model_name efficientnet_lite0 --use_pretrained)",
        before=offline,
    ),
    *(
        Step(
            says,
            "predict {Q} --model_fn plain.pth --class_names cat cow dog",
            "{0}",
            r"images  (--.*?);",
            before=only(plain),
        )
        for says in ("--image_size {} --resize {} --fit {}", "--interpolation {} --mean {} --std {}")
    ),
    Step("try --precision fp32", "predict {P} --result -", "--precision fp32", before=no_numbers),
    Step("needs a linear last layer", "train {D} --model_name squeezenet --head logistic", "no --head", is_dry=False),
    Step("needs a network whose head can be told apart", "train {D} --folds 3", "no --folds", before=headless),
]

RUNS = [
    Step("and leave --dry_run out to train", "train {D} --dry_run", "no --dry_run", is_dry=False),
    Step("give them trained ones with --use_pretrained or", "train {D}", "--weights tiny.pth"),
    Step("classes: {}", "train {D} --n_classes 7", "no --n_classes"),
    Step("exists and is not a checkpoint; give another", "train {D} --model_fn note.txt", "--model_fn other.pth"),
    Step("or freeze it with --freeze_bn", "train {A} --sync_bn", "no --sync_bn --freeze_bn"),
    Step(
        "cannot write to the feature cache", "train {D} --feature_cache note.txt", "--feature_cache new", is_dry=False
    ),
    Step("{} {} is unknown; choose from {}", "train {D} --optimizer adma", "--optimizer {0}", r"mean (\w+)\?"),
    Step("; try a lower --lr in a new run", "train {A} --lr 1e30 --optimizer sgd", "--lr 1e-3", is_dry=False),
    Step("{}: add --accumulate {}", "train {A} --batch_size 4", "{0}", r"add (--accumulate \d)", before=no_memory),
    Step(
        "{}continue with: {}",
        "train {A} --batch_size 8 --n_epochs 2 --run_dir new",
        "{0}",
        r"continue with: python (train\.py --resume new --accumulate \d)",
        before=memory_runs_out,
        is_dry=False,
    ),
    Step(
        "{} ran out; end other programs, {}{}",
        "train {D} --run_dir new",
        "{0}",
        r"continue with: python (train\.py --resume new)",
        before=other_memory_runs_out,
        is_dry=False,
    ),
    Step(
        "better than epoch {} (--early_stop {}); train on with",
        "train {A} --lr 1e-12 --freeze_bn --n_epochs 3 --early_stop 1",
        "{0}",
        r"train on with: python (train\.py .*)",
        is_dry=False,
    ),
    Step("raise --n_epochs to train longer", "train --resume r", "--n_epochs 2"),
    Step(
        "learning rate of every epoch depends on that number",
        "train --resume r --n_epochs 9",
        "no --n_epochs",
        before=flags_of_run(scheduler="cosine"),
    ),
    Step(
        "of the run; it may only grow", "train --resume r --n_epochs 1", "--n_epochs 3", before=flags_of_run(n_epochs=2)
    ),
    Step("would change the result of the run, which has", "train --resume r --lr 0.5", "no --lr"),
    Step(
        "repeat it as --model_fn", "train --resume r", "--model_fn {0}", r"writes to (\S+);", before=only(write_outside)
    ),
    Step(
        "restore both file names, then continue",
        "train --resume r --n_epochs 2",
        before=only(replace_best),
        fix=only(restore_names),
    ),
    Step("no epoch is left to choose from", "train --resume r", "--n_epochs 2", before=only(lose_best)),
    Step(
        "give each run its own --model_fn",
        "train --resume r --n_epochs 2",
        "train {D} --model_fn own.pth",
        before=another_run_writes,
        is_dry=False,
    ),
    Step(
        "put the run's own checkpoint back",
        "train --resume r --n_epochs 2",
        before=wrong_best,
        fix=only(shutil.copy, "kept.pth", "tiny.pth"),
    ),
    Step(
        "or none, to store nothing (--views 0)",
        "train {D}",
        "--views 0",
        before=lambda patch: patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=9, free=1)),
        is_dry=False,
    ),
    Step("give a new one, or leave --run_dir out", "train {D} --run_dir r", "no --run_dir"),
    Step(" (to continue its run: {})", "train {D} --run_dir r", "{0}", r"its run: python (train\.py --resume r)\)"),
    Step("{}; give --run_dir DIR", "train {D} --run_dir note.txt", "--run_dir new"),
    Step("is a file; give the folder of the run", "train --resume r/last.pth", "--resume {0}", r"such as (\S+) "),
    Step("there is no folder {}{}; give the run folder", "train --resume rr", "--resume r"),
    Step("or start a new run if that one was stopped before", "train --resume photos", "--resume r"),
    Step(
        "; restore it, or start a new run",
        "train --resume r --n_epochs 2",
        before=only(move, "r/backbone.pth", "kept.pth"),
        fix=only(move, "kept.pth", "r/backbone.pth"),
    ),
    Step("fewer passes (--accumulate) or larger", "train {A} --batch_size 1", "--batch_size 4"),
    Step("choose from -1 (the CPU)", "train {D} --gpu_id 99", "--gpu_id {0}", r"choose from (-1)"),
    Step("{} {} is a folder; give the name of a file", "train {D} --model_fn photos", "--model_fn other.pth"),
    Step("choose another folder", "train {D} --model_fn note.txt/m.pth", "--model_fn other.pth"),
    Step("use     {}", "train {D}", "{0} --n_workers 0", r"use     python (predict\.py .*)", is_dry=False),
]

FLAGS = [
    Step("put a name with spaces in quotes", "train {F} --data_dir of mine", "--data_dir {0}", r'quotes: (".*?")'),
    Step("takes no value: leave it out", "train {D} --freeze yes", "--freeze"),
    Step("leave it out, or add its flag", "train {D} foo", "--model_fn m.pth"),
    Step("{} needs a value; type {} {}", "train {D} --lr", "{0} 0.001", r"type (--lr) X"),
    Step("{}; see python {} --help", "train {D} --foo 1", "{0}", r"see python (train\.py --help)"),
    Step("; write a dot: {}", "train {D} --lr 0,01", "--lr {0}", r"dot: (\S+);"),
    Step("was given an empty value; give one", "train {D} --model_fn ''", "no --model_fn"),
    Step("--data_dir and --dataset_name were both", "train {D} --dataset_name digits", "no --dataset_name"),
    Step(
        "--labels and --dataset_name were both",
        "train {F} --labels tables/list.csv --dataset_name digits",
        "no --dataset_name --labels kinds.csv",
        fix=lambda: write("kinds.csv", "path,label", *[f"photos/{row}" for row in rows_of("tables/list.csv")]),
    ),
    Step("give --splits and --data_dir", "train {D} --new_photos train", "--splits r --data_dir photos"),
    Step(
        "--use_pretrained and --weights were both",
        "train {D} --use_pretrained --weights tiny.pth",
        "no --use_pretrained",
    ),
    Step("needs a --gamma below 1", "train {D} --scheduler plateau --gamma 2", "--gamma {0}", r"; (\S+) is usual"),
    Step("--freeze and --freeze_until were both", "train {D} --freeze_until layer1", "no --freeze_until"),
    Step("trains the head alone first; add --freeze", "train {A} --n_epochs 3 --unfreeze_after 1", "--freeze"),
    Step("goes on to train all layers, and {}", "train {D} --n_epochs 3 --unfreeze_after 1 --folds 3", "no --folds"),
    Step("leaves no epoch for training all layers", "train {D} --unfreeze_after 1", "--n_epochs 2"),
    Step("computes stored features, of a backbone that stays", "train {A} --engine openvino", "--freeze", is_dry=True),
    Step("--engine openvino cannot compute here", "train {D} --engine openvino", "no --engine", before=headless),
    Step("solves the head on a frozen backbone; add", "train {A} --head logistic", "--freeze --head logistic"),
    Step("about {} times as long; add --freeze", "train {A} --folds 3", "--freeze"),
    Step("needs stored features, and with", "train {D} --folds 3 --views 0", "no --views"),
    Step("is a single layer, and --head_hidden", "train {D} --head logistic --head_hidden 8", "no --head_hidden"),
    Step(
        "must sum to 1, with train and valid above 0",
        "train {D} --train_ratio 0.9 --valid_ratio 0.9",
        "--train_ratio {0} --valid_ratio {1} --test_ratio {2}",
        r"for example (\S+) (\S+) (\S+)",
    ),
]

PREDICTIONS = [
    Step("name it with --model_fn FILE", "predict --input photos --n_workers 0", "--model_fn {0}", r"has (\S+?),"),
    Step("--result {} would overwrite a model or a photo", "predict {P} --result x.png", "--result {0}", r"like (\S+)"),
    Step("training held out {}, and {}; give", "predict {P} --coverage 0.99", "--coverage {0}", r"give at most (\S+)"),
    Step("no images were found; give photos", "predict {P} --input empty", "--input photos"),
    Step("does not end in .png; give a name", "predict {P} --sheet x.jpg", "--sheet {0}", r"like (\S+)"),
    Step("--sheet {} was not written by this tool", "predict {P} --sheet loose/cat00.png", "--sheet x.png"),
    Step("is the folder of a training run; give", "predict {P} --report r", "--report new"),
    Step(
        "no labels are known, so it shows only the answers", "predict {P} --input loose --report new", "--input photos"
    ),
    Step(
        "--report {}: {} was not written by this tool; give another folder",
        "predict {P} --report mine",
        "--report new",
        before=only(write, "mine/report.json", "[]"),
    ),
    Step(
        "lists no images; give some with --input",
        f"predict --n_workers 0 --model_fn plain.pth --image_size 32 --model_name {NAME} --class_names a b c",
        "--input photos",
        before=only(plain),
    ),
    Step(
        "so none is left to predict; give new ones",
        "predict --model_fn tiny.pth --n_workers 0",
        "--input photos",
        before=only(no_held_out),
    ),
    Step("or - for stdin", "predict {P} --input foto", "--input {0}", r"mean (\w+)\?"),
    Step("give a number from 1 to {}", "predict {P} --top_k 9", "--top_k {0}", r"from 1 to (\d+)"),
    Step(
        "has {}; leave out --resume to start over",
        "predict {P} --resume",
        "no --resume",
        before=only(shutil.copy, "loose/cat00.png", "photos/dog/new.png"),
    ),
    Step("give the same flags as before", "predict {P} --resume --top_k 2", "no --top_k", before=only(partial_result)),
    Step(
        "give the same inputs in the same order",
        "predict {P} --resume",
        before=each(partial_result, lambda: move("photos/cat/00.png", "kept.png")),
        fix=only(move, "kept.png", "photos/cat/00.png"),
    ),
    Step(
        "was made with another {}; use the same",
        "predict {P} --resume --min_probability 0.5",
        "no --min_probability",
        before=only(partial_result),
    ),
    Step("run the same command with --resume to continue", "predict {P}", "--resume", before=prediction_stops),
    Step("needs a result that ends in .csv or .jsonl", "predict {P} --resume --result x.xlsx", "--result x.csv"),
    Step(
        "; give another --result",
        "predict {P}",
        "--result other.csv",
        before=each(lambda: write("result.csv.partial", ""), lambda: os.mkdir("result.csv.partial.prev")),
    ),
    Step("such as result.csv", "predict {P} --result table.csv", "--result {0}", r"such as (\S+)"),
    Step("--resume needs a file; --result -", "predict {P} --resume --result -", "--result result.csv"),
]


def three_runs() -> None:
    for name in ("r2", "r3"):
        shutil.copytree("r", name)


COMPARISONS = [
    Step("; train at least two runs, or name their folders", "compare r", "compare r r2", fix=three_runs),
    Step(
        "(train.py --resume continues it)",
        "compare r r2 r3",
        "train --resume r3",
        before=each(three_runs, lambda: os.unlink("r3/finished.json")),
    ),
    Step(
        "; give a name like runs{}",
        "compare r r2 --csv table.html",
        "--csv {0}",
        r"like (\S+)",
        before=each(three_runs),
    ),
]

STEPS = [*DATA, *MODELS, *RUNS, *FLAGS, *PREDICTIONS, *COMPARISONS]

# Advice that is not followed here, by the reason.
NOT_FOLLOWED = {
    "another program does it": (
        "it unpacks to more than {}; if you trust it",
        "it is encrypted with a password",
        "save the three that make the picture as RGB",
        "begins with a small preview, as camera raw files do",
        "save it as JPEG, PNG or TIFF",
        "is a camera raw file, of which only a preview",
        "save the frames that you want as images",
        "is a document; save its pictures",
        "is a medical or microscope image",
        "holds arrays; save their pictures",
        "is a set for object detection",
        "save it without its alpha channel",
        "whose range is unknown; save it with 8 or 16 bits",
        "so it is not read as a table; split it",
        "if names look wrong, save it as UTF-8",
        "it has more cells than a table of images needs",
        "was refused: it defines entities",
        "cannot be read as a workbook",
        "is not a readable .xlsx workbook",
        "unpacks to more than {} MB",
        "pip install elpv-dataset",
        "which needs pillow-heif; install it",
        "from a newer version; update the tool",
        "reads only up to {}; update the tool",
        "install one, such as Noto Sans CJK",
    ),
    "a machine at its limits: tests/test_limits.py, tests/test_trouble.py and benchmarks/survive.py": (
        "the shared memory ({}) is too small",
        "its rows are lost; run the command again",
        "cannot replace {} ({}): is it open in another program?",
        "cannot write to stdout",
        "too many files are open",
        "allows no more processes or threads",
        "ran out of shared memory; give --n_workers 0",
        "if other programs took the memory, end them and",
        "{} ran out in {}; give {}a smaller --image_size",
        "give a lower --n_workers, or 0,",
        "this process may have {} GB",
        "the system allows no more than {} threads",
        "allow more with `ulimit -u`",
        "remove files of yours, or ask for a larger quota",
        "raise the limit on the size of files",
        "choose a folder that can be written",
        "choose a folder that you may write",
        "there is no writable folder for temporary files",
        "set TMPDIR to a writable folder with a short path",
        "raise its limit (docker run --shm-size 2g)",
        ", or predict on the CPU (--gpu_id -1)",
        "fewer workers need less memory",
        "was removed during the run, with its saves",
    ),
    "several processes or GPUs: tests/runtime/test_distributed.py": (
        "the features that other processes stored",
        "start as many (--nproc_per_node {})",
        "is the batch of all {} processes",
        "is one device for {} processes",
        "or the launcher would repeat the run",
    ),
    "a file of the hub or of a release that cannot be used": (
        "does not fit timm/{}",
        "its checksum is wrong; delete it",
        "{} cannot be used: {}; remove it",
        "as its head, but {} has {}; train it again",
    ),
    "a network that no library has at present": (
        "; leave --explain out, or use another",
        "cannot be used as a classifier",
        "its head cannot be found",
    ),
    "a damaged file of a run: tests/training/test_resume.py makes each, and any other test starts a new run": (
        "does not fit the run ({}); start a new run",
        "{} cannot be used: {}; start a new run",
        "was not written by this tool; start a new run",
        "a sample without a known label; start a new run",
        "cannot read {}: {}; start a new run",
        "{} cannot be used ({}); start a new run",
    ),
    "tens of thousands of classes": ("cannot hold {} columns",),
    "what a program of the user's asks for": ("there is no device {} on this machine",),
    "the reason of a row, or what is, without a step": (
        "does not exist; give existing files or folders",
        "so there is little to learn from; look at the files",
        "none of its images exists{}",
        "could be read; see skipped.csv in the run folder",
        "the backbone runs in every epoch, as with --views 0",
        "the output of {} needs {} and {} has {} free",
        "them apart: it is empty for answers",
    ),
    "of what is known of the photos: tests/prediction/test_unknown.py and tests/curation": (
        "keeps no distances to its training photos",
        "keeps no probabilities of held-out photos",
        "the distances of this checkpoint are for",
        "changed answers, probabilities differ by at most",
        "left out --unknown, --coverage and the column",
        "--near_duplicates group (they stay together)",
        "start a new run with --near_duplicates drop",
        "or the class would have none there",
        "so all {} are kept",
        "correct the labels of clusters of several classes, or",
        "correct the labels of clusters of several classes, and",
        "no features were stored; start a new run",
        "held out at once, because they are a single photo, copies or one group; add others",
        "too few different photos were held out",
        "could be read; start a new run with others",
        "start a new run with --freeze and this version",
        "predict.py --unknown refuses photos of none of your classes. Tried with",
        "if you want to predict such photos, label some and train",
        "; look at some, and if they show your classes",
        "predict photos that the model has not seen",
        "{} {} odd: see {}",
    ),
    "a part of another message here": (
        "--false_alarm {}",
        "--coverage {}",
        ": see {}",
        "--unfreeze_after {}",
        "--folds {}",
        "choose from {}",
        "{}; leave it out",
        "compute each step in {} smaller passes",
        "would not train {} any further",
        "or train a new run with a smaller --image_size",
        "--batch_size {},",
        "give --batch_size {}",
    ),
    "of an export, or of what it wrote: tests/export": (
        "next python {} --input new_photos",
        "next timm.create_model(",
        "does not end in .onnx; give a name like",
        "none of its photos are where they were; give some",
        "is two things in one file",
        "cannot be exported: torch.onnx refuses it",
        "is built differently in timm, which cannot load it",
        "timm has no network {}, so that it cannot load",
        "Predicts the classes of photos with {model}",
        "train with bilinear or bicubic",
        "8 bits are calibrated on training photos",
        "{}, so nothing was proven and no file written; give others",
        "8 bits may cost accuracy, and no label is known",
    ),
    "labels that look wrong: tests/training/test_label_check.py": (
        "see {}, correct suspects.csv beside it, and train with that",
        "no label in {} was changed yet: look at the lines with a reason",
    ),
    "what was measured: tests/training/test_next_steps.py": (
        "next {}: {}",
        "try fine-tuning{}",
        "{}; add photos of it, or let rare classes count more",
        "{}; {}try {}",
    ),
    "a list of photos given as a folder: tests/prediction/test_predictor.py": ("give the paths of the photos in it",),
    "no advice": (
        'if __name__ == "__main__"',
        "split splits set subset",
        "train loss {} accuracy {}",
        "train up to {}, augmentation {}",
        "train the head alone, solved",
    ),
}
