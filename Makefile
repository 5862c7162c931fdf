# Every target sets up what it needs, on a fresh machine too; set-up is done once per change of pyproject.toml
# or constraints.txt. No virtual environment needs to be active.
PYTHON ?= python3
PYTEST_ARGS ?=
WORKERS ?= logical
BENCHMARK_ARGS ?=
DEVICE ?= cuda
RUNS ?= probe/demo/step-00060 probe/demo/step-00300

BIN := .venv/bin
READY := .venv/.ready
BENCHMARK_BIN := .venv-benchmark/bin
BENCHMARK_READY := .venv-benchmark/.ready
OLDEST_BIN := .venv-oldest/bin
OLDEST_READY := .venv-oldest/.ready

# Products in both precisions, checkpoints, and families from the command line, their page included.
OLDEST_TESTS := tests/operators/test_products.py tests/checkpoints/test_formats.py tests/commands/test_families.py

# A process on every core. Each has a run of neighbouring tests, and one that is done takes half of what another still
# has: all end at once, and what the tests of a file share is seldom made twice.
IN_PARALLEL := -n $(WORKERS) --maxprocesses 8 --dist worksteal

.PHONY: demo test test-fast test-gpu test-oldest lint benchmark benchmark-gpu screenshots clean

demo: $(READY)
	$(BIN)/lite-probe demo

test: $(READY)
	$(BIN)/python -m pytest $(IN_PARALLEL) $(PYTEST_ARGS)

test-fast: $(READY)
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not slow" $(PYTEST_ARGS)

# The oldest releases that pyproject.toml allows, and that a CPU build of torch can be had beside: the paths to a result.
test-oldest: $(OLDEST_READY)
	$(OLDEST_BIN)/python -m pytest $(OLDEST_TESTS) $(PYTEST_ARGS)

# In the environment that PYTHON is of, with torch and transformers in it: nothing is installed, no network needed.
test-gpu:
	$(PYTHON) -m pytest -o addopts="-ra --import-mode=importlib" -p no:cacheprovider tests/gpu tests/optim/test_cuda.py --device $(DEVICE) $(PYTEST_ARGS)

# mypy cannot follow the package map of an editable install, so it reads the installed wheel.
# build/ goes first: setuptools would put files that are gone from the tree into the wheel.
lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build/lib build/bdist.* build/wheel build/installed
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BIN)/pip install --quiet --no-deps --target build/installed build/wheel/lite_probe-*.whl
	cd build/installed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p lite_probe

benchmark: $(BENCHMARK_READY)
	$(BENCHMARK_BIN)/python tests/benchmarks/optimizers.py
	$(BENCHMARK_BIN)/python tests/benchmarks/replay.py
	$(BENCHMARK_BIN)/python tests/benchmarks/spectra.py
	$(BENCHMARK_BIN)/python tests/benchmarks/scaling.py

# As test-gpu: in PYTHON's own environment; a peer that is not there is left out.
benchmark-gpu:
	$(PYTHON) -m tests.benchmarks.gpu --device $(DEVICE) $(BENCHMARK_ARGS)

# The pictures on the front page, of the page on RUNS; `make demo` makes the runs that they are of by default.
screenshots: $(READY)
	$(BIN)/python -m tests.browser.screenshots $(RUNS) --out docs/images

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

$(OLDEST_READY): pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST_BIN)/pip install --quiet -c tests/oldest.txt -e . pytest pytest-timeout hypothesis setuptools
	touch $@

# The peers come without their declared dependencies: those ask for torchvision, which nothing measured here
# imports, and which breaks `import transformers` where its build does not match torch's.
$(BENCHMARK_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-benchmark
	$(BENCHMARK_BIN)/pip install --quiet -c constraints.txt -e .
	$(BENCHMARK_BIN)/pip install --quiet -c constraints.txt --no-deps --pre curvlinops-for-pytorch \
		hessian-eigenthings backpack-for-pytorch unfoldNd linear_operator pytorch_optimizer
	$(BENCHMARK_BIN)/pip install --quiet -c constraints.txt einops einconv opt_einsum jaxtyping tqdm
	touch $@

clean:
	rm -rf build .venv .venv-benchmark .venv-oldest
