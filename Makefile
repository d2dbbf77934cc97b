# `make try`, `make demo` and `make test` need nothing but Python 3.12 and this clone.
.PHONY: setup try demo demo-faucet demo-3d docs gpu-kit test test-fast lint
PYTHON ?= python
# Compiled modules are kept whatever the machine says: LeRobot imports three times as fast.
export PYTHONDONTWRITEBYTECODE =
# A worker takes the next file; with tests/conftest.py's order the long ones are first. One more of them than cores, since
# servers, rollouts in real time and processes that start leave a core waiting.
WORKERS = $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PYTEST = OMP_WAIT_POLICY=passive .venv/bin/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

setup: .venv/.ready
.venv/.ready: pyproject.toml uv.lock
	$(PYTHON) -m pip install --quiet "uv>=0.8"
	$(PYTHON) -m uv sync --locked --extra metaworld --extra pusht --extra async --extra peft --extra look --extra aloha --extra dev
	touch $@

# The trained policy that comes with the package, in the simulator.
try: setup
	.venv/bin/deepfusion try

demo: setup
	.venv/bin/python examples/demo.py

demo-faucet: setup
	.venv/bin/python examples/demo.py --recipe faucet

demo-3d: setup
	.venv/bin/python examples/demo.py --recipe push_3d

# outputs/site, to be put on the web as it is; a link to nowhere is an error.
docs: setup
	.venv/bin/python -m mkdocs build --strict

# For a rented card, where nothing can be installed: a folder with all that the benchmark needs.
gpu-kit: setup
	.venv/bin/python -m benchmarks.gpu.kit

test: setup
	$(PYTEST)

# For the edit loop: nothing that takes more than a second.
test-fast: setup
	$(PYTEST) -m "not slow and not medium"

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
