# Every target works from a fresh clone: the virtual environment is made when it is
# missing, and again when the requirements, the Python or this folder's path have changed.
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/installed-$(shell { cat pyproject.toml constraints.txt; pwd; $(PYTHON) --version; } | cksum | cut -d ' ' -f 1)

.PHONY: install demo test lint bench
install: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "flowprior needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv --clear .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(PY) train.py --config glow_layers_demo
	$(PY) evaluate.py --config density_layers_demo
	$(PY) evaluate.py --config tomography_layers_demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses 4

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

bench: $(STAMP)
	$(PY) -m benchmarks.glow_step
