# Shoal's chores, one line each; `make` lists them. build, test and demo need Go
# only; the rest says what it needs.

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.1
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.8.0

FUZZTIME ?= 1m
COUNT    ?= 1
RACE     ?= ./...

# Static binaries, the same for the same commit wherever they are built.
BUILD = CGO_ENABLED=0 go build -trimpath -o bin/

.PHONY: help build test race fuzz bench lint demo e2e soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## /{printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/shoal
	$(BUILD) ./cmd/shoal

test: ## run all unit and integration tests
	go test ./...

race: ## run them under the race detector, with smaller fleets (needs a C compiler); RACE=… for some
	CGO_ENABLED=1 go test -race -short $(RACE)

fuzz: ## run each fuzz target for FUZZTIME (1m)
	@for pkg in $$(go list ./...); do for f in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz'); do echo "$$pkg $$f" && go test -run '^$$' -fuzz "^$$f\$$" -fuzzminimizetime 10x -fuzztime $(FUZZTIME) $$pkg || exit 1; done; done

bench: ## run the benchmarks COUNT times (1), for benchstat
	go test -run '^$$' -bench . -benchmem -count $(COUNT) ./...

lint: ## gofmt, go vet, staticcheck; govulncheck where its database can be reached
	@unformatted=$$(gofmt -l .) && test -z "$$unformatted" || { echo "gofmt -w $$unformatted"; exit 1; }
	go vet -tags e2e,soak ./...
	go run $(STATICCHECK) ./...
	@out=$$(go run $(GOVULNCHECK) ./... 2>&1) && echo "govulncheck: $$out" || { echo "$$out"; echo "$$out" | grep -q '^govulncheck: fetching vulnerabilities:' && echo "govulncheck: skipped, its database cannot be reached from here"; }

demo: build ## pull an image through a fleet on this machine
	$(BUILD) ./bench/registry/registryd ./bench/demo
	bin/demo -shoal bin/shoal -registryd bin/registryd

e2e: ## pull with real runtimes (Debian packages, .ci/clients and root; it says what is missing)
	go test -tags e2e -count=1 -timeout 15m -v ./bench/e2e

soak: ## pull more than fits through three nodes for SOAK (10m), and see that nothing grows
	go test -tags soak -count=1 -timeout 0 -v ./bench/soak

clean: ## remove what was built
	rm -rf bin
