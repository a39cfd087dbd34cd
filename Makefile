# Everything runs in .venv; nothing else on the machine is touched.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
export MODELS_DIR ?= $(CURDIR)/models
FAULTS ?= --minutes 5

.PHONY: help setup models demo run test test-faults test-gpu check format lint types contracts bench man faults lock clean
.PHONY: install uninstall systemd-test

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.ready  ## the virtual environment, from the lock (compiles llama.cpp once: some minutes)

$(VENV)/.ready: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (the first time compiles the engine: about 4 to 9 minutes on two cores)"
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

models: setup  ## the demo models, digests checked
	$(BIN)/metamusesd models fetch

demo: models  ## real prompts through the whole daemon, one worker killed half way
	$(BIN)/python -m examples.demo

run: models  ## the daemon in the foreground, embedded defaults
	$(BIN)/metamusesd run

test: models  ## the default suite
	$(BIN)/python -m pytest

test-faults: models  ## the slow fault tests, two real models among them (fetches Gemma 3 270M: 240 MB, under its own terms)
	$(BIN)/metamusesd models fetch gemma3-270m
	$(BIN)/python -m pip install --quiet 'mistralrs>=0.9.5' # an extra, not in the lock
	$(BIN)/python -m pytest -m slow_fault

test-gpu: models  ## on a host with an NVIDIA GPU and an engine built with CUDA: the daemon, and the engine's contract
	GPU_LAYERS=999 $(BIN)/python -m pytest tests/gpu tests/contract/test_engine_contract.py \
	  tests/contract/test_engine_llamacpp.py tests/contract/test_engine_reference.py

faults: setup  ## the proof: five minutes of random faults, then the oracle; FAULTS="--minutes 1 --seed 3", for instance
	$(BIN)/python -m benchmarks faults $(FAULTS)

check: models format lint types contracts test  ## what CI and people run: format, lint, types, import contracts, size, tests

format:
	$(BIN)/ruff format --check .

lint:
	$(BIN)/ruff check .
	$(BIN)/python tests/house.py

types:
	$(BIN)/mypy

contracts:
	$(BIN)/lint-imports

bench: models  ## the benchmarks; BENCH="engine --quick", for instance
	$(BIN)/python -m benchmarks $(BENCH)

MAN ?= docs/metamusesd.1
man:  ## the manual page, from the same source as --help
	COLUMNS=100 $(BIN)/argparse-manpage --module metamusesd.cli --function whole_parser --prog metamusesd \
	  --project-name metamusesd --manual-title metamusesd --description "a bare-metal inference daemon" --output $(MAN)

lock:  ## pin what pyproject.toml asks for; no addresses in it
	$(BIN)/python -m pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --no-header --annotation-style=line --extra llamacpp --extra cache --extra dev --output-file requirements.lock pyproject.toml

install:  ## the service, as root, into PREFIX=/opt/metamusesd; again is an upgrade; GPU=1 on hosts with GPUs
	@PYTHON=$(PYTHON) packaging/install.sh install

uninstall:  ## all of that but configuration and state; PURGE=1: those as well
	@packaging/install.sh uninstall

systemd-test: setup  ## installs and runs the service under a real systemd in a container; as root, Debian
	SYSTEMD_TEST=1 $(BIN)/python -m pytest tests/systemd -v --timeout 0

clean:  ## the environment and caches; models stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
