# make chat   everything a new machine needs, then a chat        make test   everything the tests need, then the tests
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN = $(VENV)/bin
CHECKED = $(VENV)/checked
INSTALL = $(BIN)/python -m pip install -q --disable-pip-version-check

.PHONY: chat test test-all lint types imports arm64 readme-figures clean

chat: $(VENV)/installed
	@$(BIN)/edgert chat $(ARGS)

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not reference" $(ARGS)

# also the 1.1 GB reference model, fetched if need be
test-all: $(VENV)/installed-test
	EDGERT_TEST_ALL=1 $(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .

# types and imports are checked on an installed copy, where the folders are the one package that they become
types: $(CHECKED)
	MYPYPATH=$(CHECKED) $(BIN)/mypy -p edgert

imports: $(CHECKED)
	cd $(CHECKED) && ../bin/lint-imports --no-cache --config ../../pyproject.toml

arm64: $(VENV)/installed-test
	PYTHON=$(BIN)/python tests/arm64/run-arm64

# what the README shows, measured on this machine: ten minutes, and nothing else should run
readme-figures: $(VENV)/installed-peer
	$(BIN)/python tests/large/readme_figures.py $(ARGS)

# .ci/alone: two makes at once write one environment, and the second finds what it wants
$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "edgert needs Python 3.11 or newer; install it, or name it: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) .ci/alone 'test $@ -nt $< || { echo "installing edgert into $(VENV)"; \
		test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV); $(INSTALL) -e . && touch $@; }'

$(VENV)/installed-test: EXTRAS = test
$(VENV)/installed-lint: EXTRAS = lint,test
$(VENV)/installed-peer: EXTRAS = peer
$(VENV)/installed-test $(VENV)/installed-lint $(VENV)/installed-peer: $(VENV)/installed
	@$(PYTHON) .ci/alone 'test $@ -nt $< || { $(INSTALL) -e ".[$(EXTRAS)]" && touch $@; }'

$(CHECKED): $(VENV)/installed-lint $(shell find edgert kernels models converters apps -name '*.py' 2>/dev/null)
	@rm -rf $@ build && $(INSTALL) --no-deps --target $@ . && touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
