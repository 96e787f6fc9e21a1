# Everything runs in .venv, which the first target that needs it makes and fills.
# PYTHON=python3.12 make demo   chooses the interpreter that .venv is made with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

KERNEL_FILES := $(shell find csrc -name "*.cpp" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh")
CXX_FILES := $(KERNEL_FILES) $(wildcard tests/native/*.cpp tests/native/*.h)
PYTHON_DIRS := spectral_kernels python_api experiments benchmarks tests docs setup.py README.md
# What environments are made from, and the compiled module.
PACKAGE_INPUTS := pyproject.toml constraints.txt
BUILD_INPUTS := pyproject.toml constraints.txt setup.py $(KERNEL_FILES)
# The module may have been deleted since the stamp was made.
REBUILD := $(if $(wildcard spectral_kernels/_C*.so),,missing-module)

# OpenMP threads wait for each other by spinning for a millisecond, which costs nothing on an idle
# machine and several times the computation on a busy one. Some microseconds are as fast on the
# first (22 ms a training step of the demo; without any spinning 27) and fair on the second.
export GOMP_SPINCOUNT ?= 5000

# Test processes share the machine: as many as there are cores, two threads in each.
TEST_PROCESSES ?= auto
TEST_ENV := SPECTRAL_KERNELS_REQUIRE_COMPILED=1 OMP_NUM_THREADS=2

# Peers and ours on the same number of threads, in one process.
BENCH_THREADS ?= 2
BENCH_TABLE ?= benchmarks/results/cpu
GROWTH_TABLE ?= benchmarks/results/growth
BENCH_ENV := OMP_NUM_THREADS=$(BENCH_THREADS) MKL_NUM_THREADS=$(BENCH_THREADS) \
  OPENBLAS_NUM_THREADS=$(BENCH_THREADS)

# $(call timed,NAME,COMMAND): runs it, then says how long that took.
timed = @start=$$(date +%s) && { $(2); } && printf '%-12s %3d s\n' '$(1)' $$(($$(date +%s) - start))

.DELETE_ON_ERROR:
.PHONY: help demo compare verify decomposed test lint typecheck format bench docs clean missing-module

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

demo: $(VENV)/installed ## train a small Transformer until it groks, with its spectra at every step
	$(call timed,demo,$(BIN)/python -m experiments.modular_addition --preset demo --again)

compare: $(VENV)/installed ## the demo with and without weight decay, in one figure
	$(BIN)/python -m experiments.modular_addition.compare

verify: $(VENV)/installed ## hold the demo's spectra against float64 at every step, and their price against loops
	$(BIN)/python -m experiments.modular_addition.verify --preset demo

decomposed: $(VENV)/installed ## division mod 97 with layers kept as U Sigma Vh and without, three seeds each
	$(BIN)/python -m experiments.decomposed_division.study --preset cpu

test: $(VENV)/installed-strict lint typecheck ## lint, types, C++ warnings as errors, all tests
	$(TEST_ENV) $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist worksteal

lint: $(VENV)/installed-strict ## ruff and clang-format, without changing a file
	$(BIN)/ruff check $(PYTHON_DIRS)
	$(BIN)/ruff format --check $(PYTHON_DIRS)
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

typecheck: $(VENV)/installed-strict ## mypy --strict on the three packages
	$(BIN)/mypy --strict -p spectral_kernels -p spectral_monitor -p experiments

format: $(VENV)/installed-strict ## rewrite files as lint wants them
	$(BIN)/ruff check --fix-only --quiet $(PYTHON_DIRS)
	$(BIN)/ruff format $(PYTHON_DIRS)
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(VENV)/installed-strict ## time the kernels beside their peers; tables in benchmarks/results
	$(BENCH_ENV) $(BIN)/python -m pytest benchmarks --benchmark-only -q --table $(BENCH_TABLE)
	$(BENCH_ENV) $(BIN)/python -m benchmarks.growth --out $(GROWTH_TABLE)

docs: $(VENV)/packages-docs ## build the documentation into site/; a broken link or anchor fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

clean: ## delete .venv, caches and compiled files; runs/ stays
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f spectral_kernels/_C*.so spectral_kernels/runtime/cuda/images/*.fatbin
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	$(call timed,environment,$(PYTHON) -m venv $(VENV))

# Without build isolation pip would not fetch what setup.py imports, so that comes first; with it,
# pip would fetch versions that constraints.txt does not pin. Files are compiled when they are first
# imported: most of them never are.
INSTALL := $(PIP) install -q -c constraints.txt --no-compile
# Python files alone: kernels are compiled beside it. setuptools warns that an installation is
# editable.
INSTALL_PACKAGES := SPECTRAL_KERNELS_NO_EXTENSION=1 PYTHONWARNINGS=ignore $(INSTALL) --no-build-isolation -e
# A comma would end an argument of $(call).
STRICT_PACKAGES := .[dev,architectures,docs]
BUILD_KERNELS := $(BIN)/python setup.py -q build_ext --inplace

$(VENV)/build-tools: $(PACKAGE_INPUTS) | $(BIN)/python
	$(call timed,build tools,$(INSTALL) pip setuptools wheel pybind11)
	@touch $@

$(VENV)/packages: $(PACKAGE_INPUTS) | $(VENV)/build-tools
	$(call timed,packages,$(INSTALL_PACKAGES) '.[demo]')
	@touch $@

$(VENV)/kernels: $(BUILD_INPUTS) $(REBUILD) | $(VENV)/build-tools
	$(call timed,kernels,$(BUILD_KERNELS))
	@touch $@

# Both at once: one waits for the network and the disk, the other for the processors.
$(VENV)/installed: $(BUILD_INPUTS) $(REBUILD)
	@$(MAKE) --no-print-directory -j2 $(VENV)/packages $(VENV)/kernels
	@touch $@

# The same with warnings as errors: for `make test`, so that a newer compiler's new warning cannot
# stop `make demo`. Tests also want the models that people have, 45 s and 400 MB more, and mkdocs.
$(VENV)/packages-strict: $(PACKAGE_INPUTS) | $(VENV)/build-tools
	$(call timed,packages,$(INSTALL_PACKAGES) '$(STRICT_PACKAGES)')
	@touch $@ $(VENV)/packages $(VENV)/packages-docs

$(VENV)/kernels-strict: $(BUILD_INPUTS) $(REBUILD) | $(VENV)/build-tools
	$(call timed,kernels,SPECTRAL_KERNELS_WERROR=1 $(BUILD_KERNELS))
	@touch $@ $(VENV)/kernels

$(VENV)/installed-strict: $(BUILD_INPUTS) $(REBUILD)
	@$(MAKE) --no-print-directory -j2 $(VENV)/packages-strict $(VENV)/kernels-strict
	@touch $@ $(VENV)/installed

$(VENV)/packages-docs: $(PACKAGE_INPUTS) | $(VENV)/installed
	$(call timed,mkdocs,$(INSTALL) 'spectral-kernels[docs]')
	@touch $@
