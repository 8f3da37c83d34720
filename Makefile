# SPDX-License-Identifier: Apache-2.0
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# One setting for every build: the control plane's programs and our own then
# share packages in Go's build cache.
export CGO_ENABLED := 0
export GOFLAGS := -trimpath

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
IMAGE_PREFIX ?= causeway-lb
LDFLAGS := -s -w -X github.com/causeway-lb/causeway/internal/version.version=$(VERSION)

# Modules of their own, so that what only a test compares with is no
# dependency of the product.
TEST_MODULES := $(filter-out test/controlplane/ test/tools/ test/lint/ test/e2e-kubernetes/suite/,$(dir $(wildcard test/*/go.mod test/*/*/go.mod)))

##@ Use
.PHONY: help
help: ## Show this text
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: bin/causeway-lab bin/causeway ## A bare-metal cluster in network namespaces, where a LoadBalancer Service answers; Ctrl-C ends it
	bin/causeway-lab demo

.PHONY: demo-once
demo-once: bin/causeway-lab ## The same unattended; fails unless all of it worked; writes build/demo.json
	bin/causeway-lab demo --once

##@ Test
.PHONY: test
test: deps assets ## Everything: unit, a real API server, real packets
	go test -count=1 -timeout 25m ./...
	for module in $(TEST_MODULES); do (cd $$module && go test -count=1 -timeout 15m ./...); done

.PHONY: test-unit
test-unit: ## What needs neither root nor a control plane
	go test -short ./...

.PHONY: test-lab
test-lab: deps assets ## Real packets in network namespaces
	go test -count=1 -timeout 25m -v ./test/e2e/...

.PHONY: test-vm
test-vm: deps ## The part of the tests that runs in a virtual machine: IPVS, and nf_tables of Linux 6.1
	go test -count=1 -timeout 15m ./test/vm ./internal/proxy/ipvs/... ./internal/proxy/modes
	go test -count=1 -timeout 15m -run TestFlowsWithPackets ./internal/proxy/nftables

.PHONY: test-changes
CHANGES ?= 50
test-changes: deps ## CHANGES=50 changes of the proxy mode in each direction of each pair, under load, and one held at every step; without IPVS some minutes, with it an hour
	CAUSEWAY_MODE_CHANGES=$(CHANGES) go test -count=1 -timeout 180m -v -run 'TestChangesInARow|TestEveryStepOfAChange' ./internal/proxy/modes

bin/vm: FORCE
	go build -o $@ ./test/vm

.PHONY: e2e-kubernetes
FOCUS ?=
MODE ?= nftables
e2e-kubernetes: deps assets ## Kubernetes' own [sig-network] tests on the lab; FOCUS='\[Conformance\]' runs a part, MODE=iptables in another mode; table in build/e2e-kubernetes
	go run ./test/e2e-kubernetes -mode '$(MODE)' -focus '$(FOCUS)'

.PHONY: fuzz
FUZZTIME ?= 30s
fuzz: ## Every fuzz target, FUZZTIME each, two at a time
	test/fuzz.sh $(FUZZTIME)

.PHONY: soak
SOAK_OPERATIONS ?= 20000
SOAK_HISTORIES ?= 50000
soak: assets ## SOAK_OPERATIONS=20000 changes of Services, then as many load balancer addresses, controllers killed meanwhile; SOAK_HISTORIES=50000 of endpoints
	@failed=; \
	SOAK_OPERATIONS=$(SOAK_OPERATIONS) go test -count=1 -timeout 90m -v ./test/soak || failed="$$failed operations"; \
	(cd test/diff/endpointslice && go test -count=1 -timeout 90m -v -histories $(SOAK_HISTORIES)) || failed="$$failed histories"; \
	[ -z "$$failed" ] || { echo "Soak failed:$$failed"; exit 1; }; \
	echo "Soak passed: $(SOAK_OPERATIONS) operations of each kind, $(SOAK_HISTORIES) histories"

.PHONY: bench
bench: deps assets ## Benchmarks beside their peers; BENCH=name runs one; JSON lines in build/bench
	go run ./test/bench $(BENCH)

.PHONY: failover-check
failover-check: ## The failover figures in short, against bounds with a margin; CI runs it alone, so that they cannot rot
	go run ./test/bench/failover -check -only cut,link-down,planned,many -cuts 30 -cuts6 6 -peer-cuts 0 -link-downs 6 -planned 2 -starts 1

.PHONY: upgrade-check
upgrade-check: deps assets ## FROM=REVISION: up from that version to this one and back, in the lab and under load; docs/upgrade.md
	@[ -n "$(FROM)" ] || { echo "make upgrade-check FROM=REVISION: say which version to come from"; exit 1; }
	go run ./test/upgrade -from "$(FROM)"

##@ Develop
.PHONY: build
build: bin/controller bin/agent bin/causeway bin/causeway-lab ## The programs, in bin/: the cluster's two, the operator's, the lab

.PHONY: FORCE
bin/%: FORCE
	go build -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

.PHONY: generate
generate: ## Deep copies of the API types
	cd test/tools && go tool controller-gen object paths=../../api/...

.PHONY: manifests
manifests: ## CRDs, RBAC and webhook configurations, from the markers in the code
	cd test/tools && go tool controller-gen crd rbac:roleName=causeway-controller webhook paths=../../api/... paths=../../controllers/... \
	  output:crd:artifacts:config=../../config/crd/bases output:rbac:artifacts:config=../../config/rbac output:webhook:artifacts:config=../../config/webhook

.PHONY: verify
verify: generate manifests ## Formatting, vet, and that what is generated is up to date
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt these files:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	go mod verify >/dev/null
	for module in $(TEST_MODULES); do (cd $$module && go vet ./...); done
	@git diff --exit-code -- api config || { echo "Generated files were out of date: commit them."; exit 1; }
	for dir in config/default $(wildcard config/overlays/*); do (cd test/tools && go tool kustomize build ../../$$dir) >/dev/null; done

.PHONY: dependencies
dependencies: ## What is linked into the programs, with versions, for review; fails with a tool chain older than go.mod's
	test/dependencies.sh

.PHONY: lint
lint: ## golangci-lint, built from its module
	mkdir -p bin
	cd test/lint && go build -o ../../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	bin/golangci-lint run ./...
	for module in $(TEST_MODULES); do (cd $$module && $(CURDIR)/bin/golangci-lint run ./...); done

CONTAINER_TOOL ?= $(firstword $(notdir $(shell command -v docker podman)))

.PHONY: image
image: ## Container images of controller and agent, with docker or podman; IMAGE_PREFIX=registry/path VERSION=v1 name them
	@[ -n "$(CONTAINER_TOOL)" ] || { echo "make image needs docker or podman, and a registry that has golang:1.26.8-bookworm"; exit 1; }
	$(CONTAINER_TOOL) build --target controller --build-arg VERSION=$(VERSION) -t $(IMAGE_PREFIX)/causeway-controller:$(VERSION) .
	$(CONTAINER_TOOL) build --target agent --build-arg VERSION=$(VERSION) -t $(IMAGE_PREFIX)/causeway-agent:$(VERSION) .

.PHONY: deps
deps: bin/causeway-lab bin/vm ## Programs that the lab and the tests need (installed with apt as root on Debian, else named)
	bin/causeway-lab deps --tests
	bin/vm -prepare

.PHONY: assets
assets: ## The control plane's programs, built once from Go modules
	go run ./internal/lab/controlplane/build >/dev/null

.PHONY: clean
clean: ## Remove what was built here, and a lab that was left behind
	-[ ! -x bin/causeway-lab ] || bin/causeway-lab clean
	rm -rf bin build
