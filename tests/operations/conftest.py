"""Fixtures of the tests that operate a server: certificates, and what the integration tests use."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import leaves_nothing as leaves_nothing
from tests.integration.conftest import serve as serve
from tests.integration.conftest import serve_files as serve_files


@dataclass
class Certificate:
    """Files in PEM form of a self-signed certificate for 127.0.0.1 and localhost."""

    cert: Path
    key: Path

    @property
    def settings(self) -> dict[str, str]:
        return {"tls_cert": str(self.cert), "tls_key": str(self.key)}

    def context(self) -> ssl.SSLContext:
        """What a client that trusts it connects with."""
        return ssl.create_default_context(cafile=self.cert)


def make_certificate(folder: Path, name: str, *options: str) -> Certificate:
    made = Certificate(folder / f"{name}.pem", folder / f"{name}-key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2"]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(made.key), "-out", str(made.cert), *(options or ["-nodes"])]
    subprocess.run(command, check=True, capture_output=True)
    return made


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificate, Certificate]:
    folder = tmp_path_factory.mktemp("certificates")
    return make_certificate(folder, "first"), make_certificate(folder, "second")


@pytest.fixture
def certificate(certificates: tuple[Certificate, Certificate]) -> Certificate:
    return certificates[0]
