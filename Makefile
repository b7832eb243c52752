# simagent: `make run` shows what it does, `make test` proves it, `make help` lists the rest.
#
# Everything goes into .venv and build/. On Debian the one system package that may be missing,
# python3-venv, is installed by apt (with sudo where needed).

PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq

define apt-install
sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; echo "Installing $(1) ..."; \
$$sudo apt-get update -qq && \
$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $(1) >/dev/null
endef

.DEFAULT_GOAL := help
.PHONY: help run test test-system test-fleet test-cluster faults fleet-faults thousands chaos system-packages engines base-image images smoke deb vm-image vm-tools up down lint format bench venv clean distclean
.DELETE_ON_ERROR:

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# A state folder of its own: the run touches no other tasks of this user, whatever the environment.
run: $(VENV)/ready-to-run ## Run LAMMPS on two MPI ranks, follow it, fetch its outputs
	@rm -rf build/run && mkdir -p build
	@env -u SIMAGENT_QUEUE -u SIMAGENT_STORE -u SIMAGENT_CONFIG \
		PATH="$(CURDIR)/$(BIN):$$PATH" SIMAGENT_STATE_DIR="$(CURDIR)/build/state" \
		simagent run examples/lammps-melt/task.toml -o build/run

test: $(VENV)/ready-to-develop system-packages ## Run the tests, with coverage
	@tests/env/install.sh || echo "Tests with engines that are missing are skipped: see above."
	@PATH="$(CURDIR)/$(BIN):$$PATH" \
		pytest -n $(WORKERS) --ignore=tests/system --ignore=tests/fleet --ignore=tests/cluster --cov --cov-report=term $(PYTEST_ARGS)

# Builds images, which takes minutes. Much of the time is waiting for machines.
test-system: $(VENV)/ready-to-develop ## Run simulators, machines with systemd, a disk in QEMU
	@PATH="$(CURDIR)/$(BIN):$$PATH" pytest -n 2 --dist loadfile tests/system $(PYTEST_ARGS)

# Takes minutes.
test-fleet: $(VENV)/ready-to-develop ## Run fleets of agents on servers of S3 and SQS
	@PATH="$(CURDIR)/$(BIN):$$PATH" pytest -n $(WORKERS) tests/fleet $(PYTEST_ARGS)

# Takes minutes. Containers stand for VMs.
test-cluster: $(VENV)/ready-to-develop ## Run MPI across clusters of agents
	@PATH="$(CURDIR)/$(BIN):$$PATH" pytest -n 1 tests/cluster $(PYTEST_ARGS)

# All cases of the fault suite, of which `make test` runs a choice; chaos is a part of it, for a minute.
faults: $(VENV)/ready-to-develop ## Run all of the fault suite
	@PATH="$(CURDIR)/$(BIN):$$PATH" SIMAGENT_FAULTS_FULL=1 \
		pytest -n $(WORKERS) tests/faults $(PYTEST_ARGS)

# All of what `make test-fleet` runs a choice of: every fault at every step takes most of an hour.
fleet-faults: $(VENV)/ready-to-develop ## Run all faults over S3 and SQS
	@PATH="$(CURDIR)/$(BIN):$$PATH" SIMAGENT_FAULTS_FULL=1 \
		pytest -n $(WORKERS) tests/fleet/test_faults.py $(PYTEST_ARGS)

thousands: $(VENV)/ready-to-develop ## Run 2,000 tasks over S3 and SQS, killing agents
	@PATH="$(CURDIR)/$(BIN):$$PATH" SIMAGENT_TEST_FLEET_TASKS=2000 \
		pytest -s tests/fleet/test_thousands.py $(PYTEST_ARGS)

chaos: $(VENV)/ready-to-develop ## Kill agents at random for five minutes, under 50 tasks
	@PATH="$(CURDIR)/$(BIN):$$PATH" SIMAGENT_FAULTS_FULL=1 SIMAGENT_CHAOS_SECONDS=300 \
		pytest -s tests/faults/test_chaos.py $(PYTEST_ARGS)

