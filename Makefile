# The two commands that matter: `make demo` and `make test`. Both create .venv when it is missing.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TRANSFORMERS_4 := .transformers-4

.PHONY: demo test check docs format test-lowest wheel clean

demo: $(INSTALLED)
	$(BIN)/mmbert demo --output-dir demo

test: $(INSTALLED) $(TRANSFORMERS_4)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

# Lint, format and types; types are checked on an installed copy, since checkers do not follow editable installs.
check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/typed .
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p mmbert_hf
	MYPYPATH=benchmarks $(BIN)/mypy --config-file pyproject.toml benchmarks/*.py

# The pages and the API reference; -W makes every warning an error, --keep-going shows all of them.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/docs

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tools/equation_lines.py

# The same suite on the oldest supported versions, in an environment of its own.
test-lowest:
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

wheel: $(INSTALLED)
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf build dist demo .venv .venv-lowest $(TRANSFORMERS_4) *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache

$(INSTALLED): setup.cfg pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mmbert-hf needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[demo,dev]'
	touch $@

# What is published must load in transformers 4 too: a copy of it in a folder, which tests put before the installed one.
$(TRANSFORMERS_4)/.installed: requirements-transformers-4.txt | $(INSTALLED)
	rm -rf $(TRANSFORMERS_4)
	$(BIN)/pip install --quiet --no-deps --target $(TRANSFORMERS_4) --requirement requirements-transformers-4.txt
	touch $@
