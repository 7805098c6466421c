# make demo  - set up .venv and run the whole line on generated videos (about 8 minutes on 2 cores)
# make test  - set up .venv and run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: help demo test check test-all clean

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
	@$(PIP) -e '.[all,bench,ray]'
	@touch $@

$(VENV)/.check: constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) ruff pytest pytest-timeout
	@touch $@

demo: $(VENV)/.train  ## Set up, render videos, train, evaluate, index, search; opens nothing, writes outputs/demo/report.html
	@$(BIN)/dmae demo

test: $(VENV)/.test  ## Set up and run the tests
	@$(BIN)/python -m pytest -q

check: $(VENV)/.check  ## Lint, import directions, links in the docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m pytest -q tests/test_rooms.py tests/test_docs.py

test-all: $(VENV)/.all  ## Also the slow, load, fuzz, browser and second-environment tests
	@$(BIN)/python -m pytest -q -m 'not gpu'

clean:  ## Remove the environment and the outputs
	rm -rf $(VENV) outputs
