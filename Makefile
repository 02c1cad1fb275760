# Everything a newcomer needs: `make demo` and `make test`. Both are safe to repeat.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.stamps
JOBS   ?= $(shell nproc)
# Files of tests run side by side. Each uses two threads of torch, which must not wait by spinning.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile \
  --no-loadscope-reorder --durations 25
# What torch the suite runs with; `make test-latest` sets both.
REQUIREMENTS ?= requirements.txt
TORCHVISION  ?= 0.28.0
WHEELS       ?= 2.13.0
# Fuzzing the core is optional and wants libFuzzer: Clang 16 or later.
FUZZ_SECONDS ?= 600
FUZZ_CXX     ?= $(firstword $(shell which clang++-19 clang++-18 clang++-17 clang++-16 clang++))

.PHONY: demo test test-latest build cpp-test asan-test python-test docs-test fuzz fuzz-sched lint format \
  bench bench-quick wheels documents clean

demo: build
	$(BIN)/python -W ignore benchmarks/demo.py

test: build cpp-test asan-test python-test docs-test

# --- set up -------------------------------------------------------------------------------------

# What Debian has and PyPI has not: a compiler, Python's headers, GoogleTest.
$(STAMPS)/system:
	@$(PYTHON) cmake/check_system.py
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# torchvision from PyPI asks for another build of torch than the CPU one, so its dependencies are
# listed by hand.
$(STAMPS)/packages: $(REQUIREMENTS) requirements-dev.txt $(STAMPS)/system
	$(BIN)/pip install -q -r $(REQUIREMENTS) -r requirements-dev.txt
	$(BIN)/pip install -q --no-deps torchvision==$(TORCHVISION)
	$(BIN)/python cmake/torchvision_beside_cpu.py
	@touch $@

# An editable install: the package is found from every folder, and its modules are built in place.
$(STAMPS)/package: setup.py pyproject.toml $(STAMPS)/packages
	$(BIN)/pip install -q --no-build-isolation --no-deps -e . \
	  --config-settings editable_mode=compat
	@touch $@

# For the tests of the report's page, which are skipped where none can be had.
$(STAMPS)/browser: $(STAMPS)/system
	@$(PYTHON) cmake/check_system.py browser
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
	  -DTORCH_EXT_SANITIZE=address,undefined -DTORCH_EXT_JIT=OFF -DTORCH_EXT_MEMORY=ON \
	  -DCMAKE_PREFIX_PATH=$$($(BIN)/python -c 'import torch; print(torch.utils.cmake_prefix_path)') \
	  -DTORCH_EXT_PYTHON=OFF -DTORCH_EXT_TESTS=ON
	$(BIN)/cmake --build build-asan -j $(JOBS)
	$(BIN)/ctest --test-dir build-asan --output-on-failure -j $(JOBS)

python-test: build $(STAMPS)/browser
	$(PYTEST) tests/python

# Every command and example of README.md and docs.
docs-test: build
	$(PYTEST) -p tests.documents README.md docs csrc/README.md benchmarks/README.md

# The suite against the newest torch. The modules are built in place, so it runs in a copy of the
# tree; what the copy built and installed stays, and kept file times keep it up to date.
test-latest:
	@mkdir -p build-latest
	@find build-latest -mindepth 1 -maxdepth 1 ! -name .venv ! -name build -exec rm -rf {} +
	@git ls-files -coz --exclude-standard | \
	  tar --null --files-from=- --ignore-failed-read -c | tar -x -C build-latest
	$(MAKE) -C build-latest REQUIREMENTS=requirements-latest.txt TORCHVISION=0.29.1 \
	  cpp-test python-test

# Random programs, original against reordered, by both doors; a later call goes on where it stopped.
FUZZ_PROGRAMS ?= 50000
fuzz: build
	@mkdir -p build-fuzz
	for door in torchscript fx; do \
	  $(BIN)/python -m tests.fuzz --door $$door --count $(FUZZ_PROGRAMS) --jobs $(JOBS) \
	    --state build-fuzz/$$door.json || exit 1; \
	done

# Each fuzzer for FUZZ_SECONDS. What it keeps is in build-fuzz/corpus; an input that breaks something
# ends the run and is build-fuzz/FUZZER-crash-...; give it to the fuzzer as argument to see it again.
fuzz-sched: $(STAMPS)/packages
	@test -n "$(FUZZ_CXX)" || { echo "needs Clang 16 or later: apt-get install clang-16" >&2; false; }
	@$(BIN)/cmake -S . -B build-fuzz -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -DCMAKE_CXX_COMPILER=$(FUZZ_CXX) -DTORCH_EXT_FUZZ=ON -DTORCH_EXT_SANITIZE=address,undefined \
	  -DTORCH_EXT_JIT=OFF -DTORCH_EXT_PYTHON=OFF
	$(BIN)/cmake --build build-fuzz -j $(JOBS)
	mkdir -p build-fuzz/corpus/instance build-fuzz/corpus/plan
	build-fuzz/tests/fuzz_sched/instance_fuzzer -max_total_time=$(FUZZ_SECONDS) -max_len=4096 \
	  -dict=tests/fuzz_sched/instance.dict -artifact_prefix=build-fuzz/instance- \
	  -print_final_stats=1 build-fuzz/corpus/instance tests/fuzz_sched/corpus/instance
	build-fuzz/tests/fuzz_sched/plan_fuzzer -max_total_time=$(FUZZ_SECONDS) -max_len=256 \
	  -artifact_prefix=build-fuzz/plan- \
	  -print_final_stats=1 build-fuzz/corpus/plan tests/fuzz_sched/corpus/plan

lint: build
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.h' '*.cpp')
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMPS)/packages
	$(BIN)/clang-format -i $$(git ls-files '*.h' '*.cpp')
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A wheel for each version of torch in WHEELS, tried in a clean environment.
wheels:
	$(PYTHON) cmake/build_wheels.py $(addprefix --torch=,$(WHEELS))

# Standard models, before and after and beside what torch offers. `bench` takes many hours; a later
# call goes on where it stopped. `bench-quick` takes about ten minutes.
bench: build
	$(BIN)/python -W ignore benchmarks/standard_models.py --resume

bench-quick: build
	$(BIN)/python -W ignore benchmarks/standard_models.py --quick

# The figures, tables and pictures of README.md and docs, from benchmarks/results.
documents: build
	$(BIN)/python -W ignore benchmarks/documents.py

clean:
	rm -rf build build-asan build-fuzz build-latest/build torch_ext/*.so
