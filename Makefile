# The environment is made once, in .venv, and made again when what it is made from changes.
#
#   make demo       train on real recordings, print the table, draw the picture
#   make test       the quick tests                 make test-all   all tests
#   make bench      the benchmarks                  make lint       formatting, lint, types
#   make gpu        on a machine with a GPU: are its kernels right there, and how fast
#   make clean      remove what was built           make install    only make the environment
#
# PYTHON=python3.12 chooses the interpreter, MMER_BUILD=auto allows compiled parts to be left out,
# PYTEST_ARGS="-k philox" goes to pytest, BENCH_ARGS="--suite standard" to `mmer bench`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -q --no-build-isolation -c constraints.txt
WORKERS ?= 2

# Where there is a compiler, a part that does not build is a failure, not something to leave out.
ifeq ($(origin MMER_BUILD), undefined)
MMER_BUILD := $(if $(shell command -v $(CXX)),require,auto)
endif
export MMER_BUILD

SOURCES := setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu)

.DEFAULT_GOAL := install
.PHONY: install demo test test-all bench gpu lint sanitize emulate-arm clean

install: $(VENV)/.dev

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

bench: $(VENV)/.bench
	$(BIN)/mmer bench $(BENCH_ARGS)

gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/kernels/test_gpu.py $(PYTEST_ARGS)
	$(BIN)/python -m benchmarks.gpu

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter csrc/%,$(SOURCES))
	$(BIN)/mypy

# Neither needs torch or the built package: they compile the kernels with a driver of their own.
sanitize: $(VENV)/.torch
	$(BIN)/python tests/native/run.py --sanitize thread
	$(BIN)/python tests/native/run.py --sanitize address,undefined

emulate-arm: $(VENV)/.torch
	$(BIN)/python tests/native/run.py --compiler "aarch64-linux-gnu-g++ -static" --emulator qemu-aarch64-static

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f mmer/*.so mmer/_build_info.json $(VENV)/.installed
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

# torch comes first, so that nothing else brings another version of it, and the build finds it.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the pinned versions need Python 3.11 or later: set PYTHON")'
	@echo "Making $(VENV) with torch and all else that is needed: about 2 GB, this once."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) torch numpy setuptools wheel pybind11
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml $(SOURCES)
	$(INSTALL) -e '.[train]'
	@touch $@

# mmer-attention is installed by now: only what the extra names is added to it. Of groundingdino-py
# the tests read one file, which needs none of its dependencies (a torchvision with CUDA, OpenCV ...).
$(VENV)/.bench: $(VENV)/.dev
$(VENV)/.dev $(VENV)/.bench: $(VENV)/.%: $(VENV)/.installed
	$(INSTALL) 'mmer-attention[$*]'
	$(if $(filter dev,$*),$(INSTALL) --no-deps groundingdino-py)
	@touch $@
