# Set-up is part of every target: nothing needs to be installed but Python 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
OUT ?= results
RUN := $(VENV)/bin/python
# pip knows where local wheels lie from its own configuration; uv has to be told.
INSTALL = UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(RUN) -m uv pip install -q -p $(VENV) -c constraints.txt

.PHONY: bench standard paper test test-scatter gate-extras mutants asan soak registers lint docs lock matrix release clean

# What a whole profile is. Each command says beforehand how long it takes, goes on where it was
# interrupted, and lets every core work; DATA is a folder of downloaded data.
DATA ?= data

bench: $(VENV)/.ok  ## run the suite on embedded data: every task, group and baseline
	$(RUN) -m gsym_bench run --profile quick --out $(OUT)
	$(RUN) -m gsym_bench motion --profile quick --seeds 3 --out $(OUT)

standard: $(VENV)/.ok  ## run the suite on real data, DATA=DIR; 90 minutes at most on two cores
	$(RUN) -m gsym_bench run --profile standard --data $(DATA) --out $(OUT)
	$(RUN) -m gsym_bench motion --profile standard --seeds 5 --data $(DATA) --out $(OUT)

paper: $(VENV)/.ok  ## run the published inpainting, DATA=DIR; 90 minutes at most on two cores
	$(RUN) -m gsym_bench run inpainting inpainting-mnist --profile paper --data $(DATA) --out $(OUT)

test: $(VENV)/.ok  ## run all tests and the examples in the documentation
	@echo "Running the tests; some minutes on two cores."
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -q

test-scatter: $(VENV)/.ok  ## build torch-scatter (ten minutes and more), test the kernels with it
	$(INSTALL) setuptools wheel
	$(INSTALL) --no-build-isolation '.[scatter]'
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -q tests/kernels

gate-extras: $(VENV)/.ok  ## add what the gate tests beside: solvers under the GPL, faults, and Ray
	$(INSTALL) -e '.[sym,mutants,ray]'

mutants: gate-extras  ## plant 320 small faults in the library, count what the tests notice; an hour
	OMP_NUM_THREADS=1 $(RUN) -m gsym_bench.mutants --count 320 --out docs/pages/results

asan: $(VENV)/.ok  ## run 10,000 random shapes through the C++ kernels under the sanitizers
	OMP_NUM_THREADS=1 $(RUN) tests/sanitize.py --shapes 10000

soak: $(VENV)/.ok  ## run 30,000 steps and 300 choices, and watch memory and open files
	OMP_NUM_THREADS=1 $(RUN) tests/soak.py --steps 30000 --choices 300

registers: $(VENV)/.ok  ## compile all Triton kernels for sm_90, and hold their registers
	GSYM_EVERY_KERNEL=1 $(RUN) -m pytest -q tests/kernels/test_triton_sm90.py

matrix:  ## test every Python found with the oldest and the newest torch; long
	bash tools/matrix.sh

release: $(VENV)/.ok  ## build and check sdist and wheel, and tag the commit
	$(INSTALL) hatchling twine
	PYTHON=$(RUN) bash tools/release.sh

lint: $(VENV)/.ok  ## check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(VENV)/.ok  ## run the tutorials, build the site into site/, look at it in a browser
	OMP_NUM_THREADS=1 $(RUN) -m sphinx -q -W --keep-going -c docs docs/pages site
	$(RUN) docs/check.py site

# Builds of PyTorch for one machine, as for its CPU, have one version and other hashes, so the tests
# are set up from constraints.txt, which has none; this file is for users of the public index.
lock: $(VENV)/.ok  ## write requirements.txt: the versions of constraints.txt with their hashes
	$(RUN) -m uv pip compile -q pyproject.toml --extra dev --extra docs -c constraints.txt \
		--universal --python-version 3.11.5 --generate-hashes --no-annotate \
		--custom-compile-command 'make lock' -o requirements.txt

clean:  ## remove the environment and what was built
	rm -rf $(VENV) site build dist docs/pages/tutorials

$(VENV)/.ok: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with the tested versions of constraints.txt ..."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q -c constraints.txt uv
	$(INSTALL) -e '.[dev,docs]'
	touch $@
