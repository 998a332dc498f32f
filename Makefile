# SPDX-License-Identifier: MIT
# `make demo` and `make test` do all the set-up themselves; see README.md.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(VENV)/.tools
READY := $(VENV)/.ready
BUILD_TOOLS := meson-python meson ninja "numpy>=2" f90wrap
SOURCES := pyproject.toml $(shell find . -name 'meson*' -not -path './.*' -not -path './build/*') \
  $(shell find fortran bridge python -type f -not -name '*.pyc')
APT_PACKAGES := gcc g++ gfortran pkg-config libfftw3-dev python3-dev python3-venv openmpi-bin libopenmpi-dev
# What the programs of the tests link besides, as climate codes do: netCDF and HDF5. trimtab itself needs neither.
TEST_PACKAGES := libnetcdff-dev libnetcdf-dev libhdf5-dev
TEST_MISSING = The tests link netCDF-Fortran and HDF5 (nf-config, and hdf5 for pkg-config): apt install $(TEST_PACKAGES)  |  \
  dnf install netcdf-fortran-devel hdf5-devel  |  conda install -c conda-forge netcdf-fortran hdf5  |  brew install netcdf-fortran hdf5
MISSING = trimtab needs a C and a Fortran compiler, pkg-config, FFTW 3, MPI (mpirun, mpicc) and Python 3.11 or newer with venv: \
  apt install $(APT_PACKAGES)  |  dnf install gcc gcc-c++ gcc-gfortran pkgconf fftw-devel python3-devel openmpi-devel  |  \
  conda install -c conda-forge compilers pkg-config fftw python openmpi  |  brew install gcc pkg-config fftw python open-mpi

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test packages setup system test-system lint sanitize fuzz bench reproduce clean help

help:           ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/'

demo: setup     ## train a correction inside the Fortran QG solver and score it
	$(BIN)/trimtab train qg-demo --out runs/qg-demo --resume

test: setup lint test-system ## everything under tests/
	OMP_NUM_THREADS=1 $(BIN)/meson test -C build/tests --print-errorlogs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests

packages:       ## the Debian packages that set-up and tests need, for a machine that installs them itself
	@echo $(APT_PACKAGES) $(TEST_PACKAGES)

lint: setup     ## ruff, mypy, fortitude
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/fortitude check fortran bridge tests

# Address and undefined-behaviour sanitizers, and gfortran's run-time checks. Leaks are looked for in the Fortran programs only:
# Python's own at exit would hide ours. The sanitized bridge lies in build/sanitize/root, the plain one in .venv is not touched.
SANITIZE := -Db_sanitize=address,undefined -Db_lundef=false --buildtype=debugoptimized -Dfortran_args=-fcheck=all
SANITIZED = LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" OMP_NUM_THREADS=1 TRIMTAB_MALLOC=0 \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONPATH=$(CURDIR)/build/sanitize/root
sanitize: setup ## the Fortran and C parts' tests, and the bridge's, under sanitizers and run-time checks
	test -d build/sanitize/fortran || $(BIN)/meson setup build/sanitize/fortran -Dpython=false $(SANITIZE) >/dev/null
	$(BIN)/meson test -C build/sanitize/fortran --print-errorlogs
	test -d build/sanitize/bridge || $(BIN)/meson setup build/sanitize/bridge -Dpython.platlibdir=/root $(SANITIZE) >/dev/null
	$(BIN)/ninja -C build/sanitize/bridge
	$(BIN)/meson install -C build/sanitize/bridge --quiet --destdir $(CURDIR)/build/sanitize --tags runtime,python-runtime
	$(SANITIZED) $(BIN)/python -m pytest -q -p no:cacheprovider tests/bridge/test_bridge.py tests/journeys/test_fuzz.py -k "not memory and not exit"

# A first hundred tells how long the others will take on this machine as it is.
fuzz: setup     ## thousands of experiments, files and arguments that are wrong; says first how long it will take
	@cases=$${TRIMTAB_FUZZ:-3000}; export OMP_NUM_THREADS=1; begun=$$(date +%s); \
	 TRIMTAB_FUZZ=100 $(BIN)/python -m pytest -q tests/journeys/test_fuzz.py || exit 1; spent=$$(($$(date +%s) - begun)); \
	 echo "100 cases a test took $$spent s; $$cases take about $$((spent * cases / 6000 + 1)) minutes (TRIMTAB_FUZZ=$$cases)"; \
	 TRIMTAB_FUZZ=$$cases $(BIN)/python -m pytest -q tests/journeys/test_fuzz.py

bench: setup build/bench/pyqg/.ready ## ratios and medians; see tests/bench
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/run.py

reproduce: setup ## the paper's results and ours, tables and figures into runs/reproduce; goes on after a kill
	OMP_NUM_THREADS=1 $(BIN)/trimtab reproduce

# A neighbour to measure against, in an environment of its own: it wants old numpy, cython and setuptools.
build/bench/pyqg/.ready: Makefile
	$(PYTHON) -m venv build/bench/pyqg
	build/bench/pyqg/bin/python -m pip install -q 'numpy<2' 'cython<3' 'setuptools<70' setuptools_scm wheel scipy pyfftw
	build/bench/pyqg/bin/python -m pip install -q --no-build-isolation pyqg==0.7.2
	touch $@

setup: $(READY) ## system packages (root and apt), .venv, trimtab installed in it

# Installed, not editable: an editable install rebuilds at import, and processes started together would rebuild at once.
$(READY): $(TOOLS) $(SOURCES)
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation --config-settings=build-dir=build/install '.[dev,mpi]'
	test -d build/tests || $(BIN)/meson setup build/tests -Dpython=false >/dev/null
	touch $@

$(TOOLS): pyproject.toml constraints.txt Makefile | system
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt $(TORCH) $(BUILD_TOOLS)
	touch $@

system:
	@if command -v gcc >/dev/null && command -v gfortran >/dev/null && pkg-config --exists fftw3 2>/dev/null \
	   && command -v mpirun >/dev/null && command -v mpicc >/dev/null \
	   && $(PYTHON) -c 'import ensurepip, sys, sysconfig, pathlib; \
	      sys.exit(sys.version_info < (3, 11) or not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' 2>/dev/null; \
	 then :; \
	 elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	 then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(APT_PACKAGES); \
	 else echo "$(MISSING)" >&2; exit 1; fi

# The same for the tests alone; without root the one that links them fails and says what is missing.
test-system:
	@if command -v nf-config >/dev/null && pkg-config --exists hdf5 2>/dev/null; then :; \
	 elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	 then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(TEST_PACKAGES); \
	 else echo "$(TEST_MISSING)" >&2; fi

clean:          ## forget the build and the virtual environment; runs stay
	rm -rf build $(VENV)
