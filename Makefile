# make demo  - set up .venv and run the whole line on generated videos (about 7 minutes on 2 cores)
# make test  - set up .venv and run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip would compile every module of torch and transformers, half of the set-up; an import compiles the few it takes
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
export TOKENIZERS_PARALLELISM = false
# two workers, a file each: one thread a process, or they would wait for one another
TESTS := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test check test-all docs dist gpu clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# A stamp is written only after its install succeeded, so an interrupted install starts again.
$(VENV)/.train: setup.py constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV) (one to three minutes the first time) ..."
	@$(PIP) -e '.[train]'
	@touch $@

$(VENV)/.test: $(VENV)/.train
	@echo "Adding the test tools and the search and page extras ..."
	@$(PIP) -e '.[train,search,serve,ui,test]'
	@touch $@

$(VENV)/.all: $(VENV)/.test
	@$(PIP) -e '.[all,bench,ray,check,release]'
	@touch $@

$(VENV)/.check: $(VENV)/.test
	@$(PIP) -e '.[train,search,serve,ui,test,check]'
	@touch $@

demo: $(VENV)/.train  ## Set up, render videos, train, evaluate, index, search; opens nothing, writes outputs/demo/report.html
	@$(BIN)/dmae demo

test: $(VENV)/.test  ## Set up and run the tests
	@$(TESTS) $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.check  ## Lint, types, import directions, the documentation site
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m pytest -q tests/test_rooms.py tests/test_docs.py tests/test_method_page.py
	@$(BIN)/python .ci/link_rooms.py
	@$(BIN)/basedpyright --pythonpath $(BIN)/python
	@$(BIN)/mkdocs build --strict --quiet

docs: $(VENV)/.check  ## Serve the documentation site while you edit it
	@$(BIN)/python .ci/link_rooms.py
	@$(BIN)/mkdocs serve

dist: $(VENV)/.all  ## Build the two archives into dist/ and try the wheel in an environment of its own
	@$(BIN)/python -m pytest -q -m 'not gpu' tests/test_packaging.py
	@$(BIN)/python -m build --no-isolation -o dist

gpu: $(VENV)/.test  ## On a machine with a GPU: its tests and benchmarks, what has no result yet (40 minutes on an H200)
	@$(BIN)/python benchmarks/gpu.py

test-all: $(VENV)/.all  ## Also the slow, load, fuzz, browser and second-environment tests
	@$(BIN)/python -m pytest -q -m 'not gpu'

clean:  ## Remove the environment and the outputs
	rm -rf $(VENV) outputs
