import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import NAME, TINY

import train
from photo_classifier.runtime.console import coloured, progress, set_verbosity

TRAIN = Path(__file__).parents[2] / "train.py"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colours_are_for_terminals_without_no_color(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert coloured("error:", "red", Terminal()) == "\033[31merror:\033[0m"
    assert coloured("error:", "red", io.StringIO()) == "error:"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("error:", "red", Terminal()) == "error:"


@pytest.mark.parametrize(("stream", "is_shown"), [(Terminal(), True), (io.StringIO(), False)])
def test_a_progress_bar_is_for_terminals(stream, is_shown, monkeypatch):
    monkeypatch.setattr("sys.stderr", stream)
    list(progress(range(3), desc="features"))
    assert ("features" in stream.getvalue()) == is_shown


@pytest.mark.parametrize("verbose", [0, 1])
def test_verbose_0_prints_the_accuracies_alone_and_draws_no_bar(verbose, image_folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    argv = ["--data_dir", image_folder, *TINY, "--n_epochs", 1, "--model_fn", "m.pth", "--verbose", verbose]
    for extra in (["--run_dir", "r"], ["--run_dir", "r2", "--freeze"]):
        train.main([str(word) for word in (*argv, *extra)])
        only = r"validation accuracy \d\.\d{4} \(\d/6\)\ntest accuracy \d\.\d{4} \(\d/6\)\n"
        assert bool(re.fullmatch(only, capsys.readouterr().out)) == (not verbose)
    assert ("\r" in terminal.getvalue()) == bool(verbose)
    train.main(["--resume", "r", "--verbose", str(verbose)])
    assert ("is finished" in capsys.readouterr().out) == bool(verbose)
    set_verbosity(1)


def test_verbose_0_still_reports_images_that_are_left_out(cli, split_folder):
    bad = split_folder / "train" / "cat" / "00.png"
    bad.write_bytes(bad.read_bytes()[:-200])
    done = cli("train", "--data_dir", split_folder, *TINY, "--n_epochs", 1, "--verbose", 0)
    assert done.err.startswith("warning: left out 1 image that could not be read, listed in ")
    assert f"for example {bad}: " in done.err


def test_a_normal_run_prints_the_expected_lines_and_nothing_else(trained_once):
    starts = [line.split()[0] for line in trained_once.out.splitlines() if not line.startswith(" ")]
    told = [word for word in starts if word != "next"]  # as many as the measured values ask for
    first = ["data", "classes", "model", "train", "epoch", "epoch"]
    assert told == [*first, "valid", "saved", "report", "use", "result", "validation"]
    assert starts.count("next") <= 3
    assert starts[-2:] == ["result", "validation"], "the result comes last"
    assert re.search(r"^data +\S+: .*24 train, 15 valid images", trained_once.out, re.M)
    model = rf"^model +{NAME} \(random weights\), [\d,]+ of [\d,]+ parameters are trained; 32 x 32 pixels, cpu$"
    assert re.search(model, trained_once.out, re.M)
    assert re.search(r"^use +python predict.py --model_fn tiny.pth\n +tensorboard --logdir .", trained_once.out, re.M)
    assert not trained_once.err


def test_a_separate_process_prints_no_other_warnings(split_folder):
    argv = ["--data_dir", split_folder, *TINY, "--freeze", "--n_epochs", 1, "--verbose", 0, "--model_fn", "m.pth"]
    command = [sys.executable, "-W", "default", TRAIN, *argv]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == (
        "warning: the frozen layers have random weights; "
        "give them trained ones with --use_pretrained or --weights FILE\n"
    )
    assert re.fullmatch(r"validation accuracy \d\.\d{4} \(\d+/15\)\n", done.stdout)
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"timm_test_resnet-\d{8}-\d{6}-split-frozen-image_size32-epochs1", folder.name)


@pytest.mark.parametrize("verbose", [0, 1])
def test_the_first_line_comes_before_anything_slow(verbose):
    command = [sys.executable, TRAIN, "--data_dir", "none", "--verbose", str(verbose)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "reading the photos and loading PyTorch ...\n" * verbose
    assert done.stderr.startswith("error: the data folder none does not exist")


TALKS = """
import sys
from utils import run_main

def main(_argv):
    for n in range(100_000):
        print("epoch", n, flush=n < 5)
    sys.stderr.write("warning\\n")
    open("done", "w").close()
    return 3

run_main(main)
"""


@pytest.mark.parametrize("streams", ["1", "2", "12"])
def test_work_continues_when_nobody_reads_its_output(streams):
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does when it has seen enough
    pipes = {"stdout": writer if "1" in streams else None, "stderr": writer if "2" in streams else subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(TRAIN.parent)}
    pipes["stdout"] = pipes["stdout"] or subprocess.DEVNULL
    done = subprocess.run([sys.executable, "-c", TALKS], **pipes, env=environment, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr or "warning\n") == (3, "warning\n")
    assert Path("done").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no disk that is always full")
def test_work_continues_when_its_output_goes_to_a_full_disk():
    environment = {**os.environ, "PYTHONPATH": str(TRAIN.parent)}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", TALKS]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, text=True)
    assert done.returncode == 3
    assert done.stderr.splitlines()[0].startswith("warning: cannot print to the console (No space left")
