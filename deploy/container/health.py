"""Exit with 0 when /readyz says so, asked through nginx if this container runs it, otherwise of gunicorn."""

import http.client
import os
import sys
from pathlib import Path

nginx = Path(os.environ.get("NGINX_RUN_FOLDER", "/tmp/nginx"), "nginx.pid").exists()  # noqa: S108 - the container's own
port = os.environ.get("PORT" if nginx else "CIFAR_PORT", "7860" if nginx else "7861")
connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=4)
connection.request("GET", "/readyz", headers={"Host": "localhost"})
sys.exit(connection.getresponse().status != http.client.OK)
