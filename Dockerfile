# Three images: `rolecall` (agents, HTTP, Telegram and the commands), `valkey` (the server with its settings) and `model`
# (the small local model with its weights). docker-compose.yml builds and runs them; see docs/deploy.md.

ARG PYTHON=python:3.11-slim
ARG VALKEY=valkey/valkey:9

# ── dependencies, at the versions and hashes of the lock files ───────────────────────────────────
FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv tools && python -m venv --without-pip /opt/rolecall
COPY deploy/lock/build.txt deploy/lock/rolecall.txt ./
RUN tools/bin/pip install -q --require-hashes --only-binary :all: -r build.txt \
 && tools/bin/pip --python /opt/rolecall/bin/python install -q --require-hashes --only-binary :all: -r rolecall.txt
COPY pyproject.toml README.md LICENSE .env.example ./
# `rolecall new` builds its template from these.
COPY agents agents
COPY src src
RUN tools/bin/pip wheel -q --no-deps --no-index --no-build-isolation -w dist . \
 && tools/bin/pip --python /opt/rolecall/bin/python install -q --no-deps --no-index dist/*.whl

# ── the small local model: its engine and weights ────────────────────────────────────────────────
FROM build AS build-model
COPY deploy/lock/model.txt ./
RUN python -m venv --without-pip /opt/model \
 && tools/bin/pip --python /opt/model/bin/python install -q --require-hashes --only-binary :all: -r model.txt \
 && PYTHONPATH=$(echo /build/tools/lib/python3*/site-packages) /opt/rolecall/bin/python -c "import asyncio, pathlib; \
from rolecall.serving.weights import CATALOGUE, ensure_weights; \
directory = pathlib.Path('/opt/model/weights'); \
asyncio.run(ensure_weights('smollm2', directory)).rename(directory / 'smollm2.gguf'); \
directory.chmod(0o755); (directory / 'smollm2.gguf').chmod(0o644)"

FROM ${PYTHON} AS model
LABEL org.opencontainers.image.title="Rolecall's small local model" \
      org.opencontainers.image.description="SmolLM2-135M-Instruct behind an OpenAI-compatible address" \
      org.opencontainers.image.licenses="MIT AND Apache-2.0"
ENV PATH=/opt/model/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends libgomp1 >/dev/null && rm -rf /var/lib/apt/lists/*
COPY --from=build-model /opt/model /opt/model
COPY deploy/model/serve.py /opt/model/serve.py
RUN mkdir -p -m 1777 /run/secrets
USER 1000:1000
EXPOSE 10009
CMD ["python", "/opt/model/serve.py"]

# ── the server ───────────────────────────────────────────────────────────────────────────────────
FROM ${VALKEY} AS valkey
LABEL org.opencontainers.image.title="Rolecall's server" \
      org.opencontainers.image.description="Valkey with the settings and the health check of a Rolecall deployment"
USER root
COPY deploy/valkey/valkey.conf deploy/valkey/healthy /etc/rolecall/
# Not /data: changes a Dockerfile makes in a declared volume are lost. World-writable, because the user ID is set later.
RUN mkdir -p -m 1777 /var/lib/rolecall /run/secrets && chmod 755 /etc/rolecall/healthy
USER 1000:1000
ENTRYPOINT []
CMD ["valkey-server", "/etc/rolecall/valkey.conf"]

# ── agents, HTTP, Telegram, commands ─────────────────────────────────────────────────────────────
FROM ${PYTHON} AS rolecall
ARG VERSION=dev
LABEL org.opencontainers.image.title="Rolecall" \
      org.opencontainers.image.description="A message bus for multi-agent assistants, and the assistant that runs on it" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}"
ENV PATH=/opt/rolecall/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ROLECALL_APP=/app HOME=/tmp
COPY --from=build /opt/rolecall /opt/rolecall
COPY deploy/compose /opt/rolecall/deploy/compose
COPY deploy/valkey/users.acl.template /opt/rolecall/deploy/valkey/
COPY config.py /app/
COPY agents /app/agents
# Volumes inherit the mode of the directory they cover; it is world-writable, because the user ID is set later.
RUN test -s /etc/ssl/certs/ca-certificates.crt \
 && chmod 755 /opt/rolecall/deploy/compose/run \
 && mkdir -p -m 1777 /app/log /app/.rolecall /run/secrets \
      /run/made/valkey /run/made/worker /run/made/front /run/made/telegram /run/made/operator /run/made/model
WORKDIR /app
USER 1000:1000
EXPOSE 10007
ENTRYPOINT ["/opt/rolecall/deploy/compose/run"]
CMD ["rolecall", "worker"]
