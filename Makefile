# Each target builds .venv by itself on a fresh clone. PYTHON chooses the interpreter, OUT where `make bench` puts its rows.
PYTHON ?= python3
OUT ?= runs/bench
BIN := .venv/bin
# One worker a core, up to eight: each takes about 1 GB. `make test WORKERS=0` runs in one process.
WORKERS ?= auto
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal

.PHONY: bench test test-all test-oldest test-cluster check docs format golden golden-new clean

bench: .venv/done
	$(BIN)/ssl-bench bench quick --out $(OUT)

test: .venv/done
	$(PYTEST) -m "not slow and not cluster"

test-all: .venv/done
	$(PYTEST) -m "not cluster"

# The same with the oldest versions that pyproject.toml allows, in an environment of their own.
test-oldest: BIN = .venv-oldest/bin
test-oldest: .venv-oldest/done
	$(PYTEST) -m "not slow and not cluster"

# A suite on a real SLURM of this machine: slurmctld, slurmd, munge and slurm-client must be installed.
test-cluster: .venv/done
	$(BIN)/python -m pytest -m cluster tests/cluster

check: .venv/done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell ssl_bench tests examples benchmarks methods evaluations *.md
	$(PYTEST) -m "not slow and not cluster"

# The site in site/, with warnings as errors; tests/test_site.py builds it too.
docs: .venv/done
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

format: .venv/done
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Numbers that versions stand for (CONTRIBUTING.md): refuses one that moved without its version; golden-new does not.
golden: .venv/done
	PYTHONPATH=tests $(BIN)/python -m golden.make

golden-new: .venv/done
	PYTHONPATH=tests $(BIN)/python -m golden.make --new

.venv/done: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# What the direct dependencies need themselves is as new as ever: only their own lower bounds are ours to test.
.venv-oldest/done: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-oldest
