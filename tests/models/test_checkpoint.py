import pickle
import shutil
import warnings
import zipfile

import pytest
import torch
from helpers import NAME, TINY, assert_one_line_error, save_image

from photo_classifier.models.tensor_files import write

PREDICT = ("--n_workers", 0, "--gpu_id", -1)


def read(path="tiny.pth"):
    return torch.load(path, weights_only=True)


class Payload:
    """Writes a file when a careless reader opens it."""

    def __reduce__(self):
        return (open, ("payload-ran", "w"))


def change(**values):
    torch.save({**read(), **values}, "tiny.pth")


def change_tensor(make):
    content = read()
    name = "layer1.0.conv1.weight"
    change(state_dict={**content["state_dict"], name: make(content["state_dict"][name])})


def cut(share):
    content = open("tiny.pth", "rb").read()
    open("tiny.pth", "wb").write(content[: int(len(content) * share)])


def compress():
    change(state_dict={**read()["state_dict"], "more": torch.zeros(10_000_000)})
    with zipfile.ZipFile("tiny.pth") as plain, zipfile.ZipFile("c.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    open("tiny.pth", "wb").write(open("c.pth", "rb").read())


def laugh(item="lol"):
    for _ in range(60):
        item = [item, item]
    return item


def quantized(tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


HOSTILE = {
    "a payload": (lambda: change(extra=Payload()), "was not opened, because such a file can run code"),
    "a bare pickle": (lambda: open("tiny.pth", "wb").write(pickle.dumps(Payload())), "is not a PyTorch file"),
    "a whole model": (lambda: torch.save(torch.nn.Linear(2, 2), "tiny.pth"), "can run code"),
    "cut short": (lambda: cut(0.5), "is damaged or incomplete"),
    "almost whole": (lambda: cut(0.999), "is damaged or incomplete"),
    "nothing": (lambda: cut(0), "is damaged or incomplete"),
    "newer": (lambda: change(format_version=99), "has format 99, but this version reads only up to 1"),
    "a strange version": (lambda: change(format_version=torch.ones(3)), "is not a checkpoint of this tool"),
    "the state of a run": (
        lambda: shutil.copy("r/last.pth", "tiny.pth"),
        "is the state of a run for train.py",
    ),
    "parts": (lambda: torch.save({"format_version": 1}, "tiny.pth"), "is not a checkpoint of this tool"),
    "compressed": (compress, "would unpack to"),
    "of another model": (lambda: change(model_name="resnet34"), "does not fit the model: it lacks "),
    "an unknown model": (lambda: change(model_name="resnet19"), "'resnet19' is unknown"),
    "another shape": (lambda: change_tensor(lambda t: t[:5].clone()), "another shape for layer1.0.conv1.weight"),
    "not a number": (lambda: change_tensor(lambda t: t * float("nan")), "not finite in layer1.0.conv1.weight"),
    "not a number in 32 bits": (lambda: change_tensor(lambda t: t.double() * 1e300), "not finite in layer1.0.conv1"),
    "complex numbers": (
        lambda: change_tensor(lambda t: t.to(torch.complex64)),
        "wrong type of numbers for layer1",
    ),
    "complex and none": (
        lambda: change_tensor(lambda t: t * complex("nan")),
        "wrong type of numbers for layer1",
    ),
    "whole numbers": (
        lambda: change_tensor(lambda t: t.to(torch.int8)),
        "wrong type of numbers for layer1",
    ),
    "truth values": (lambda: change_tensor(lambda t: t.bool()), "wrong type of numbers for layer1"),
    "eight bits": (
        lambda: change_tensor(lambda t: t.to(torch.float8_e4m3fn)),
        "wrong type of numbers for layer1",
    ),
    "sparse": (lambda: change_tensor(lambda t: t.to_sparse()), "a sparse, quantized or empty tensor"),
    "quantized": (lambda: change_tensor(quantized), "a sparse, quantized or empty tensor"),
    "empty": (lambda: change_tensor(lambda t: t.to("meta")), "a sparse, quantized or empty tensor"),
    "one number": (lambda: change_tensor(lambda t: torch.zeros(1).expand(10**6, 10**6)), "larger than its data"),
    "no tensor": (lambda: change_tensor(lambda t: "zeros"), "expected Tensor, got str (state_dict"),
    "a class less": (lambda: change(class_names=["a", "b"]), "has 3 outputs but 2 class names"),
    "a number for names": (lambda: change(class_names=3), "expected array, got int (class_names)"),
    "numbers for names": (lambda: change(class_names=[1, 2, 3]), "expected str, got int (class_names[0])"),
    "names without end": (lambda: change(class_names=laugh()), "expected str, got array (class_names[0])"),
    "a name twice": (lambda: change(class_names=["a", "a", "b"]), "class_names are not different"),
    "a text for the size": (lambda: change(image_size="32"), "expected int, got str (image_size)"),
    "a great size": (lambda: change(image_size=10**6), "expected int <= 8192 (image_size)"),
    "a great batch": (lambda: change(eval_batch_size=10**9), "expected int <= 256 (eval_batch_size)"),
    "a small resize": (lambda: change(resize=1), "resize is less than image_size"),
    "a strange filter": (lambda: change(interpolation="magic"), "invalid enum value 'magic' (interpolation)"),
    "a strange precision": (lambda: change(precision="fp4"), "invalid enum value 'fp4' (precision)"),
    "no mean": (lambda: change(mean=[]), "expected array of length 3, got 0 (mean)"),
    "no deviation": (lambda: change(std=[0, 0, 0]), "expected float > 0.0 (std[0])"),
    "an infinite mean": (lambda: change(mean=[float("inf")] * 3), "expected float <= 1e+300 (mean[0])"),
    "no temperature": (lambda: change(temperature=0.0), "expected float > 0.0 (temperature)"),
    "another head": (lambda: change(head="layer1"), "has 'layer1' as its head, but"),
    "strange splits": (lambda: change(splits=[1]), "expected object, got array (splits)"),
    "splits without what they name": (lambda: change(splits={"cwd": ".", "held_out": "valid"}), "splits has no"),
    "splits without paths": (lambda: change(splits={"cwd": ".", "held_out": "valid", "valid": [7]}), "splits has no"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_broken_checkpoint_is_refused_in_one_line_and_runs_nothing(name, cli, trained, tmp_path, recwarn):
    spoil, expected = HOSTILE[name]
    spoil()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert_one_line_error(cli("predict", "--model_fn", "tiny.pth", *PREDICT), expected)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before, "nothing was written"
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_a_hostile_file_of_weights_is_refused_before_training(cli, split_folder):
    torch.save({"conv1.weight": torch.zeros(1), "extra": Payload()}, "w.pth")
    done = cli("train", "--data_dir", split_folder, *TINY, "--weights", "w.pth")
    assert_one_line_error(done, "can run code")
    assert not {path.name for path in split_folder.parent.iterdir()} & {"payload-ran", "runs", "timm_test_resnet.pth"}


WRAPPED = {
    "bare": lambda state: state,
    "nested": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "parallel": lambda state: {"model_state_dict": {f"module.{name}": value for name, value in state.items()}},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_a_plain_state_dict_predicts_with_its_network_and_classes_named(how, cli, trained, tmp_path):
    image = save_image(tmp_path / "a.png", 0, 5)
    # what its own checkpoint says at the size of the published weights, which a plain one is taken to have
    change(image_size=224, resize=256)
    assert cli("predict", "--model_fn", "tiny.pth", "--input", image, *PREDICT, "--batch_size", 32).status == 0
    expected = open("result.csv", encoding="utf-8-sig").read()
    write("plain.pth", WRAPPED[how](read()["state_dict"]))
    (tmp_path / "names.txt").write_text("cat\ndog\n개\n", encoding="utf-8")
    for names in (["cat", "dog", "개"], ["names.txt"]):
        argv = ("--model_fn", "plain.pth", "--model_name", NAME, "--input", image, *PREDICT)
        done = cli("predict", *argv, "--class_names", *names)
        assert done.status == 0, done.err
        assert [line.split(",")[:2] for line in open("result.csv", encoding="utf-8-sig")] == [
            line.split(",")[:2] for line in expected.splitlines()
        ]


def test_what_a_plain_state_dict_does_not_hold_is_asked_for(cli, trained, tmp_path):
    write("plain.pth", read()["state_dict"])
    plain = ("--model_fn", "plain.pth")
    for flags, expected in (
        ((), "which names neither its network nor its classes; give both: --model_name NAME --class_names A B C"),
        (("--model_name", NAME, "--class_names", "a"), "give two or more names, or a text file"),
        (("--model_name", NAME, "--class_names", "a", "a"), "2 names, 1 different"),
        (("--model_name", NAME, "--class_names", "a", "b"), "has 3 outputs but 2 class names"),
        (
            ("--model_name", "resnet34", "--class_names", "a", "b", "c"),
            "was it made with another --model_name",
        ),
        (("--model_name", NAME, "--class_names", "a", "b", "c"), "give some with --input"),
    ):
        assert_one_line_error(cli("predict", *plain, *flags, *PREDICT), expected)
    own = cli("predict", "--model_fn", "tiny.pth", "--class_names", "a", "b", "c", *PREDICT)
    assert_one_line_error(own, "tiny.pth names its own network and classes")


def test_running_out_of_memory_is_not_reported_as_a_damaged_file(cli, trained, monkeypatch):
    def load(*_, **__):
        raise MemoryError

    monkeypatch.setattr(torch, "load", load)
    assert_one_line_error(cli("predict", "--model_fn", "tiny.pth", *PREDICT), "memory ran out")
