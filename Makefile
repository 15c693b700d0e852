# The commands of the project. Needs Python >= 3.10 and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: help install demo demo-full test test-all lint format clean
.DEFAULT_GOAL := help

help:
	@echo "make install   the set-up alone: leaves .venv/"
	@echo "make demo      set-up and the main job on the built-in data (ARGS=\"key=value ...\" is passed on)"
	@echo "make demo-full the same, through pseudo masks and segmenter"
	@echo "make test      set-up and the tests, in two processes"
	@echo "make test-all  the same, with the tests of minutes and gigabytes"
	@echo "make lint      ruff and mypy"
	@echo "make clean     removes .venv/ and outputs/"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "ribseg needs Python >= 3.10, but $(PYTHON) is $$($(PYTHON) --version). Call: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

# The stamps make a second call install nothing.
.venv/.installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install -e ".[dev]"
	@# Built from source: without a compiler the tests that compare with it are skipped.
	$(BIN)/python -m pip install -e ".[crf]" || echo "pydensecrf2 could not be built; the torch CRF serves"
	@touch $@

install: .venv/.installed

demo: .venv/.installed
	$(BIN)/python train.py experiment=demo $(ARGS)

demo-full: .venv/.installed
	$(BIN)/python train.py experiment=demo "run=[classifier,cam,rib,controls,refine,segmenter,evaluate,report]" $(ARGS)

# Two workers, each with one thread: small tensors gain nothing from more.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: .venv/.installed-dev
	$(PYTEST)

test-all: .venv/.installed-dev
	$(PYTEST) -m ""

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv outputs
