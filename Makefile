# The Python to build the environment with: 3.10 to 3.13. Example: make test PYTHON=python3.12
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys; raise SystemExit(sys.version_info < (3, 10))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 8000
SITE ?= sites

JOBS ?= 4
FUZZ_SECONDS ?= 120
SOAK_SECONDS ?= 600

.PHONY: run test test-pure test-pythons test-clients check conformance fuzz soak bench install clean

run: $(VENV)/installed
	$(BIN)/krait-ws serve $(SITE) --host $(HOST) --port $(PORT)

# Most tests wait for sockets and threads, so more of them run at once than there are cores.
test: $(VENV)/installed-tests
	$(BIN)/python -m pytest -n $(JOBS) $(TESTS)

# The tests of what is built on the core, with the one in Python, as where there is no compiler.
PURE_TESTS := $(foreach name,controller mailbox rate session streams waiting,tests/test_$(name).py) \
	tests/core tests/network tests/integration

test-pure: $(VENV)/installed-tests
	KRAIT_PURE_PYTHON=1 $(BIN)/python -m pytest -n $(JOBS) $(or $(TESTS),$(PURE_TESTS))

# The core's tests with every other Python from 3.10 to 3.13 that is on the path or of pyenv.
test-pythons: $(VENV)/bin/python
	.ci/pythons $(BIN)/python

# The real client packages against the sites; each is installed into an environment of its own, under .venv-clients.
test-clients: $(VENV)/installed-tests
	$(BIN)/python tests/clients/environments.py
	$(BIN)/python -m pytest -n $(JOBS) $(or $(TESTS),tests/clients)

check: $(VENV)/installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

# Every case of the Autobahn testsuite, in each runs_on; about an hour. It needs a Python 2.7 and says so without one.
conformance: $(VENV)/installed-tests
	$(BIN)/python tests/conformance/run.py

fuzz: $(VENV)/installed-tests
	$(BIN)/python tests/fuzz/fuzz_protocol.py --seconds $(FUZZ_SECONDS)

# The clients' streams through faults of every kind.
soak: $(VENV)/installed-tests
	$(BIN)/python -m tests.client.soak --seconds $(SOAK_SECONDS)

# The table of targets, and its chart. Example: make bench BENCH=--quick
bench: $(VENV)/installed
	$(BIN)/python benchmarks/run.py $(BENCH)
	$(BIN)/python benchmarks/chart.py

install: $(VENV)/installed

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.10 or newer found; name one with PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

SOURCES := setup.cfg setup.py pyproject.toml $(wildcard krait_ws/core/*.p?? krait_ws/core/*.h)

$(VENV)/installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

# By itself, not on top of the other: each compiles the core.
$(VENV)/installed-tests: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) .venv-3.* .venv-clients build krait_ws/core/compiled.c krait_ws/core/*.so *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
