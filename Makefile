# SPDX-License-Identifier: Apache-2.0
# The one door: `make help` lists what is behind it.

VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
NATIVE := $(wildcard worker/*.c worker/*.h native/*.c bpf/*.c bpf/*.h)

# An environment that was copied here from elsewhere, or whose interpreter is gone, is made anew.
STALE := $(shell test "$$(cat $(VENV)/.made-at 2>&1)" = "$$(pwd -P)" && $(PYTHON) -c '' 2>&1 || rm -rf $(VENV))

.DEFAULT_GOAL := help
.PHONY: help run test check fmt bench bench-packet docs worker packages clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(INSTALLED) ## set up what is missing and run: the demo, or CONFIG=file
	$(if $(CONFIG),$(VENV)/bin/fairlead run "$(CONFIG)",$(VENV)/bin/fairlead demo)

test: packages $(READY) ## set up what is missing and pass every test
	@packaging/run-tests $(PYTHON) $(ARGS)

check: $(READY) ## lint, types and the tests that need no root and no traffic
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -q -n 2 -m "not system and not root and not serial"

fmt: $(READY) ## format and repair what can be repaired
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

bench: packages $(READY) ## compare with HAProxy, nginx, nft and no load balancer (root: all rows); ARGS="--quick --only B8"
	$(PYTHON) -m bench.run $(ARGS)

bench-packet: packages $(READY) ## what the XDP program costs per packet (root); ARGS="--quick --peer-obj FILE"
	$(PYTHON) -m bench.packet $(ARGS)

docs: $(READY) ## generate the reference pages
	$(PYTHON) docs/generate.py

worker: $(READY) ## compile the proxy worker, the agent's library and the XDP programs in place
	$(PYTHON) hatch_build.py

packages:
	@packaging/install-debian-packages packaging/debian-test-packages.txt

$(VENV)/.made-at:
	@packaging/make-venv $(VENV)

$(INSTALLED): pyproject.toml hatch_build.py src/fairlead/__init__.py $(NATIVE) | $(VENV)/.made-at
	$(PYTHON) -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(READY): $(INSTALLED)
	$(PYTHON) -m pip install -q --disable-pip-version-check "pip>=25.1"
	$(PYTHON) -m pip install -q --disable-pip-version-check --group dev
	@touch $@

clean: ## remove everything that was made here
	rm -rf $(VENV) src/fairlead/_native build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis bench/results
