# Everything a fresh machine needs: `make demo`, `make test`, `make lint`.

VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= outputs/demo
# Options of examples/walk_aloha_sim.sh.
WALK ?=
# A working uv: the one on the PATH, or one of our own.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)

export MUJOCO_GL ?= egl
# Where it is set, every process compiles LeRobot's imports anew, which takes half a minute.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup test test-oldest lint demo walk lerobot-tests constraints clean

setup: $(VENV)/.complete

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/python -m pip install --quiet uv

$(VENV)/.complete: pyproject.toml constraints.txt lerobot_motion/_plugin.py | $(filter .uv/bin/uv,$(UV))
	test -x $(BIN)/python || $(UV) venv --quiet --python 3.12 $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt \
		--editable ".[sim,dev]"
	touch $@

# One test process a core, and one thread a process.
test: export OMP_NUM_THREADS ?= 1
test: setup
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

# The oldest versions that pyproject.toml allows, with the torchcodec that belongs to their torch.
test-oldest: export OMP_NUM_THREADS ?= 1
test-oldest: | $(filter .uv/bin/uv,$(UV))
	test -x .venv-oldest/bin/python || $(UV) venv --quiet --python 3.12 .venv-oldest
	$(UV) pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct \
		--editable ".[sim,dev]" "torchcodec>=0.4,<0.5"
	.venv-oldest/bin/python -m pytest --numprocesses=2 --dist=loadfile tests/unit tests/parity

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: setup
	PATH="$(abspath $(BIN)):$$PATH" bash examples/demo.sh "$(DEMO)"

walk: setup
	PATH="$(abspath $(BIN)):$$PATH" bash examples/walk_aloha_sim.sh $(WALK)

# LeRobot's own test functions against motion_pi0; LEROBOT_SRC is a checkout of its tag v0.6.1.
lerobot-tests: setup
	$(BIN)/python -m pytest tests/lerobot_suite --lerobot-src="$(LEROBOT_SRC)"

# Versions that were tested together.
constraints:
	$(UV) pip compile --quiet --python-version 3.12 --no-emit-index-url --no-header \
		--no-annotate --extra sim --extra dev --output-file constraints.txt pyproject.toml

clean:
	rm -rf $(VENV) .venv-oldest .uv build dist
