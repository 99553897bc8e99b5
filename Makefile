# `make lottery` and `make test` include the set-up. See README.md.
# ARGS is quoted as in a shell: make lottery ARGS="-P data_root='my data'"
PYTHON ?= python3
REINIT ?= lottery
ARGS ?=
TEST_WORKERS ?= 2
MINUTES ?= 20
SEED ?=
REQUIREMENTS = requirements.txt requirements-cluster.txt requirements-dev.txt
PYTEST = pytest -n $(TEST_WORKERS) --dist worksteal
export REINIT
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: setup lottery compare test test-all chaos check bench clean

setup: .venv/.installed

.venv/.installed: $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@echo "Installing; PyTorch's CUDA build takes about 6 GB and some minutes."
	.venv/bin/pip install --quiet $(REQUIREMENTS:%=-r %)
	@touch $@

lottery: setup
	mlflow run . --env-manager=local -P "reinit=$$REINIT" $(value ARGS)

compare: setup
	mlflow run . -e compare --env-manager=local $(value ARGS)

test: setup
	$(PYTEST) -m 'not (servers or cluster or browser or real_data or slow)'
	@echo 'Not run: tests with servers, a Ray cluster, a browser, real data or random kills (make test-all).'

test-all: setup
	$(PYTEST)

chaos: setup
	python -m tests.chaos --minutes $(MINUTES) $(SEED:%=--seed %)

check: setup
	ruff check . && ruff format --check . && mypy

bench: setup
	python -m experiments bench

clean:
	rm -rf .venv
