# Two commands do everything on a fresh Debian or Ubuntu with python3: `make run` and `make test`.

# The system's own interpreter where there is one: a python below somebody's private home cannot be run by anyone else,
# and a sandbox runs under a user of its own.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
NOTEBOOK ?= notebooks/01-first-steps.ipynb
ARGS ?=
SECONDS ?= 60

# Tests run commands as an ordinary user, who must be able to reach the interpreter. Root's checkout may lie where only
# root can look, so the test venv is then made in a place that is open.
CLOSED := $(shell d="$(CURDIR)"; while [ "$$d" != / ]; do \
	find "$$d" -maxdepth 0 -perm -o=rx 2>/dev/null | grep -q . || { echo yes; break; }; d=$$(dirname "$$d"); done)
VENVS := $(if $(and $(CLOSED),$(filter 0,$(shell id -u))),/var/lib/isolated-python-tests,$(CURDIR)/.cache)
TEST := $(VENVS)/venv
UPSTREAM := $(VENVS)/venv-upstream
SOURCES := pyproject.toml $(shell find kernel kernelspec -type f -not -name '*.pyc')
WHEEL = $(firstword $(wildcard .cache/wheel/isolated_python-*.whl))

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export DEBIAN_FRONTEND = noninteractive
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test test-pool test-thorough test-attacks test-mutations test-places fuzz test-upstream test-vm test-all lint types contracts bench bench-quick clean wheel

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Installs what dpkg does not know yet: as root, by sudo, or by asking the reader.
define packages
@if command -v dpkg-query >/dev/null; then \
	missing=$$(for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'install ok' || echo $$p; done | xargs); \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ]; then as=; elif sudo -n true 2>/dev/null; then as='sudo -n -E'; else \
			echo "Missing: $$missing. Please run:  sudo apt-get install $$missing" >&2; exit 1; fi; \
		echo "Installing $$missing"; \
		{ $$as apt-get -q update && $$as apt-get -q -y --no-install-recommends install $$missing; } </dev/null >.cache/apt.log 2>&1 \
			|| { cat .cache/apt.log >&2; exit 1; }; \
	fi; \
fi
endef

# $(1): the venv. Readable by everyone, whatever the umask of this shell.
define venv
@test -x $(1)/bin/pip || { umask 022; mkdir -p $(dir $(1)); $(PYTHON) -m venv $(1); }
endef

.cache:
	@mkdir -p $@

run: | .cache ## Make .venv, install the package, run a notebook in the sandbox (NOTEBOOK=…)
	$(call packages,python3 python3-venv libseccomp2)
	$(call venv,$(CURDIR)/.venv)
	@test .venv/.installed -nt pyproject.toml || { umask 022; .venv/bin/pip install -q -e . && touch .venv/.installed; }
	.venv/bin/jupyter isolated run $(NOTEBOOK) $(ARGS)

.cache/wheel/.built: $(SOURCES) README.md LICENSE | .cache
	$(call packages,python3 python3-venv libseccomp2 e2fsprogs strace chromium fonts-dejavu-core)
	$(call venv,$(TEST))
	@rm -rf .cache/wheel && mkdir -p .cache/wheel
	@$(TEST)/bin/pip wheel -q --no-deps -w .cache/wheel . && touch $@

wheel: .cache/wheel/.built ## Build the wheel that is tested

# The wheel is installed twice: for what it needs, and for itself, since pip keeps a package whose version it knows.
$(TEST)/.installed: .cache/wheel/.built
	$(call venv,$(TEST))
	@umask 022; $(TEST)/bin/pip install -q "$(WHEEL)[test,places,dev]" && $(TEST)/bin/pip install -q --no-deps --force-reinstall "$(WHEEL)" && touch $@

$(UPSTREAM)/.installed: .cache/wheel/.built tests/upstream/requirements.txt
	$(call venv,$(UPSTREAM))
	@umask 022; $(UPSTREAM)/bin/pip install -q -r tests/upstream/requirements.txt "$(WHEEL)" \
		&& $(UPSTREAM)/bin/pip install -q --no-deps --force-reinstall "$(WHEEL)" && touch $@

