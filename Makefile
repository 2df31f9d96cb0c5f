# Bulrush. `make demo` shows it, `make test` proves it; both install what they need (Debian, root).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
DATASTORE ?= directory
KEEP ?=
export YES ?=

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

deps: ## install the Debian packages that build, demo and tests need
	@scripts/deps

build: deps ## build everything (one profile for demo and tests)
	@scripts/build

demo: build ## three nodes, two typhas, a shop, 500 simulated nodes; DATASTORE=etcd for a real etcd, KEEP=1 leaves it running
	@$(or $(CARGO_TARGET_DIR),target)/debug/demo --datastore $(DATASTORE) $(if $(KEEP),--keep)

demo-down: ## clear away what `make demo KEEP=1` left
	@$(or $(CARGO_TARGET_DIR),target)/debug/demo --down

# With the features that the tests need, or all of our crates would be built twice.
test: deps ## every test, the end-to-end suites included
	@scripts/build --features syncer-common/testing
	@scripts/test

test-vm: deps ## what needs modules of Debian's own kernel (IP-in-IP), in a virtual machine; part of the tests
	@BULRUSH_REQUIRE=1 cargo test --workspace --features syncer-common/testing --test 'vm_*' -- --nocapture

fuzz: build ## every fuzz target for 60 s (SECONDS=n, SEED=n); a short run is part of the tests
	@$(or $(CARGO_TARGET_DIR),target)/debug/fuzz --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED))

bench: deps ## measure, and write the numbers into docs/performance.md (some 10 minutes)
	@scripts/bench

bench-long: deps ## the same with stalls of 10 minutes and 5,000 nodes
	@scripts/bench --long

lint: ## format, clippy, dependency direction
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	scripts/dependency-direction

.PHONY: help deps build demo demo-down test test-vm fuzz bench bench-long lint
