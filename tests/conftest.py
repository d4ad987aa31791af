"""Shared fixtures. Pytest puts this folder on the path: `from tiny import make_motion_policy`."""

import socket
from collections.abc import Iterator

import pytest

from lerobot_motion.flow.estimator import load_flow_estimator
from lerobot_motion.models.latent_codec import load_latent_codec


@pytest.fixture
def fresh_caches() -> Iterator[None]:
    """Loaded estimators and codecs are not shared between tests."""
    load_flow_estimator.cache_clear()
    load_latent_codec.cache_clear()
    yield
    load_flow_estimator.cache_clear()
    load_latent_codec.cache_clear()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but this machine fails the test."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: object) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6}:
            host = address[0] if isinstance(address, tuple) else address
            if host not in {"127.0.0.1", "::1", "localhost"}:
                pytest.fail(f"the test connected to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)
