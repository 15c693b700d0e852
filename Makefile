# The commands of the project. Needs Python 3.10 to 3.13 and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

# The oldest Python that is supported, for `make test-lowest`, where it can be run.
LOWEST_PYTHON ?= $(shell python3.10 --version >/dev/null 2>&1 && echo python3.10 || echo $(PYTHON))

.PHONY: help install demo demo-full test test-all test-lowest test-package coverage notebooks docs lint format clean
.DEFAULT_GOAL := help

help:
	@echo "make install   the set-up alone: leaves .venv/"
	@echo "make demo      set-up and the main job on the built-in data (ARGS=\"key=value ...\" is passed on)"
	@echo "make demo-full the same, through pseudo masks and segmenter"
	@echo "make test      set-up and the tests, in two processes"
	@echo "make test-all  the same, with the tests of minutes and gigabytes, and those of lint, package and site"
	@echo "make test-lowest  the tests with the oldest versions that setup.cfg allows; leaves .venv-lowest/"
	@echo "make test-package  sdist and wheel, and the installed command outside this folder; leaves dist/"
	@echo "make coverage  the tests, and which lines they run"
	@echo "make notebooks runs the notebooks: leaves outputs/notebooks/"
	@echo "make docs      that, and the documentation as a site: leaves site/, begin at site/index.html"
	@echo "make lint      ruff, mypy, and what mypy says of uses of the library"
	@echo "make clean     removes what the others leave: .venv*/, dist/, site/ and outputs/"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "ribseg needs Python 3.10 to 3.13, but $(PYTHON) is $$($(PYTHON) --version). Call: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
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
RUN_TESTS = -m pytest -n 2 --dist worksteal $(ARGS)
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python $(RUN_TESTS)

test: .venv/.installed-dev
	$(PYTEST)

# Those of make lint, make test-package and make docs, too.
test-all: .venv/.installed-dev
	$(PYTEST) -m ""

coverage: .venv/.installed-dev
	$(PYTEST) --cov

# In an environment of its own: the bounds are what setup.cfg says, the rest is what pip finds for them.
.venv-lowest/.installed: setup.cfg pyproject.toml tools/lowest.py
	$(LOWEST_PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python tools/lowest.py > .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install -e ".[dev]" -c .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install -e ".[crf]" -c .venv-lowest/lowest.txt || \
	  echo "pydensecrf2 could not be built; the torch CRF serves"
	@touch $@

test-lowest: .venv-lowest/.installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/python $(RUN_TESTS)

# The wheel is built from the sdist, so that both are complete, and installed where no source is in reach.
OUTSIDE = .venv-package/outside
INSTALLED = cd $(OUTSIDE) && ../bin/ribseg

test-package: .venv/.installed-dev
	$(BIN)/python -m pytest -m "package and not nightly" tests/test_packaging.py
	rm -rf dist .venv-package
	$(PYTHON) -m venv .venv-package
	.venv-package/bin/python -m pip install build
	.venv-package/bin/python -m build
	.venv-package/bin/python -m pip install dist/*.whl
	mkdir $(OUTSIDE)
	$(INSTALLED) --version
	$(INSTALLED) train experiment=demo "run=[classifier,cam,evaluate,report]" $(ARGS)

# In an environment of its own: the pages are made from sources that are read, not imported, so torch is not needed.
.venv-docs/.installed: setup.cfg
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -c "from configparser import ConfigParser as C; c = C(); c.read('setup.cfg'); \
	  print(c['options.extras_require']['docs'])" > .venv-docs/docs.txt
	.venv-docs/bin/python -m pip install -r .venv-docs/docs.txt
	@touch $@

# The repository keeps the notebooks without results; the site shows them with theirs. Two of them read the demo.
outputs/notebooks/%.ipynb: notebooks/%.ipynb | .venv/.installed-dev
	$(BIN)/python train.py experiment=demo "run=[classifier]"
	$(BIN)/python -m jupyter nbconvert --execute --to notebook --output-dir outputs/notebooks $<

notebooks: $(patsubst %,outputs/%,$(wildcard notebooks/*.ipynb))

docs: .venv-docs/.installed notebooks
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict
	RIBSEG_SITE=site PYTHONPATH=src .venv-docs/bin/python -m pytest --noconftest -m site tests/test_site.py
	@echo "The site is in site/; begin at site/index.html"

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m lint tests/test_typing.py

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-lowest .venv-package .venv-docs dist site outputs
