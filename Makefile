# Each target runs the set-up that it needs. Variables: PYTHON (3.11 or newer), DATA, OUT, ARGS (extra options),
# CASES (per kind of fuzzed file), PROCESSES (of the tests), TORCH (of test-torch and colab-rehearsal), PRETEND (of
# gpu-day), SPACE, STEPS and COLAB (beside their targets).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := $(VENV)/.extras-installed
ARGS ?=
CASES ?= 10000
PROCESSES ?= auto

.PHONY: setup test test-slow test-browser test-gpu test-torch test-processors gpu-day gpu-wheels soak fuzz lint docs space space-rehearsal colab-rehearsal smoke compare pretrained clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "nanokimi needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || { echo "setup: making a virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "setup: installing nanokimi, PyTorch and the test tools into $(VENV), once: about 1 GB, some minutes"
	@$(BIN)/python -m pip install --quiet --progress-bar on -c constraints.txt -e '.[test]'
	@touch $@
	@echo "setup: done"

# What only the site, the notebooks and their (slow) tests need.
$(EXTRAS): $(STAMP)
	@echo "setup: installing what builds the documentation and runs notebooks"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs,notebook]'
	@touch $@

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(PROCESSES) --dist loadfile -m "not slow and not gpu and not browser" $(ARGS)

test-slow: setup $(EXTRAS)
	$(BIN)/python -m pytest -q -m slow $(ARGS)

# Needs a Chromium (Debian: apt-get install chromium); CHROMIUM names one that is not on the path. The page of `play` also
# needs Gradio and Playwright: .venv/bin/python -m pip install -c constraints.txt -e '.[browser]'
test-browser: setup
	$(BIN)/python -m pytest -q -rs -m browser $(wildcard tests/test_*browser*.py) $(ARGS)

test-gpu: setup
	$(BIN)/python -m pytest -q -m gpu $(ARGS)

# The part of the suite that depends most on torch, with another version of it, in an environment of its own beside
# .venv (several GB: the index has CUDA builds only). PIP_CONSTRAINT, unlike -c, replaces a cap that pip's settings name.
TORCH ?= 2.11.0
TORCH_VENV ?= .venv-torch-$(TORCH)
CORE := $(addsuffix .py,$(addprefix tests/test_,kimi gpt attention moe loss variants variant_parts kernels native fused \
	accelerate compiled decode muon qk_clip rms_logits adamw lion soap shampoo true_muon optimizers groups golden \
	training audit evaluate generation cost prune bench gpu_record recovery metrics parallel))

test-torch:
	test -x $(TORCH_VENV)/bin/python || $(PYTHON) -m venv $(TORCH_VENV)
	grep -v '^torch==' constraints.txt > $(TORCH_VENV)/constraints.txt
	PIP_CONSTRAINT=$(abspath $(TORCH_VENV))/constraints.txt $(TORCH_VENV)/bin/python -m pip install --quiet 'torch==$(TORCH)' -e '.[test]'
	OMP_NUM_THREADS=1 $(TORCH_VENV)/bin/python -m pytest -q -m "not slow and not gpu and not browser" $(CORE) $(ARGS)

# That part once more as on older processors, where torch, oneDNN and MKL add in another order (only AMX cannot be had so):
# a bound that holds on one processor alone proves nothing.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=COMPATIBLE
SSE := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE

test-processors: setup
	env $(AVX2) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not gpu and not browser" $(CORE) $(ARGS)
	env $(SSE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not gpu and not browser" $(CORE) $(ARGS)

# What is to be run first on a GPU: correctness, speed, science (benchmarks/gpu, docs/gpu.md). It needs no set-up: only a
# python with torch, and the packages of `make gpu-wheels` where that python lacks them. PRETEND=1: on the pretend device.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

gpu-day:
	$(GPU_PYTHON) $(if $(PRETEND),tests/pretend_device/run.py --device cuda) benchmarks/gpu/day.py $(ARGS)

# The packages that a bare machine with torch lacks, all in plain Python, and the commit that they go with: a folder of a
# few MB to take along.
GPU_WHEELS := jsonargparse docstring_parser typeshed_client pytorch_optimizer

gpu-wheels:
	rm -rf .gpu-wheels && mkdir .gpu-wheels
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: -d .gpu-wheels -c constraints.txt $(GPU_WHEELS)
	@test -z "$$(ls .gpu-wheels | grep -v 'none-any.whl$$')" || { echo "not in plain Python:"; ls .gpu-wheels; exit 2; }
	git rev-parse HEAD > .gpu-wheels/COMMIT

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

# The documentation as a site, in build/site; a broken link is an error.
docs: $(EXTRAS)
	$(BIN)/python docs/site/build_site.py

# A Hugging Face Space with the page of `play`, in build/space (examples/space/README.md).
SPACE ?= build/space

space:
	rm -rf "$(SPACE)" && mkdir -p "$(SPACE)"
	cp examples/space/* "$(SPACE)"
	cp -R nanokimi "$(SPACE)" && find "$(SPACE)" -name __pycache__ -prune -exec rm -rf {} +

# That Space, installed and run on this machine as the Hub would, and opened in a Chromium: several GB. It needs what
# `make test-browser` needs; PYTHON should be of the version that examples/space/README.md names.
space-rehearsal: setup
	PYTHONPATH=tests $(BIN)/python tests/space.py build/space-rehearsal $(PYTHON)

# The notebooks as Colab would run them, with its versions of packages, in a folder outside of this clone: several GB, and
# a training that is as long as STEPS. PYTHON should be 3.13, the version of Colab.
STEPS ?= 20
COLAB ?= $(or $(TMPDIR),/tmp)/nanokimi-colab

colab-rehearsal:
	$(PYTHON) tests/colab.py "$(COLAB)" $(PYTHON) $(TORCH) $(STEPS)

smoke: setup
	@test -n "$(DATA)" || { echo "name a text: make smoke DATA=path/to/text.txt"; exit 2; }
	$(BIN)/nanokimi compare --config smoke --data "$(DATA)" $(if $(OUT),--out "$(OUT)") $(ARGS)

compare: setup
	$(BIN)/nanokimi compare $(if $(DATA),--data "$(DATA)") $(if $(OUT),--out "$(OUT)") $(ARGS)

# The models that ship (docs/pretrained.md): four hours or more. An interrupted training goes on where it was. If the
# preset has changed since the first stage, delete runs/pretrained: the second stage takes any change.
pretrained: setup
	test -e runs/pretrained/.first-stage || $(BIN)/nanokimi compare --config tales-1m --train.max_steps 4000 --threads 1 \
		--out runs/pretrained --resume
	touch runs/pretrained/.first-stage
	$(BIN)/nanokimi compare --config tales-1m --threads 1 --out runs/pretrained --resume --allow-changes
	$(BIN)/python benchmarks/pretrained.py runs/pretrained

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
