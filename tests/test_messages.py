"""Typical mistakes of new users, and the one line that answers: what came, what is allowed, what to type."""

import shlex

import pytest
from helpers import assert_one_line_error, make_class_folders, save_image

from photo_classifier.runtime.limits import resource_hint

RUN = "--data_dir photos --model_name resnet18 --image_size 32 --n_workers 0 --gpu_id -1"

WRONG_FLAGS = {
    "train --data_dri photos": "--data_dri is not a flag of train.py; did you mean --data_dir?",
    "train --freez": "did you mean --freeze or --freeze_until or --freeze_bn?",
    "train --early-stop 3": "did you mean --early_stop?",
    "train --LR 3": "did you mean --lr?",
    "train -lr 3": "did you mean --lr?",
    "train --lr": "--lr needs a value; type --lr X; see python train.py --help",
    "train --lr fast": "--lr needs a number above 0, not 'fast'",
    "train --lr 0,001": "needs a number above 0, not '0,001'; write a dot: 0.001",
    "train --resume table.csv": "table.csv is a file; give the folder of the run, such as . (--resume)",
    "train --lr inf": "--lr needs a number above 0, not 'inf'",
    f"train --seed 1{400 * '0'}": "--seed needs a whole number at least 0, not '1000",
    "train --n_epochs 2.5": "--n_epochs needs a whole number at least 1, not '2.5'",
    "train --dropout 1": "needs a number at least 0 and at most 0.99, not '1'",
    "train --head_hidden 100000000000": "needs a whole number at least 1 and at most 1e+06",
    "train --learning_rate 3": "--learning_rate is not a flag of train.py; did you mean --lr?",
    "predict --source a.jpg": "--source is not a flag of predict.py; did you mean --input?",
    "train photos": "'photos' has no flag before it; did you mean --data_dir photos?",
    "train --data_dir of mine": "'mine' has no flag before it; put a name with spaces in quotes: \"of mine\"",
    "train --freeze yes": "--freeze takes no value: leave it out",
    "train --data_dir photos --lr 1e-3 1e-4": "'1e-4' has no flag before it; leave it out, or add its flag",
    "train --data_dir ''": "--data_dir was given an empty value; give one, or leave the flag out",
    "predict photo.jpg": "did you mean --input photo.jpg?",
    "predict --model photos": "did you mean --model_fn or --model_name?",
}
WRONG_DATA = {
    "train --data_dir foto": "the data folder foto does not exist; did you mean photos?; expected DIR/train/CLASS",
    "train --data_dir empty": "empty contains no images; expected DIR/train/CLASS/*.jpg",
    "train --data_dir one": "one has only one class ('cat'); expected",
    "train --data_dir few": "too few images for train + valid + test: cat 1, dog 1; add images",
    "train --data_dir loose": "loose contains 3 images but no class folders; expected",
    "train --data_dir other": "dgo (and it lacks dog); training has cat, dog: rename or remove",
    "train --data_dir note.txt": "note.txt is not a list of images and labels; expected lines such as `a.jpg cat`, or",
    "train --data_dir broken.zip": "broken.zip cannot be unpacked (it is not a complete zip or tar file)",
    "train --dataset_name digit": "neither a known data set (digits, hymenoptera, elpv) nor the folder dataset/digit; "
    "did you mean digits?; for a folder elsewhere use --data_dir DIR",
    "train --data_dir photos --dataset_name digits": "--data_dir and --dataset_name were both given; give one",
    "train --labels lables.csv": "lables.csv cannot be read",
    "train --labels photos/cat/00.png": "photos/cat/00.png is not a text file; save the table as CSV",
    "train --labels table.csv": "has the columns a, b; name the path column with --path_column",
    "train --labels table.csv --path_column c": "path_column 'c' is unknown; choose from a, b",
    "train --data_dir photos --splits table.csv": "has the columns a, b; expected path, label, split",
    "train --data_dir photos --n_classes 4": "photos has 2 classes: cat, dog; leave it out",
    "train --data_dir photos --train_ratio .9 --valid_ratio .9": "must sum to 1, with train and valid above 0; for",
}
WRONG_NAMES = {
    f"train {RUN} --optimizer Adan": "optimizer 'Adan' is unknown; choose from adam, adamw, sgd; did you mean adam?",
    f"train {RUN} --scheduler cosin": "choose from step, plateau, cosine, none; did you mean cosine?",
    f"train {RUN} --augment flip": "did you mean flips?",
    f"train {RUN} --monitor acc": "choose from accuracy, loss, macro_f1; did you mean accuracy?",
    f"train {RUN} --class_weights balance": "choose from none, balanced; did you mean balanced?",
    f"train {RUN} --on_leak warm": "choose from warn, drop, error; did you mean warn?",
    f"train {RUN} --precision fp8": "choose from auto, fp32, bf16, fp16",
    f"train {RUN} --precision fp16": "precision fp16 needs a GPU; on this CPU choose from auto, fp32, bf16",
    f"train {RUN} --freeze_until layr2": "there is no layer 'layr2' (--freeze_until); choose from conv1, bn1, relu",
    f"train {RUN} --freeze_until layer2.7": "did you mean layer2.",
    f"train {RUN} --freeze_until ²": "there is no layer '²' (--freeze_until); choose from conv1",
    f"train {RUN} --freeze --freeze_until layer2": "both given; --freeze alone freezes all but the head",
    f"train {RUN} --scheduler plateau --gamma 1": "needs a --gamma below 1, not 1; 0.1 is usual",
    f"train {RUN} --resize 10": "--resize 10 is smaller than --image_size 32; give at least 32",
    "train --data_dir photos --gpu_id 99": "--gpu_id 99 does not exist on this machine; choose from -1 (the CPU)",
    "train --data_dir photos --model_name resnte": "did you mean resnet?",
    "train --data_dir photos --model_name ResNet18": "choose from resnet, alexnet, vgg, squeezenet, densenet, "
    "efficientnet_lite0, efficientnet_lite1, efficientnet_lite2, "
    "a torchvision model (resnet18, convnext_tiny, ...) or timm/NAME; did you mean resnet18?",
    "train --data_dir photos --model_name timm/resnet81": "did you mean timm/resnet18?",
    "train --data_dir photos --model_name timm/": "write it as in timm/resnet18",
    "train --data_dir photos --model_name timm/vit_tiny_patch16_224 --image_size 8": "it takes 32, 48, 64",
}
WRONG_FILES = {
    f"train {RUN} --weights wieghts.pth": "there is no file wieghts.pth; did you mean weights.pth?; give an existing",
    f"train {RUN} --weights weights.pth": "weights.pth is not a PyTorch file; give a checkpoint of this tool, or",
    f"train {RUN} --weights note.txt": "note.txt is not a PyTorch file; give a checkpoint of this tool, or a .pth",
    f"train {RUN} --use_pretrained --weights weights.pth": "both given; give one of them",
    f"train {RUN} --model_fn photos": "--model_fn photos is a folder; give the name of a file",
    f"train {RUN} --model_fn note.txt": "--model_fn note.txt exists and is not a checkpoint; give another name",
    f"train {RUN} --run_dir photos": "the run folder photos is not empty; give a new one, or leave --run_dir out",
    f"train {RUN} --run_dir note.txt": "cannot write the run folder note.txt",
    "train --resume foto": "there is no folder foto; did you mean photos?; give the run folder of a training",
    "predict --model_fn photos": "photos is a folder; this folder has weights.pth; name it with --model_fn FILE",
    "predict --model_fn wieghts.pth": "there is no checkpoint wieghts.pth; this folder has weights.pth; did you mean",
    "predict": "there is no checkpoint resnet.pth; this folder has weights.pth; name it with --model_fn FILE",
    "predict --model_fn weights.pth": "weights.pth is not a PyTorch file; give a checkpoint of this tool",
}


