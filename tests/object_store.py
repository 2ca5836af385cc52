"""A local server that speaks S3, reached as a person would reach Amazon's: by the AWS environment variables."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ports import free_port
from pyarrow import fs


class Bucket(str):
    """The URI of a bucket, and the process that serves it."""

    server: subprocess.Popen[bytes]


@contextmanager
def object_store(log: Path | None = None) -> Iterator[Bucket]:
    """The URI of an empty bucket, for as long as the server runs; each request that it answers is a line of `log`."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log.open("wb") if log else subprocess.DEVNULL)
    before = dict(os.environ)
    os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "eu-central-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    try:
        _wait_for(address, server)
        fs.S3FileSystem(endpoint_override=address, allow_bucket_creation=True).create_dir("bucket")
        bucket = Bucket("s3://bucket")
        bucket.server = server
        yield bucket
    finally:
        server.kill()
        server.wait()
        os.environ.clear()
        os.environ |= before


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while True:
        assert server.poll() is None and time.monotonic() < end, "the server did not start"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
