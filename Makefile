# make demo: from nothing to a trained classifier and its predictions
# make test: the whole test suite
# make bench: this tool against plain loops, and the parts that docs/scale.md computes with, on this machine
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench

demo: $(VENV)/.installed
	$(BIN)/python train.py --dataset_name digits --model_name efficientnet_lite0 --use_pretrained --freeze --head logistic
	$(BIN)/python predict.py --model_fn efficientnet_lite0.pth --sheet result.png
	@echo; head -n 6 result.csv; echo
	@echo "Look at the run:  $(BIN)/tensorboard --logdir runs"

test: $(VENV)/.installed-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(VENV)/.installed-tests
	$(BIN)/ruff check .

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/scale.py --only parts

$(VENV)/.installed: requirements.txt
	@echo "Setting up $(VENV); PyTorch is large, this takes some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.installed-tests: $(VENV)/.installed tests/requirements.txt requirements-export.txt
	$(BIN)/python -m pip install --quiet -r tests/requirements.txt
	@touch $@
