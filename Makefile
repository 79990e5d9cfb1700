# GNU make 3.81 is enough (macOS still ships it): no .ONESHELL, no grouped targets, no $(file ...), no !=.
VENV ?= .venv
PYTHON ?=
CONSTRAINTS ?= constraints.txt
PIP_ARGS ?=
PYTEST_ARGS ?= -n 2
ARGS ?=

PY = $(VENV)/bin/python
CANDIDATES = $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3)
SUITS = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
# One thread a worker: two threads on tiny operations can be many times slower than one.
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -rs $(PYTEST_ARGS)

.PHONY: help demo test test-slow lint clean

help:
	@echo "make demo       the main job, from nothing to a report: python launch.py  (ARGS='model=tiny seed=1')"
	@echo "make test       the tests: some 12 minutes on two cores                (PYTEST_ARGS='-n 8 -k patching')"
	@echo "make test-slow  the tests that take longer"
	@echo "make lint       ruff"
	@echo "make clean      removes caches and build leftovers; keeps $(VENV) and every result"
	@echo
	@echo "VENV=          the environment: made and filled on first use, or your own  (now $(VENV))"
	@echo "PYTHON=        the Python it is made with (>= 3.11, < 3.14); else the first that is found"
	@echo "CONSTRAINTS=   the file of tested versions; given empty, pip keeps the torch you have"
	@echo "PIP_ARGS=      more for pip, such as --index-url for another build of torch"

demo: $(VENV)/.ready
	$(PY) launch.py $(ARGS)

test: $(VENV)/.ready
	$(PYTEST) -m "not slow"

# pytest's exit 5, nothing collected, fails here on purpose: a lost marker must not pass for a green run.
test-slow: $(VENV)/.ready
	$(PYTEST) -m slow

lint: $(VENV)/.ready
	$(PY) -m ruff check .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The constraints go into the same pip command as the package: torch alone would come in its largest build.
$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	@$(PY) -c "$(SUITS)" || { \
	  echo "$(VENV) holds `$(PY) -V 2>&1`, and mamba_mi needs >= 3.11 and < 3.14: remove it or give another VENV=" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
	  echo "$(VENV) has no pip: run '$(PY) -m ensurepip', or remove $(VENV), then make again" >&2; exit 1; }
	@echo "installing mamba_mi into $(VENV): some minutes the first time, most of it torch"
	$(PY) -m pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) $(PIP_ARGS) -e '.[test]'
	@touch $@

$(VENV)/bin/python:
	@for p in $(CANDIDATES); do \
	  if "$$p" -c "$(SUITS)" >/dev/null 2>&1; then found=$$p; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "no Python >= 3.11 and < 3.14 among" $(CANDIDATES)": install one (Debian, Ubuntu: sudo apt install python3 python3-venv;" \
	       "macOS: brew install python@3.12), or name yours: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	if ! "$$found" -c "import ensurepip, venv" >/dev/null 2>&1; then \
	  echo "$$found cannot make an environment (no ensurepip): run 'sudo apt install $${found##*/}-venv' (Debian, Ubuntu)," \
	       "then make again" >&2; exit 1; \
	fi; \
	echo "creating $(VENV) with $$found (`$$found -V 2>&1`)"; \
	"$$found" -m venv "$(VENV)"
