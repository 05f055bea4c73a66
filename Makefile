# Each target does its own set-up: a virtual environment in .venv, with the versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test lab docs bench mutate export readme paper data check clean
help:           ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

demo: .venv/.package   ## train two networks on digits and compare them, in runs/demo
	$(BIN)/submatch demo --out runs/demo

test: .venv/.dev       ## run every notebook, then the tests
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

lab: .venv/.dev        ## open the paper in JupyterLab
	$(BIN)/jupyter lab nbs/index.ipynb

docs: .venv/.dev       ## make the site in _docs from the notebooks and their stored outputs
	PYTHONPATH=. $(BIN)/sphinx-build -W --keep-going -E -q -c docs nbs _docs
	@echo "Open _docs/index.html in a browser"

bench: .venv/.dev      ## time the fast paths against the plain ones
	$(BIN)/python tests/bench.py
	$(BIN)/python tests/bench_layers.py
	$(BIN)/python tests/bench_explorer.py

mutate: .venv/.dev     ## break match, maximum, simple and structure in every small way and list what no test notices (up to an hour)
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results | grep -v plot_ || echo None survived.

export: .venv/.dev     ## write submatch_nb from the notebooks
	$(BIN)/nbdev-export

readme: .venv/.dev     ## write README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

paper: .venv/.dev      ## run every notebook in place and store its outputs
	$(BIN)/python tools/execute.py nbs/*.ipynb

data: .venv/.dev       ## compare the networks of `make demo` again, for the explorer that comes with the package
	$(BIN)/submatch demo --out runs/demo
	$(BIN)/python tools/data.py

check: .venv/.dev      ## the export and the README are in step with the notebooks
	$(BIN)/python tools/readme.py --check
	$(BIN)/nbdev-export
	git diff --exit-code --stat -- submatch_nb

clean:                 ## remove the environment and what the runs wrote
	rm -rf .venv runs _docs jupyter_execute mutants build dist *.egg-info

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
