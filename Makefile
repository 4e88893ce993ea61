# Set-up is part of every target: nothing needs to be installed but Python 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
OUT ?= results
RUN := $(VENV)/bin/python

.PHONY: bench test test-scatter lint docs clean

bench: $(VENV)/.ok  ## run the suite on embedded data: three tasks, every group, three seeds
	@echo "Running the benchmark suite on embedded data; about six minutes on two cores."
	$(RUN) -m benchmarks run --profile quick --seeds 3 --out $(OUT)

test: $(VENV)/.ok  ## run all tests and the examples in the documentation
	@echo "Running the tests; some minutes on two cores."
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -q

test-scatter: $(VENV)/.ok  ## build torch-scatter (ten minutes and more), test the kernels with it
	$(RUN) -m uv pip install -q -p $(VENV) -c constraints.txt setuptools wheel
	$(RUN) -m uv pip install -q -p $(VENV) -c constraints.txt --no-build-isolation '.[scatter]'
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -q tests/kernels

lint: $(VENV)/.ok  ## check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(VENV)/.ok  ## build the site into site/
	$(RUN) -m mkdocs build --strict -f docs/mkdocs.yml -d ../site

clean:  ## remove the environment and what was built
	rm -rf $(VENV) site build dist

# pip knows where local wheels lie from its own configuration; uv has to be told.
$(VENV)/.ok: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with the tested versions of constraints.txt ..."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q -c constraints.txt uv
	UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(RUN) -m uv pip install -q -p $(VENV) -c constraints.txt -e '.[dev,docs]'
	touch $@