@pytest.fixture
def a_new_users_folder(tmp_path):
    make_class_folders(tmp_path / "photos", 6, ("cat", "dog"))
    make_class_folders(tmp_path / "one", 3, ("cat",))
    make_class_folders(tmp_path / "few", 1, ("cat", "dog"))
    make_class_folders(tmp_path / "other" / "train", 3, ("cat", "dog"))
    make_class_folders(tmp_path / "other" / "val", 1, ("cat", "dgo"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "of mine").mkdir()
    for n in range(3):
        save_image(tmp_path / "loose" / f"{n}.png", n, n)
    for name in ("note.txt", "weights.pth", "broken.zip"):
        (tmp_path / name).write_text("hello, this is text")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")


@pytest.mark.parametrize(("command", "expected"), {**WRONG_FLAGS, **WRONG_DATA, **WRONG_NAMES, **WRONG_FILES}.items())
def test_an_error_says_what_is_allowed_and_what_to_type(command, expected, cli, a_new_users_folder):
    name, *arguments = shlex.split(command)
    assert_one_line_error(cli(name, *arguments), expected)


WRONG_PREDICTIONS = {
    "--input foto": "--input foto does not exist; did you mean photos?; give files, folders or patterns",
    "--result photos": "--result photos is a folder; give the name of a file",
    "--result x.png": "--result x.png would overwrite a model or a photo; give a name like result.csv",
    "--result x.xls": "choose from .csv, .jsonl, .parquet, .xlsx",
    "--top_k 99": "tiny.pth has 3 classes; give a number from 1 to 3",
    "--precision bf61": "choose from auto, fp32, bf16, fp16; did you mean bf16?",
    "--input table.csv": "table.csv has the columns a, b; name the path column with --path_column",
}


@pytest.mark.parametrize(("arguments", "expected"), WRONG_PREDICTIONS.items())
def test_an_error_in_prediction_does_too(arguments, expected, cli, trained, a_new_users_folder):
    assert_one_line_error(cli("predict", "--model_fn", "tiny.pth", *shlex.split(arguments)), expected)


@pytest.mark.parametrize("words", ["can't allocate memory", "not enough memory: you tried to allocate 4 bytes."])
def test_the_flags_that_need_memory_are_named_when_it_runs_out(words):
    reason = resource_hint(RuntimeError(f"DefaultCPUAllocator: {words}"))
    assert all(flag in reason for flag in ("--n_workers", "--image_size", "--model_name"))


GPU_WORDS = ("CUDA out of memory. Tried to allocate 2.00 GiB", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x")


@pytest.mark.parametrize("words", [*GPU_WORDS, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "MPS backend out of memory"])
def test_the_memory_of_a_gpu_is_told_from_that_of_the_machine(words):
    assert resource_hint(RuntimeError(words)).startswith("the GPU's memory ran out; end other programs")
