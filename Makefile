# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
# Every target first creates the environment that it needs, once; nothing but Python 3.11+ and make must be there.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.hf_vqdit_installed
CODE := hf_vqdit training_scripts tests model_cards benchmarks

# Threads that wait for each other sleep: if they spin, as they would, a run beside other work is many times slower.
export OMP_WAIT_POLICY := PASSIVE

# Everything is named, so that accelerate asks for no configuration file and keeps every core (it would take one).
NUM_CORES := $(shell getconf _NPROCESSORS_ONLN)
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	--num_cpu_threads_per_process $(NUM_CORES)

.PHONY: help environment quickstart shapes distill sweep emoji benchmarks test style quality clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1: /p' $(MAKEFILE_LIST)

environment: $(INSTALLED)  ## create the virtual environment with the tested versions

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("hf_vqdit needs Python 3.11 or newer, got " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: CONFIG := training_scripts/configs/quickstart.yaml
quickstart: $(INSTALLED)  ## train and evaluate on the built-in shapes, into runs/quickstart
	$(LAUNCH) training_scripts/train_vqvae.py --config $(CONFIG)
	$(LAUNCH) training_scripts/train_vqvae.py --config $(CONFIG) \
		--train_modalities text --output_dir runs/quickstart/vqvae_text_r2 --max_train_steps 600 \
		--model_init_kwargs '{"text_downsample_factor": 2, "text_num_groups": 2}'
	$(BIN)/python training_scripts/encode_codes.py --config $(CONFIG)
	$(LAUNCH) training_scripts/train_dit.py --config $(CONFIG)
	$(BIN)/python training_scripts/evaluate.py --config $(CONFIG)

distill: CONFIG := training_scripts/configs/quickstart-distill.yaml
distill: $(INSTALLED)  ## after quickstart: distil its model to four passes, into runs/quickstart-distill
	@test -d runs/quickstart/pipeline || { echo "runs/quickstart/pipeline, the teacher, is missing: make quickstart" >&2; exit 1; }
	$(LAUNCH) training_scripts/train_dit.py --config $(CONFIG)
	$(BIN)/python training_scripts/evaluate.py --config $(CONFIG)

sweep: CONFIG := training_scripts/configs/quickstart.yaml
sweep: $(INSTALLED)  ## compare sampling settings of the quickstart model, into runs/quickstart; after make quickstart
	$(BIN)/python training_scripts/evaluate.py --config $(CONFIG) --sweep

shapes: CONFIG := training_scripts/configs/shapes.yaml
shapes: $(INSTALLED)  ## train and evaluate on scenes of two objects, into runs/shapes
	$(LAUNCH) training_scripts/train_vqvae.py --config $(CONFIG)
	$(LAUNCH) training_scripts/train_vqvae.py --config $(CONFIG) \
		--train_modalities text --output_dir runs/shapes/vqvae_text_r2 --max_train_steps 1000 \
		--model_init_kwargs '{"text_downsample_factor": 2, "text_num_groups": 2}'
	$(BIN)/python training_scripts/encode_codes.py --config $(CONFIG)
	$(LAUNCH) training_scripts/train_dit.py --config $(CONFIG)
	$(BIN)/python training_scripts/evaluate.py --config $(CONFIG)

emoji: CONFIG := training_scripts/configs/emoji.yaml
emoji: $(INSTALLED)  ## train and evaluate on real pairs, into runs/emoji; needs a colour-emoji font and fribidi
	$(LAUNCH) training_scripts/train_vqvae.py --config $(CONFIG)
	$(BIN)/python training_scripts/encode_codes.py --config $(CONFIG)
	$(LAUNCH) training_scripts/train_dit.py --config $(CONFIG)
	$(BIN)/python training_scripts/evaluate.py --config $(CONFIG)

benchmarks: $(INSTALLED)  ## compare hot paths with peers, into docs/benchmarks.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[benchmarks]'
	$(BIN)/python -m benchmarks --output docs/benchmarks.md

test: $(INSTALLED)  ## run all tests
	$(BIN)/python -m pytest -n 2

style: $(INSTALLED)  ## format the code and repair what the linter can
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

quality: $(INSTALLED)  ## check format and lint
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

clean:  ## remove the virtual environment; runs stay
	rm -rf $(VENV)
