# What a newcomer types. Everything goes through cargo; `make` adds the packages, RocksDB's archive and the order.
WITH := scripts/with-rocksdb

.PHONY: help deps client-tools build demo test check bench clients chaos headline clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install what is missing to build (Debian packages; root or sudo) and build RocksDB once
	@scripts/deps
	@scripts/rocksdb-archive >/dev/null

client-tools: deps ## install the S3 clients that tests and demo drive
	@scripts/deps clients

build: deps ## the release binary
	$(WITH) cargo build --release --locked --bin holdfast

demo: client-tools build ## a cluster, some objects, a killed OSD, everything still there
	$(WITH) cargo xtask demo

test: client-tools ## all that CI runs: formatting, lints, docs, layers, unit, simulation, end-to-end, real clients
	$(WITH) cargo xtask check

check: deps ## as test, without the built binary: formatting, lints, docs, layers, unit tests
	$(WITH) cargo xtask check --fast

bench: client-tools build ## measure this cluster beside the raw device and loopback
	$(WITH) cargo xtask bench

clients: client-tools build ## every real S3 client, all sizes
	$(WITH) cargo xtask clients

chaos: client-tools build ## five minutes of kills, pauses, lost packets, full and failing disks, with checkers (root)
	$(WITH) cargo xtask chaos

headline: client-tools build ## one flipped bit, and power lost everywhere: 100 seeds each, then with real processes (root)
	$(WITH) cargo xtask headline

clean: ## remove build products, not the RocksDB archive
	cargo clean
	rm -rf build
