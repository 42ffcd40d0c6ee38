"""Many processes as one run, with the real launcher: gloo between processes on the CPU."""

import contextlib
import csv
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import TINY, is_alive, make_class_folders, metrics_of, save_image, weights_of
from torch import nn

from data_loader import Mixer
from photo_classifier.data.batches import AddressedSampler
from photo_classifier.data.samples import Sample
from photo_classifier.prediction import task_queue
from photo_classifier.prediction.results import Prediction
from photo_classifier.runtime import data_parallel, distributed, launcher
from photo_classifier.runtime.device import choose_device
from utils import device_from_gpu_id

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")

ALL = ("--data_dir", "data", *TINY, "--precision", "fp32", "--batch_size", 7)
FULL = (*ALL, "--freeze_bn", "--optimizer", "sgd", "--n_epochs", 1, "--class_weights", "balanced", "--mixup", 0.2)
PREDICT = ("--input", "data/val", "data/train/cat", "--gpu_id", -1, "--n_workers", 0, "--batch_size", 4, "--top_k", 2)
FROZEN = (*ALL, "--freeze", "--n_epochs", 3, "--lr", 0.01, "--views", 2)

HEAD_FIRST = (*FROZEN, "--unfreeze_after", 2, "--optimizer", "sgd")


def outputs(n: int) -> list[tuple]:
    """The commands whose outcome must not depend on the number of processes, for that many."""
    passes = ("--accumulate", 3) if n > 1 else ()  # of no image in some processes
    return [
        ("train", *FULL, *passes, "--model_fn", f"full{n}.pth", "--run_dir", f"full{n}"),
        ("train", *FROZEN, "--model_fn", f"frozen{n}.pth", "--run_dir", f"frozen{n}", "--feature_cache", f"cache{n}"),
        ("train", *HEAD_FIRST, "--model_fn", f"both{n}.pth", "--run_dir", f"both{n}", "--feature_cache", f"cache{n}"),
        ("predict", *PREDICT, "--model_fn", "full1.pth", "--result", f"result{n}.csv"),
    ]


def torchrun(n_processes: int, *arguments: object) -> subprocess.Popen:
    """The real launcher, in a session of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={n_processes}", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *map(str, arguments)], env=environment, start_new_session=True, **pipes)


def finished(launcher: subprocess.Popen) -> subprocess.CompletedProcess:
    out, err = launcher.communicate(timeout=600)
    return subprocess.CompletedProcess(launcher.args, launcher.returncode, out, err)


def odd_data(folder: Path) -> None:
    """Sizes that neither 2 nor 3 divides, classes of different sizes, and two files that are cut short."""
    make_class_folders(folder / "train", 9)
    make_class_folders(folder / "val", 7, seed=1000)
    for n in range(5):
        save_image(folder / "train" / "cat" / f"more{n}.png", 0, 2000 + n)
    for broken in (folder / "train" / "dog" / "03.png", folder / "val" / "dog" / "03.png"):
        broken.write_bytes(broken.read_bytes()[:-2000])


def largest_difference(path: str, other: str) -> float:
    ours, theirs = weights_of(path), weights_of(other)
    return max((ours[name].double() - theirs[name].double()).abs().max().item() for name in theirs)


def assert_same_rows(path: str, other: str) -> None:
    """Equal results, with probabilities to within 1e-4."""
    texts = [Path(name).read_text(encoding="utf-8-sig").splitlines() for name in (path, other)]
    ours, theirs = map(list, map(csv.DictReader, texts))
    assert len(ours) == len(theirs) > 30
    for mine, yours in zip(ours, theirs, strict=True):
        for column, value in yours.items():
            if column.startswith("probability") and value:
                assert float(mine[column]) == pytest.approx(float(value), abs=1e-4)
            else:
                assert mine[column] == value


def test_results_do_not_depend_on_the_number_of_processes(tmp_path, cli):
    odd_data(tmp_path / "data")
    for command in outputs(1):
        assert cli(*command).status == (3 if command[0] == "predict" else 0)  # one input is broken
    n = 3
    Path(f"commands{n}.txt").write_text("\n".join(shlex.join(map(str, command)) for command in outputs(n)))
    done = finished(torchrun(n, ROOT / "tests" / "helpers" / "many_commands.py", f"commands{n}.txt"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: ") == 2  # of random frozen weights, from one process
    assert len(re.findall(r"^epoch ", done.stdout, re.M)) == 7
    assert largest_difference(f"full{n}.pth", "full1.pth") < 1e-4
    assert largest_difference(f"frozen{n}.pth", "frozen1.pth") < 1e-5
    assert largest_difference(f"both{n}.pth", "both1.pth") < 1e-5
    assert "exit status 0" in done.stdout
    assert_same_rows(f"result{n}.csv", "result1.csv")
    for run in ("full", "frozen", "both"):
        metrics = [torch.load(f"{run}{k}.pth", weights_only=True)["metrics"] for k in (1, n)]
        for name in ("correct", "n_images"):
            assert metrics[0]["valid"][name] == metrics[1]["valid"][name]
        assert metrics[0]["epoch"] == metrics[1]["epoch"]
        assert Path(f"{run}{n}/skipped.csv").read_text() == Path(f"{run}1/skipped.csv").read_text()
        for ours, theirs in zip(metrics_of(f"{run}{n}"), metrics_of(f"{run}1"), strict=True):
            for name in ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "valid_macro_f1", "lr"):
                assert float(ours[name]) == pytest.approx(float(theirs[name]), abs=2e-5), name


# --- killed -----------------------------------------------------------------------------------

N_EPOCHS = 12
LONG = ("--data_dir", "data", *TINY, "--precision", "fp32", "--batch_size", 8, "--freeze_bn", "--optimizer", "sgd")
LONG = (*LONG, "--n_epochs", N_EPOCHS)


def workers_of(launcher: subprocess.Popen) -> list[int]:
    """The processes that the launcher started, by rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            rank = re.search(r"\0RANK=(\d+)", (entry / "environ").read_text()) if parent == launcher.pid else None
            if rank:
                found[int(rank[1])] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


