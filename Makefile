# Everything a newcomer needs: make demo, make test.  PYTHON may name an interpreter, 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup engines programs demo gate test check docs format clean

setup: $(READY)

# torch goes first and alone (see llmopt/core/environments.py); the marker is written last, so a cut set-up starts over.
$(READY): pyproject.toml $(wildcard llmopt/core/locks/local-*)
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	$(BIN)/llmopt env create local --here
	touch $@

# Engines that share no environment with the others, in the user's home: made once, taken up where they were left, and
# brought up to date.  Tests that need one skip without it.
engines: setup
	$(BIN)/llmopt env create vllm
	$(BIN)/llmopt env create llamacpp --build
	$(BIN)/llmopt env create eval

# Debian's nginx, Prometheus, Alertmanager and Redis, where this machine lets us: tests of deployments skip without them.
programs:
	tools/install_programs.sh

demo: setup
	$(BIN)/llmopt demo

# llmopt gates itself: the bundled model against the accepted runs in results/baselines/ci, in what needs no clock, so that
# any machine may do it; then the scripted server, whose speed is known, against itself and against a slower one.
gate: setup
	$(BIN)/llmopt gate ci recipes/gate.yaml --rounds 2 --metric weights_bytes:1% --quality kl:0.005 \
	  --allow machine --allow packages --allow version
	$(BIN)/python tools/gate_scripted.py

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/generate_docs.py --check

docs: setup
	$(BIN)/python tools/generate_docs.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) llmopt-demo llmopt-gate
	find results -mindepth 1 -maxdepth 1 ! -name baselines -exec rm -rf {} +
