# Each target runs the set-up that it needs. Variables: PYTHON (3.11 or newer), DATA, OUT, ARGS (extra options),
# CASES (per kind of fuzzed file), PROCESSES (of the tests).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
CASES ?= 10000
PROCESSES ?= auto

.PHONY: setup test test-slow test-browser test-gpu soak fuzz lint smoke compare clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "nanokimi needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || { echo "setup: making a virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "setup: installing nanokimi, PyTorch and the test tools into $(VENV), once: about 1 GB, some minutes"
	@$(BIN)/python -m pip install --quiet --progress-bar on -c constraints.txt -e '.[test]'
	@touch $@
	@echo "setup: done"

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(PROCESSES) --dist loadfile -m "not slow and not gpu and not browser" $(ARGS)

test-slow: setup
	$(BIN)/python -m pytest -q -m slow $(ARGS)

# Needs a Chromium (Debian: apt-get install chromium); CHROMIUM names one that is not on the path.
test-browser: setup
	$(BIN)/python -m pytest -q -rs -m browser tests/test_browser.py $(ARGS)

test-gpu: setup
	$(BIN)/python -m pytest -q -m gpu $(ARGS)

soak: setup
	$(BIN)/python tests/soak.py --kills 100 $(ARGS)
	$(BIN)/python tests/soak.py --kills 20 --verb compare $(ARGS)

# Try CASES damaged files of each kind; a case that fails is kept in .hypothesis and tried first the next time.
fuzz: setup
	FUZZ_CASES=$(CASES) $(BIN)/python -m pytest -q -s tests/test_fuzz.py $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

smoke: setup
	@test -n "$(DATA)" || { echo "name a text: make smoke DATA=path/to/text.txt"; exit 2; }
	$(BIN)/nanokimi compare --config smoke --data "$(DATA)" $(if $(OUT),--out "$(OUT)") $(ARGS)

compare: setup
	$(BIN)/nanokimi compare $(if $(DATA),--data "$(DATA)") $(if $(OUT),--out "$(OUT)") $(ARGS)

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