def wait_for(condition, seconds: float = 300.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def after_the_first_epoch() -> Path | None:
    return next((path.parent for path in Path("runs").glob("*/metrics.csv")), None)


def test_training_reaches_the_same_weights_after_a_killed_worker_and_a_killed_launcher(tmp_path, cli):
    make_class_folders(tmp_path / "data", 12)
    assert cli("train", *LONG, "--model_fn", "whole.pth", "--run_dir", "whole").status == 0

    launcher = torchrun(2, "--max_restarts=1", ROOT / "train.py", *LONG, "--model_fn", "killed.pth")
    folder = wait_for(after_the_first_epoch)
    os.kill(workers_of(launcher)[1], signal.SIGKILL)
    n_before = wait_for(lambda: len(workers_of(launcher)) < 2 and len(metrics_of(folder)))
    wait_for(lambda: len(metrics_of(folder)) > n_before)  # those that took their place went on
    workers = workers_of(launcher)
    assert len(workers) == 2
    launcher.kill()
    launcher.communicate()
    wait_for(lambda: not any(map(is_alive, workers)))
    assert list(Path("runs").iterdir()) == [folder]
    assert len(metrics_of(folder)) < N_EPOCHS
    done = cli("train", "--resume", folder)  # from two processes to one
    assert done.status == 0, done.err
    assert [row["epoch"] for row in metrics_of(folder)] == [str(n + 1) for n in range(N_EPOCHS)]
    assert largest_difference("killed.pth", "whole.pth") < 1e-4


def lines_in(path: str) -> int:
    with contextlib.suppress(OSError):
        return Path(path).read_bytes().count(b"\n")
    return 0


def processes_in(folder: Path) -> list[int]:
    """The living processes that work in that folder, but for this one."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if os.readlink(entry / "cwd") == str(folder) and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return [pid for pid in found if is_alive(pid)]


def test_prediction_survives_a_killed_worker_and_resumes_after_a_killed_launcher(tmp_path, cli, trained):
    argv = ("--model_fn", "tiny.pth", "--gpu_id", -1, "--precision", "fp32")
    photos = trained.folder.parent / "split"
    assert cli("predict", *argv, "--n_workers", 0, "--input", photos, "--result", "once.csv").status == 0
    argv = (*argv, "--input", *[photos] * 40)

    launcher = torchrun(2, "--max_restarts=1", ROOT / "predict.py", *argv, "--n_workers", 1)
    n_before = wait_for(lambda: (n := lines_in("result.csv.partial")) > 100 and n)
    os.kill(workers_of(launcher)[1], signal.SIGKILL)
    wait_for(lambda: (n := lines_in("result.csv.partial")) > n_before + 300 and n)
    launcher.kill()
    launcher.communicate()
    wait_for(lambda: not processes_in(tmp_path))
    assert not Path("result.csv.partial.prev").exists()
    assert not Path("result.csv").exists()
    assert cli("predict", *argv, "--n_workers", 0, "--resume").status == 0
    header, *rows = Path("once.csv").read_text(encoding="utf-8-sig").splitlines()
    Path("expected.csv").write_text("\n".join([header, *rows * 40]), encoding="utf-8-sig")
    assert_same_rows("result.csv", "expected.csv")


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(("--n_epoch", 3), "did you mean --n_epochs?"), (("--data_dir", "nowhere"), "nowhere does not exist")],
)
def test_an_error_is_printed_once(arguments, expected):
    done = finished(torchrun(2, ROOT / "train.py", "--gpu_id", -1, *arguments))
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert "Traceback" not in done.stderr.partition("torch/distributed/elastic")[0]
    assert not done.stdout.strip()


# --- without the launcher ---------------------------------------------------------------------


def test_few_rows_wait_in_memory_behind_a_stuck_task(monkeypatch):
    def stream(samples):
        samples = iter(samples)
        while batch := list(itertools.islice(samples, 2)):
            yield [Prediction(sample.path, top=(("a", 1.0),)) for sample in batch]

    monkeypatch.setattr(launcher, "world_size", lambda: 2)
    store = torch.distributed.HashStore()
    other, lead, written = task_queue.TaskQueue(store), task_queue.TaskQueue(store), []

    def lead_on():
        for number, predictions in lead.work(stream):
            lead.submit(number, predictions)
            written.extend(p.file_dir for batch in lead.completed() for p in batch)
        lead.publish()
        written.extend(p.file_dir for batch in lead.completed() for p in batch)

    lead.open((Sample(str(n)) for n in range(1000)), 2, window=20)
    stuck = other.work(stream)
    number, predictions = next(stuck)  # and for long it hands in nothing
    lead_on()
    assert number == 0
    assert written == []
    assert sum(map(len, lead._own.values())) < 2 * 20
    lead_on()  # waits for nothing
    other.submit(number, predictions)
    while not lead.is_done:
        for number, predictions in stuck if other.taken else other.work(stream):
            other.submit(number, predictions)
        lead_on()
    assert other.is_over()
    assert written == [str(n) for n in range(1000)]


def test_the_slices_of_a_batch_add_up_to_it_in_order():
    whole = list(AddressedSampler(17, 5, seed=1))
    for n in (1, 2, 3, 8):
        parts = [list(AddressedSampler(17, 5, seed=1, part=(k, n))) for k in range(n)]
        for step, batch in enumerate(whole):
            assert [place for part in parts for place in part[step]] == batch


@pytest.mark.parametrize("alphas", [(0.5, 0), (0, 0.5)])
@pytest.mark.parametrize("n_images", [1, 2, 7])
def test_mixing_slices_gives_the_slices_of_the_mixed_batch(alphas, n_images, monkeypatch):
    mixer = Mixer(*map(float, alphas), 3)
    images, labels = torch.randint(0, 256, (n_images, 3, 16, 16), dtype=torch.uint8), torch.arange(n_images) % 3
    torch.manual_seed(5)
    whole = mixer(images, labels)
    parts = [(launcher.shard(images, (k, 3)), launcher.shard(labels, (k, 3))) for k in range(3)]
    monkeypatch.setattr(launcher, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "all_gather", lambda _: [(a[-1:], b[-1:]) if len(a) else None for a, b in parts])
    mixed = []
    for k, part in enumerate(parts):
        monkeypatch.setattr(launcher, "rank", lambda k=k: k)
        torch.manual_seed(5)
        mixed += [mixer(*part)] if len(part[0]) else []
    for place in (0, 1):
        assert torch.equal(torch.cat([part[place] for part in mixed]), whole[place])


def test_synchronised_batch_norm_shares_tensors_and_does_not_change_frozen_layers_or_the_original():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model.frozen = [model[2]]
    twin = data_parallel.with_sync_batch_norm(model)
    assert [type(module) for module in twin] == [nn.Conv2d, nn.SyncBatchNorm, nn.BatchNorm2d]
    assert [type(module) for module in model] == [nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm2d]
    assert twin[1].running_mean is model[1].running_mean
    assert twin[1].weight is model[1].weight


def test_synchronised_batch_norm_needs_gpus(cli, image_folder):
    done = cli("train", "--data_dir", image_folder, *TINY, "--sync_bn")
    assert done.status == 2
    assert "--sync_bn needs GPUs" in done.err


@pytest.mark.parametrize(("n_processes", "device"), [("1", "mps"), ("2", "cpu")])
def test_without_cuda_one_process_uses_mps_and_several_use_the_cpu(n_processes, device, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": n_processes, "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device().type == device


def test_the_gpu_of_a_flag_is_the_current_one_so_that_nothing_goes_to_the_first(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert device_from_gpu_id(1) == torch.device("cuda", 1)
    assert current == [torch.device("cuda", 1)]


def test_a_single_process_does_not_import_torch_for_its_group():
    code = "import sys, train\nfrom photo_classifier.runtime import distributed\n"
    code += "with distributed.process_group(lambda: None):\n    distributed.barrier()\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
