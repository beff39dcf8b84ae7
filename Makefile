# Everything happens in .venv; `make demo` and `make test` set it up themselves.
VENV := .venv
BIN := $(VENV)/bin
# the newest supported Python that is there: 3.11 or 3.12
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
SOURCES := smnas search_spaces tests benchmarks

.PHONY: setup demo test test-remote lint format clean help

help:
	@echo "make demo    search detectors for digit scenes, two stages, and show the front (at most 12 minutes on 2 cores)"
	@echo "make test    run the test suite (about 10 minutes on 2 cores)"
	@echo "make test-remote  NNI's remote machines, for real: installs OpenSSH's server where it is missing (at most 3 minutes)"
	@echo "make setup   make the environment only"
	@echo "make lint    black, isort, flake8, mypy"
	@echo "make format  black and isort, in place"
	@echo "make clean   remove the environment, the demo data and its run"

setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "smnas needs Python 3.11 or 3.12; none of python3.12, python3.11, python3 is" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[dev]"
	touch $@

data/digits: | setup
	$(BIN)/smnas data digits data/digits

demo: setup data/digits
	$(BIN)/smnas search experiments/structural.yml experiments/modular.yml --run runs/structural

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report=term:skip-covered

# as root or with sudo where sshd is missing; the servers of the test listen on 127.0.0.1 and end with it
test-remote: setup
	tests/remote/install_sshd.sh
	SMNAS_TEST_REMOTE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/remote

lint: setup
	$(BIN)/black --check --quiet --line-length 100 $(SOURCES)
	$(BIN)/isort --check-only --quiet $(SOURCES)
	$(BIN)/flake8 $(SOURCES)
	$(BIN)/mypy

format: setup
	$(BIN)/black --quiet --line-length 100 $(SOURCES)
	$(BIN)/isort --quiet $(SOURCES)

clean:
	rm -rf $(VENV) data/digits runs/structural *.egg-info
