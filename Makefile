# Everything a newcomer needs: `make demo` and `make test`. Both are safe to repeat.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.stamps
JOBS   ?= $(shell nproc)

.PHONY: demo test build cpp-test asan-test python-test lint format bench clean

demo: build
	$(BIN)/python -W ignore benchmarks/demo.py

test: build cpp-test asan-test python-test

# --- set up -------------------------------------------------------------------------------------

# What Debian has and PyPI has not: a compiler, Python's headers, GoogleTest.
$(STAMPS)/system:
	@$(PYTHON) cmake/check_system.py
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# torchvision from PyPI asks for another build of torch than the CPU one, so its dependencies are
# listed by hand.
$(STAMPS)/packages: requirements.txt requirements-dev.txt $(STAMPS)/system
	$(BIN)/pip install -q -r requirements.txt -r requirements-dev.txt
	$(BIN)/pip install -q --no-deps torchvision==0.28.0
	@touch $@

# An editable install: the package is found from every folder, and its modules are built in place.
$(STAMPS)/package: setup.py pyproject.toml $(STAMPS)/packages
	$(BIN)/pip install -q --no-build-isolation --no-deps -e .
	@touch $@

build: $(STAMPS)/package
	@$(BIN)/python setup.py -q build_ext --inplace

# --- check --------------------------------------------------------------------------------------

cpp-test: build
	$(BIN)/cmake -S . -B build -DTORCH_EXT_TESTS=ON > build/configure.log || cat build/configure.log
	$(BIN)/cmake --build build -j $(JOBS)
	$(BIN)/ctest --test-dir build --output-on-failure -j $(JOBS)

asan-test: $(STAMPS)/packages
	@$(BIN)/cmake -S . -B build-asan -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -DTORCH_EXT_SANITIZE=ON -DTORCH_EXT_JIT=OFF -DTORCH_EXT_PYTHON=OFF -DTORCH_EXT_TESTS=ON
	$(BIN)/cmake --build build-asan -j $(JOBS)
	$(BIN)/ctest --test-dir build-asan --output-on-failure -j $(JOBS)

python-test: build
	$(BIN)/python -m pytest -q tests/python

lint: build
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.h' '*.cpp')
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMPS)/packages
	$(BIN)/clang-format -i $$(git ls-files '*.h' '*.cpp')
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: build
	$(BIN)/python -W ignore benchmarks/models.py

clean:
	rm -rf build build-asan torch_ext/*.so
