# The Space in one image: nginx in front of gunicorn, as uid 1000, with nothing written outside /tmp.
#
#   docker build -t cifar-space .                        LiteRT, no TensorFlow; what is built by default (target `serve`)
#   docker build -t cifar-space:full --target full .     TensorFlow too: training, export, any SavedModel

# ---- what both targets stand on ----
FROM python:3.11-slim AS runtime
# hadolint ignore=DL3008  # Debian's security fixes are wanted, and Debian keeps no old versions to pin
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
    PORT=7860
WORKDIR /app
USER 1000:1000
EXPOSE 7860 7443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["python", "deploy/container/health.py"]
ENTRYPOINT ["tini", "--"]
CMD ["deploy/container/start"]
LABEL org.opencontainers.image.title="CIFAR Space" \
      org.opencontainers.image.description="A Keras image classifier, served for people and programs" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="0.1.0"

# ---- Python packages, pinned; pip and what it needs stay behind in these two stages ----
FROM python:3.11-slim AS serve-packages
WORKDIR /opt/venv/lib/python3.11/site-packages
COPY requirements-serve.txt /build/
# Left out: Gradio's server-side renderer, its video cutter, the sources of its page, and the libraries' own tests.
RUN python -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check -r /build/requirements-serve.txt \
 && rm -rf gradio/templates/node gradio/_frontend_code gradio/test_data gradio/media_assets \
           gradio/templates/frontend/static/ffmpeg pandas/tests \
 && find numpy -type d -name tests -prune -exec rm -rf {} +

FROM serve-packages AS full-packages
COPY requirements.txt /build/
RUN pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check -r /build/requirements.txt

# ---- the targets ----
FROM runtime AS serve
COPY --from=serve-packages /opt/venv /opt/venv
COPY . .

FROM runtime AS full
COPY --from=full-packages /opt/venv /opt/venv
COPY . .

# The default is the last stage; `serve` stands before `full` so that older builders, which build all that comes before a
# target, never fetch TensorFlow for it.
FROM serve
