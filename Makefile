# Each target does its own set-up: a virtual environment in .venv, with the versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
ONE := OMP_NUM_THREADS=1
MINUTES ?= 60
DRAW ?= 0

.PHONY: help demo test test-long lab student docs bench mutate export readme paper data check format pins clean
help:           ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

demo: .venv/.package   ## train two networks on digits and compare them, in runs/demo
	$(BIN)/submatch demo --out runs/demo

test: .venv/.dev       ## run every notebook and the tests, in minutes
	$(ONE) $(BIN)/pytest -n 2 --dist worksteal

test-long: .venv/.dev  ## run what `make test` leaves out, up to an hour: kills, whole sweeps, foreign models, every page at every width
	$(ONE) $(BIN)/pytest -n 2 --dist worksteal --long --minutes $(MINUTES) --draw $(DRAW)

lab: .venv/.dev        ## open the paper in JupyterLab
	$(BIN)/jupyter lab nbs/index.ipynb

student: .venv/.dev    ## write the exercises without their solutions, in runs/exercises.ipynb
	$(BIN)/python tools/student.py runs/exercises.ipynb

docs: .venv/.dev       ## make the site in _docs from the notebooks and their stored outputs
	PYTHONPATH=. $(BIN)/sphinx-build -W --keep-going -E -q -c docs nbs _docs
	@echo "Open _docs/index.html in a browser"

bench: .venv/.dev      ## time the fast paths against the plain ones
	$(BIN)/python tests/bench.py
	$(BIN)/python tests/bench_layers.py
	$(BIN)/python tests/bench_explorer.py

mutate: .venv/.dev     ## break match, maximum, simple and structure in every small way and list what no test notices (up to an hour)
	$(ONE) $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results | grep -v plot_ || echo None survived.

export: .venv/.dev     ## write submatch_nb from the notebooks
	$(BIN)/nbdev-export

readme: .venv/.dev     ## write README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

paper: .venv/.dev      ## run every notebook in place and store its outputs
	$(ONE) $(BIN)/python tools/execute.py nbs/*.ipynb nbs/*/*.ipynb

data: .venv/.dev       ## train and compare the networks that come with the package again
	$(ONE) $(BIN)/python tools/data.py

check: .venv/.dev      ## style, types, and nothing generated is out of step with the notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check nbs tests tools docs setup.py
	$(BIN)/mypy
	$(BIN)/python tools/readme.py --check
	$(BIN)/python tools/version.py
	$(BIN)/nbdev-export
	git diff --exit-code --stat -- submatch_nb

format: .venv/.dev     ## lay out code cells and tests as `make check` wants them
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format nbs tests tools docs setup.py
	$(BIN)/nbdev-export

pins:                  ## write constraints.txt anew: the newest versions that go together
	$(PYTHON) -m venv .venv/pins
	.venv/pins/bin/python -m pip install --quiet --disable-pip-version-check '.[dev]'
	.venv/pins/bin/python -m pip freeze --exclude submatch_nb | grep -vE '^(nvidia|cuda|triton)' > constraints.txt
	rm -rf .venv/pins

clean:                 ## remove the environment and what the runs wrote
	rm -rf .venv runs _docs nbs/reference nbs/api.md jupyter_execute mutants build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "submatch needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

.venv/.package: .venv/bin/python setup.py settings.ini constraints.txt
	@echo "Installing submatch (a few minutes the first time: PyTorch is large) ..."
	$(PIP) -e .
	@touch $@

.venv/.dev: .venv/.package
	@echo "Installing the notebook and test tools ..."
	$(PIP) -e '.[dev]'
	@touch $@
