# From a fresh clone: `make demo` shows a bundled model at work, `make test` runs all tests. Both make
# the environment they need; run again, they redo only what changed.
#
# Variables (make demo TORCH=torch==2.14.0, for example):
#   PYTHON       the Python (>= 3.10) that makes the virtual environment (python3)
#   VENV         the virtual environment (.venv)
#   TORCH        the torch to install, as pip names it (torch==2.13.0)
#   TORCH_INDEX  a further package index that torch may come from; empty for none (PyTorch's CPU
#                builds on x86-64 Linux without a CUDA toolkit, else none)
#   PYTEST_ARGS  more arguments for pytest, such as "-k refine" (none)
#   BENCH_ARGS   arguments for erd-cuda bench, such as --quick (none)
#   WORKERS      how many processes run the tests (2)
# CMAKE_ARGS, CXX and CMAKE_BUILD_PARALLEL_LEVEL reach the build through the environment: setup.py
# and CMakeLists.txt explain them.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
TORCH ?= torch==2.13.0

# The torch that pip finds by itself on x86-64 Linux brings gigabytes of CUDA libraries, of no use
# without a toolkit to build CUDA kernels with. PyTorch's own index has a CPU build of each version,
# which pip prefers; where that index is out of reach, pip passes it over.
ifeq ($(shell uname -sm),Linux x86_64)
ifeq ($(shell command -v nvcc || ls -d $${CUDA_HOME:-/usr/local/cuda} 2>/dev/null),)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif
endif
TORCH_INDEX ?=

# Absolute, so that programs started in other directories find it.
BIN := $(abspath $(VENV))/bin

# pip would compile all 13,500 modules to bytecode, one after another for a minute; the quarter of
# them that is ever imported is compiled then, and kept.
PIP_INSTALL := $(BIN)/pip install --no-compile
unexport PYTHONDONTWRITEBYTECODE

# Empty files that say what has been done. The name of torch's says which torch was asked for.
TORCH_READY := $(VENV)/torch-$(firstword $(shell echo '$(TORCH) $(TORCH_INDEX)' | cksum)).ready
RUN_READY := $(VENV)/run.ready
DEV_READY := $(VENV)/dev.ready
LIBRARY_READY := $(VENV)/library.ready
PACKAGING := pyproject.toml setup.py
NATIVE := CMakeLists.txt setup.py $(wildcard cmake/*) $(wildcard csrc/*/*)

.PHONY: demo test lint format bench clean
# The steps share one virtual environment and one build tree.
.NOTPARALLEL:

demo: $(RUN_READY) $(LIBRARY_READY)
	$(BIN)/erd-cuda demo

test: $(DEV_READY) $(LIBRARY_READY)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10 $(PYTEST_ARGS)

lint: $(DEV_READY)
	$(BIN)/python -m pytest -q tests/test_lint.py

format: $(DEV_READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -regex '.*\.\(h\|cpp\|cu\|cuh\)' -exec $(BIN)/clang-format -i {} +

bench: $(DEV_READY) $(LIBRARY_READY)
	$(BIN)/erd-cuda bench $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build dist erd-demo erd_cuda.egg-info erd_cuda/*.so

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "erd_cuda needs Python >= 3.10, $(PYTHON) is older or missing: set PYTHON."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What the build needs before pip can see to the rest. Only torch itself may come from TORCH_INDEX.
$(TORCH_READY): | $(VENV)/bin/pip
	rm -f $(VENV)/*.ready
	$(PIP_INSTALL) "setuptools>=77" "cmake>=3.22" ninja "pybind11>=2.13"
	$(PIP_INSTALL) --no-deps $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$(TORCH)"
	touch $@

$(RUN_READY): $(TORCH_READY) $(PACKAGING)
	$(PIP_INSTALL) --no-build-isolation -e ".[viewer]"
	touch $@

# Compilers work while pip, on one processor, fetches and unpacks what only the tests need.
$(DEV_READY): $(TORCH_READY) $(PACKAGING)
	$(BIN)/python setup.py build_ext --inplace & compiled=$$!; \
	  trap "kill $$compiled" INT TERM; \
	  ERD_COMPILE=0 $(PIP_INSTALL) --no-build-isolation -e ".[dev]"; installed=$$?; \
	  wait $$compiled && exit $$installed
	touch $@

# The installs above have built the library too; this rebuilds it after a change of its sources.
$(LIBRARY_READY): $(NATIVE) | $(TORCH_READY)
	$(BIN)/python setup.py build_ext --inplace
	touch $@
