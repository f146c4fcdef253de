"""A real server of the S3 protocol on this machine, with one bucket."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

from permllm.meeting import knock

with_s3 = pytest.mark.skipif(
    None in (find_spec("s3fs"), find_spec("moto")), reason="s3fs or moto[server] is not installed"
)

BUCKET = "bucket"

STARTING_SECONDS = 60.0


@contextmanager
def s3_server(host: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """Start it for the block; gives the variables by which s3fs finds it."""
    with socket.create_server((host, 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        knock(host, str(port), STARTING_SECONDS)
        url = f"http://{host}:{port}"
        urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT")).close()
        yield variables(url)
    finally:
        server.terminate()
        server.wait(timeout=60)


def variables(url: str) -> dict[str, str]:
    """Those by which s3fs finds a server."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
