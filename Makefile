# Everything that a fresh machine with Python 3.11+ and make needs. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# another index for torch, such as PyTorch's CPU wheels, can be given: make demo PIP_FLAGS="--index-url ..."
PIP_FLAGS ?=
READY := $(VENV)/.ready
# a second environment, with torch as tested: older builds for the CPU alone are not on the usual index
OLDEST := .venv-oldest
OLDEST_TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
OLDEST_TESTS ?= $(addprefix tests/,runs fleets codec wire data sparse export reports pruning conformance.py)

# tests start hundreds of processes, each of which would compile all modules anew
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-flower test-arm test-oldest check lint quick fuzz bench experiments docs wheel clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## create .venv with the tested versions

# torch stands in the same command as all others, so that nothing else can pull another build of it
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedbonsai needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt torch -e '.[dev]'
	@touch $@

demo: $(READY)  ## FedAvg and five methods on digits, and a report of them
	$(BIN)/python demo.py

test: $(READY)  ## the tests, in about eleven minutes on two idle cores
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not exhaustive"

test-all: $(READY)  ## the tests and every case of what a few cases stand for, with freshly drawn examples
	FEDBONSAI_DRAW=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-flower: $(READY)  ## real Flower daemons on this machine, with TLS and authentication (minutes)
	FEDBONSAI_LIVE=1 $(BIN)/python -m pytest -q -s tests/flower_live

# root, debootstrap and qemu-user-static are needed: see tests/arm/rootfs.sh
test-arm: $(READY)  ## an emulated device with a 64-bit ARM processor: its install, payloads, rounds (ten minutes and more)
	rm -rf .arm/dist && $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w .arm/dist .
	sh tests/arm/rootfs.sh $(CURDIR)/.arm/root .arm/dist/*.whl
	FEDBONSAI_ARM=$(CURDIR)/.arm/root $(BIN)/python -m pytest -q -s tests/arm

test-oldest: $(OLDEST)/.ready  ## tests in .venv-oldest, with the lowest versions that pyproject.toml allows (OLDEST_TORCH=2.13.0)
	$(OLDEST)/bin/python -m pytest -W default -m "not slow" $(OLDEST_TESTS)

$(OLDEST)/.ready: pyproject.toml constraints.txt tests/oldest.py
	$(PYTHON) -m venv --clear $(OLDEST)
	$(PYTHON) tests/oldest.py $(OLDEST_TORCH) > $(OLDEST)/oldest.txt
	sed -n '/^hypothesis==/p; /^pytest==/p' constraints.txt >> $(OLDEST)/oldest.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -r $(OLDEST)/oldest.txt -e .
	@touch $@

lint: $(READY)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

check: $(READY)  ## format, lint, types and fast tests, side by side
	$(MAKE) --no-print-directory -j 2 lint quick

quick: $(READY)  ## the fast tests alone
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

fuzz: $(READY)  ## ten minutes of damaged messages (SECONDS=600)
	$(BIN)/python -m tests.fuzz $(or $(SECONDS),600)

bench: $(READY)  ## speed and size, side by side in one run, into bench/results
	$(BIN)/python -m bench.wire
	$(BIN)/python -m bench.engine
	$(BIN)/python -m bench.scale
	$(BIN)/python -m bench.codec
	$(BIN)/python -m bench.pruned_step
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.data_memory
	$(BIN)/python -m bench.allocation
	$(BIN)/python -m bench.flower
	$(BIN)/python -W ignore -m bench.export
	$(BIN)/python -m bench.sparse_step --quick
	$(BIN)/python -m bench.growth_memory
	$(BIN)/python -m bench.plan
	$(BIN)/python -m bench.peers --seeds 1

experiments: $(READY)  ## what has no result yet, within HOURS=1; goes on where it stopped
	$(BIN)/python -m experiments.collect --missing --hours $(or $(HOURS),1)

docs: $(READY)  ## the documentation as a static site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/properdocs build --quiet -f mkdocs.yml -d site

wheel: $(READY)  ## the wheel and the source archive, into dist/; the wheel is tried in a fresh environment
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/python -m tests.wheel dist

clean:  ## remove what was made
	rm -rf $(VENV) $(OLDEST) build dist site .pytest_cache .ruff_cache .hypothesis