# JupyterHub's proxy. The last major version that runs on every node.js that Debian has.
PROXY := .cache/proxy/node_modules/.bin/configurable-http-proxy
$(PROXY): | .cache
	$(if $(shell command -v npm),,$(call packages,nodejs npm))
	@npm install --silent --no-audit --no-fund --prefix .cache/proxy configurable-http-proxy@4

test: $(TEST)/.installed $(PROXY) ## All tests, once, on the built wheel (ARGS=… for pytest)
	$(TEST)/bin/python -P -m pytest -q tests $(ARGS) </dev/null

test-thorough: $(TEST)/.installed ## What `make test` leaves out of kernels: every notebook in every profile, beside the stock kernel
	$(TEST)/bin/python -P -m pytest -q tests/kernel -m thorough $(ARGS) </dev/null

fuzz: $(TEST)/.installed ## Every parser that meets hostile bytes, SECONDS each (ARGS=… names some)
	@$(TEST)/bin/pip install -q "atheris>=3" || echo "atheris cannot be had here: hypothesis goes on alone" >&2
	$(TEST)/bin/python -P tests/fuzz/run.py --seconds $(SECONDS) $(ARGS) </dev/null

test-places: $(TEST)/.installed $(PROXY) ## Browser, hub, graded class, locked server and containers, in full
	$(call packages,podman crun sudo)
	$(TEST)/bin/python -P -m pytest -q tests/places -m 'thorough or not thorough' $(ARGS) </dev/null

test-attacks: $(TEST)/.installed ## Every attack in every profile and life, from zygote, pool and exec (half an hour)
	$(TEST)/bin/python -P -m pytest -q tests/escapes --every-combination $(ARGS) </dev/null

test-mutations: $(TEST)/.installed ## Each layer off in turn: an attack must then succeed (ARGS=… names layers)
	$(TEST)/bin/python -P tests/escapes/mutations.py $(ARGS) </dev/null

docs/attacks.md: $(TEST)/.installed $(wildcard tests/escapes/*.py)
	@mkdir -p docs && $(TEST)/bin/python -P tests/escapes/page.py >$@

test-pool: $(TEST)/.installed ## All tests of kernels, each of them one that stood before it was asked for
	$(TEST)/bin/python -P -m pytest -q tests/kernel --pool $(ARGS) </dev/null

test-upstream: $(UPSTREAM)/.installed ## Other people's suites, in the sandbox (ARGS=… names suites, --stock)
	$(UPSTREAM)/bin/python tests/upstream/run.py $(ARGS) </dev/null

test-vm: $(TEST)/.installed $(PROXY) ## A virtual machine with cgroup v2 and systemd (slow)
	$(call packages,qemu-system-x86 qemu-utils mmdebstrap debian-archive-keyring e2fsprogs openssh-client util-linux)
	$(TEST)/bin/python -P -m pytest -q tests/vm -o norecursedirs=inside --timeout=7200 $(ARGS) </dev/null

test-all: test test-pool test-thorough test-attacks test-mutations test-places test-upstream test-vm ## Everything above, one after the other

lint: $(TEST)/.installed ## Style, and the names that are banned
	$(TEST)/bin/ruff check --no-cache .
	$(TEST)/bin/ruff format --no-cache --check .

types: $(TEST)/.installed ## Strict types
	$(TEST)/bin/mypy --cache-dir=.cache/mypy

contracts: $(TEST)/.installed ## Imports point down only
	PYTHONPATH=kernel $(TEST)/bin/lint-imports --no-cache

bench: $(TEST)/.installed ## Figures beside the stock kernel, in the same run (ARGS=… names some)
	$(TEST)/bin/python benchmarks/run.py $(QUICK) $(ARGS)

bench-quick: QUICK := --quick
bench-quick: bench ## Fewer rounds, and without what is slow

clean: ## Remove what was built, venvs included
	rm -rf .venv .cache build dist .mypy_cache .pytest_cache .ruff_cache $(filter /var/lib/isolated-python-tests,$(VENVS))
