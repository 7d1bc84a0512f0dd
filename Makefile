# Every target does its own set-up: it needs Python >= 3.11 with venv, and make. Nothing is installed outside .venv.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
LIBRARIES := $(VENV)/libraries
# Their own requirements name another TensorFlow, and what is only needed to train on data sets; what they need here is the extra "libraries".
WITHOUT_DEPENDENCIES := tf-models-official tensorflow-datasets etils

# TensorFlow:Keras:tf_keras, the oldest that are supported, some in the middle, and the newest.
VERSIONS ?= 2.16.2:3.6.0:2.16.0 2.18.1:3.9.2:2.18.0 2.21.0:3.15.1:2.21.0
# What depends on the release: live objects, optimizers, formats, several replicas.
OF_VERSIONS := tests/tf_internals tests/unit/naming $(addprefix tests/formats/test_,$(addsuffix .py,formats keras_weights own_files)) \
	$(addprefix tests/end_to_end/test_,$(addsuffix .py,next_step optimizer_state optimizers_anywhere own_checkpoints scenarios slot_rules \
	tf_keras weak_names))

# Used by the isolated environment that builds the package as well, hence a variable and not an option.
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.PHONY: help demo demo-cluster test test-fast test-libraries test-versions check format bench wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## the main job in about a minute: train, refactor, restore, train on, compare
	@$(BIN)/python scripts/demo.py

demo-cluster: $(READY) ## the same on a local cluster of 2 workers (WORKERS=3, WORKERS=4)
	@$(BIN)/python scripts/demo.py --workers=$(WORKERS)

# The rooms that know no TensorFlow, and the rooms' own rules.
PURE := tests/architecture/test_rooms.py tests/unit

test-fast: $(READY) ## what thinks, without TensorFlow and processes: for every save, under a minute
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile $(PURE) $(ARGS)

# One more than two cores: tests of processes wait for much of their time.
JOBS ?= 3

test: $(READY) ## all tests (ARGS="-k name" and so on are passed on to pytest; JOBS=3 processes)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

test-libraries: $(LIBRARIES) ## random programs, and networks of Keras, KerasHub, Model Garden, Sonnet, TFRS (DIST_RESTORE_LIBRARIES=all: every mode)
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 tests/differential $(ARGS)
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup tests/libraries --ignore=tests/libraries/test_recommenders.py $(ARGS)
	@TF_USE_LEGACY_KERAS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup tests/libraries/test_recommenders.py $(ARGS)

test-versions: ## the tests that depend on it with other releases of TensorFlow and Keras, each in an environment of its own
	@for version in $(VERSIONS); do \
		set -- $$(echo $$version | tr : ' '); place=.venv-$$1-$$2; \
		[ -e $$place/ready ] || { echo "Setting up TensorFlow $$1 with Keras $$2."; $(PYTHON) -m venv --clear $$place && \
			env -u PIP_CONSTRAINT $$place/bin/python -m pip install -qq -e '.[test]' tensorflow==$$1 keras==$$2 tf_keras==$$3 && \
			touch $$place/ready; } || exit 1; \
		echo "TensorFlow $$1, Keras $$2"; \
		$$place/bin/python -m pytest -q -n auto --maxprocesses 4 --dist loadgroup $(OF_VERSIONS) $(ARGS) || exit 1; \
	done

check: $(READY) ## lint, format and strict types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY) ## put the code into the form that check wants
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY) ## all benchmarks, an hour or so; tables go to scripts/benchmarks/RESULTS.md (ARGS=--quick: one small size)
	@for name in slices plan many single cluster; do $(BIN)/python scripts/benchmarks/$$name.py $(ARGS) || exit 1; done

wheel: $(READY) ## build dist/*.whl
	@$(BIN)/python -m build --wheel
	@ls dist/*.whl

clean: ## remove all that make made
	rm -rf $(VENV) .venv-* build dist demo_out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find dist_restore scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python >= 3.11 is needed; make PYTHON=/path/to/python3.11 names one"; exit 1; }
	@echo "Setting up $(VENV) with TensorFlow and the tools; that takes a minute or more, and happens once."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq -e '.[test,hub,dev,bench]'
	@touch $@

# A library that cannot be installed is skipped by its tests, which say so.
$(LIBRARIES): $(READY)
	@$(BIN)/python -m pip install -qq -e '.[test,hub,libraries]' || echo "The extra \"libraries\" could not be installed."
	@$(BIN)/python -m pip install -qq --no-deps $(WITHOUT_DEPENDENCIES) || echo "Model Garden could not be installed."
	@touch $@