# What tests need and pip cannot bring. Without apt they are skipped, which the summary says. Of the ssh
# server the program is needed: by that file Debian's package leaves the service off.
SSHD_OFF := /etc/ssh/sshd_not_to_be_run
system-packages:
	@{ command -v systemd-analyze && command -v ssh && PATH=$$PATH:/usr/sbin command -v sshd; } \
		>/dev/null || ! command -v apt-get >/dev/null || { \
		sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
		[ -e /usr/sbin/sshd ] || $$sudo sh -c 'mkdir -p /etc/ssh && touch $(SSHD_OFF)'; \
		$(call apt-install,systemd openssh-client openssh-server); }

engines: ## Install Docker, a registry, Apptainer and S3 servers for the tests that need them
	@tests/env/install.sh

# The Docker Engine that this machine runs, or the one of the tests.
WITH_DOCKER = $$(docker version >/dev/null 2>&1 || echo env PYTHONPATH=tests $(BIN)/python -m engines run)
SHELF = $(WITH_DOCKER) env PYTHONPATH=containers $(BIN)/python -m shelf

base-image: $(VENV)/ready-to-develop ## Make Debian's base images where no registry has them
	@$(WITH_DOCKER) containers/base-image.sh trixie bookworm

images: $(VENV)/ready-to-develop ## Build the images of all simulators; image-NAME: that of one
	@$(SHELF) build

image-%: $(VENV)/ready-to-develop
	@$(SHELF) build $*

smoke: $(VENV)/ready-to-develop ## Run all simulators' smoke cases; smoke-NAME: that of one
	@$(SHELF) smoke

smoke-%: $(VENV)/ready-to-develop
	@$(SHELF) smoke $*

# For the release of Debian that this is, or another one: make deb RELEASE=trixie, in a container.
deb: $(if $(RELEASE),$(VENV)/ready-to-develop) ## Build the Debian package, in build/deb
	@$(if $(RELEASE),$(WITH_DOCKER)) systemd/debian/build.sh $(RELEASE)

# What vm/build.sh tells of can be set: make vm-image DOCKER=yes IMAGES="lammps.sif"
VM_SUITE := $(or $(SUITE),trixie)
vm-image: $(VENV)/ready-to-develop vm-tools ## Build a disk that boots, with the agent, in build/vm
	@package=$$($(MAKE) --no-print-directory deb RELEASE=$(VM_SUITE)) || { echo "$$package" >&2; exit 1; }; \
		AGENT="$$(echo "$$package" | tail -n 1)" SUITE=$(VM_SUITE) vm/build.sh

vm-tools: ## Install what that needs, and QEMU
	@tests/env/vm-tools.sh

# FLEET_DIR, FLEET_NAME and FLEET_PORT: another folder than build/fleet, a fleet beside another.
up: ## Start a small fleet in containers: two agents, an S3 and an SQS for trying
	@containers/compose.sh up

down: ## Remove it, with all tasks
	@containers/compose.sh down

lint: $(VENV)/ready-to-develop ## Check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/ready-to-develop ## Format the code, mend what ruff can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/ready-to-develop ## Measure against the budgets
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m bench

venv: $(VENV)/ready-to-develop ## Set up .venv for development, and nothing else

clean: ## Remove results and caches
	@[ ! -d build/fleet ] || containers/compose.sh down || true
	@[ ! -d build/engines ] || PYTHONPATH=tests $(PYTHON) -m engines remove
	@rm -rf build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find agent tests bench examples -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## Remove .venv, too
	@rm -rf $(VENV)

FIRST := the first time takes a minute or two, and about 550 MB

$(VENV)/ready-to-run: pyproject.toml $(VENV)/created
	@echo "Installing simagent and what the examples need into $(VENV) ($(FIRST)) ..."
	@$(PIP) install -e '.[examples]'
	@touch $@

$(VENV)/ready-to-develop: pyproject.toml $(VENV)/created
	@echo "Installing simagent, the examples' and the developers' tools into $(VENV) ($(FIRST)) ..."
	@$(PIP) install -e '.[dev,examples]'
	@touch $@ $(VENV)/ready-to-run

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "simagent needs Python 3.11 or newer, and '$(PYTHON)' is not:" \
			"name another, as in: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		command -v apt-get >/dev/null || { \
			echo "'$(PYTHON)' lacks the venv and ensurepip modules: install them" >&2; exit 1; }; \
		$(call apt-install,$(notdir $(PYTHON))-venv); }
	@$(PYTHON) -m venv $(VENV)
	@touch $@
