# One image with nginx in front of gunicorn. It runs as uid 1000 and writes only to /tmp and /app/var.
#
#   docker build -t cifar-space .                        the default target `serve`: LiteRT, without TensorFlow
#   docker build -t cifar-space:full --target full .     with TensorFlow: training, export, any SavedModel

# ---- the base of both targets ----
FROM python:3.11-slim AS runtime
# hadolint ignore=DL3008  # versions are not pinned: Debian keeps only the newest, with security fixes
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends nginx tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/* /etc/nginx/sites-enabled /var/www/html \
 && useradd --uid 1000 --create-home cifar \
 && install --directory --owner 1000 --group 1000 /app/var
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GRADIO_ANALYTICS_ENABLED=False \
    CIFAR_WORKERS=2 \
    CIFAR_MAX_UPLOADS_BYTES=268435456 \
    PORT=7860
WORKDIR /app
USER 1000:1000
EXPOSE 7860 7443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["python", "deploy/container/health.py"]
ENTRYPOINT ["tini", "--"]
CMD ["deploy/container/start"]
LABEL org.opencontainers.image.title="CIFAR Space" \
      org.opencontainers.image.description="A Keras image classifier with a web page and an API" \
      org.opencontainers.image.licenses="MIT AND GPL-2.0-or-later AND LGPL-3.0-only AND MPL-2.0" \
      org.opencontainers.image.version="0.1.0"

# ---- Python packages, pinned by version and hash; pip itself stays in these two stages ----
FROM python:3.11-slim AS serve-packages
WORKDIR /opt/venv/lib/python3.11/site-packages
COPY requirements-serve.txt /build/
# Removed: Gradio's server-side renderer, ffmpeg, the sources of its front end, and the tests of libraries.
RUN python -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check --require-hashes -r /build/requirements-serve.txt \
 && rm -rf gradio/templates/node gradio/_frontend_code gradio/test_data gradio/media_assets \
           gradio/templates/frontend/static/ffmpeg pandas/tests \
 && find numpy -type d -name tests -prune -exec rm -rf {} +

FROM serve-packages AS full-packages
COPY requirements-train.txt requirements-keras2.txt /build/
RUN pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check --require-hashes -r /build/requirements-train.txt \
 && pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check --require-hashes --no-deps -r /build/requirements-keras2.txt

# ---- the targets ----
FROM runtime AS serve
COPY --from=serve-packages /opt/venv /opt/venv
COPY . .

FROM runtime AS full
COPY --from=full-packages /opt/venv /opt/venv
COPY . .

# The last stage is the default target. `serve` comes before `full`, because older builders build every stage before the
# target and would install TensorFlow.
FROM serve
