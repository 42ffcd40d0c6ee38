"""Runs the commands of a file, one a line, in the processes that torchrun starts: importing torch once for all."""

import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

import predict
import train
from photo_classifier.runtime import distributed
from utils import run_main

with distributed.process_group(lambda: torch.device("cpu")):
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        name, *argv = shlex.split(line)
        try:
            run_main({"train": train.main, "predict": predict.main}[name], argv)
        except SystemExit as stop:
            if stop.code:
                raise
