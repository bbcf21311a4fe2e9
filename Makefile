# One virtual environment, .venv: `make demo` fills it with the light package, `make test` adds the rest.
# PYTHON=/path/to/python chooses the interpreter; by default the first of 3.11 or newer that is found.

VENV := .venv
BIN := $(VENV)/bin
LIGHT := $(VENV)/.hansa-light
DEVELOPMENT := $(VENV)/.hansa-development
TESTS ?= -n 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format docs reference images proto bench clean

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

setup: $(DEVELOPMENT)  ## everything that developers need, in .venv

$(LIGHT): pyproject.toml scripts/setup.sh
	@scripts/setup.sh light $(VENV)
	@touch $@

$(DEVELOPMENT): pyproject.toml scripts/setup.sh
	@scripts/setup.sh development $(VENV)
	@touch $(LIGHT) $@

demo: $(LIGHT)  ## train across four hospitals under secure sums: a server and four agents on this machine, over TLS
	@$(BIN)/hansa demo examples/heart_secure.toml

test: $(DEVELOPMENT)  ## all default tests
	@scripts/browser.sh
	@$(BIN)/python -m pytest $(TESTS)

test-slow: $(DEVELOPMENT)  ## the tests marked slow, within 30 minutes
	@scripts/browser.sh
	@timeout 1800 $(BIN)/python -m pytest $(TESTS) -m "slow and not soak"

lint: $(DEVELOPMENT)  ## style, format, types, layers
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(DEVELOPMENT)  ## rewrite the code in the one format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

docs: $(DEVELOPMENT)  ## the documentation, in docs/_build/html
	@$(BIN)/python -m sphinx -W -n -q --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

reference: $(DEVELOPMENT)  ## write docs/reference/generated anew from the code
	@$(BIN)/python docs/generate_reference.py

images: $(DEVELOPMENT)  ## take the pictures of the README anew from a real run
	@scripts/browser.sh
	@$(BIN)/python scripts/report_picture.py docs/images

proto: $(DEVELOPMENT)  ## generate the messages of the client protocol anew
	@$(BIN)/pip --quiet --disable-pip-version-check install --group protocol
	@PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m grpc_tools.protoc -I src/hansa/wire --python_out=src/hansa/wire/generated \
		--pyi_out=src/hansa/wire/generated --connectrpc_out=src/hansa/wire/generated --connectrpc_opt=protobuf=google \
		src/hansa/wire/federation.proto

bench: $(DEVELOPMENT)  ## Hansa and its peers at the same work; BENCH="--tasks B --peers pfl,fedjax" chooses
	@$(BIN)/python -m benchmarks $(BENCH)

clean:  ## remove what was built, but no run
	@rm -rf $(VENV) docs/_build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
