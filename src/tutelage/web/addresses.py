"""What answers and embeds at other addresses, as service.yaml names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from pydantic import Field, model_validator

from tutelage.core import refs
from tutelage.core.artifact import Root
from tutelage.core.config import Config, secret
from tutelage.guard.pool import remote
from tutelage.guard.remote import Patience, RemoteUpstream
from tutelage.guard.upstream import Upstream


class UpstreamSettings(Config):
    """An OpenAI-compatible address that answers instead of the released model."""

    url: str
    model: str = "default"
    key: str = ""
    """`env:NAME` or `file:PATH`."""


class EncoderSettings(Config):
    """What embeds texts for `/v1/embeddings`: an OpenAI-compatible address, or a folder."""

    url: str = ""
    model: str = "default"
    key: str = ""
    """`env:NAME` or `file:PATH`."""
    local: str = ""
    """A folder of an encoder's files (from service.yaml on, where it is relative), `hf:org/name`, or the name of an
    installed distribution that carries one."""

    @model_validator(mode="after")
    def _one(self) -> EncoderSettings:
        if bool(self.url) == bool(self.local):
            raise ValueError("an encoder has either a url or is local")
        return self


class PatienceSettings(Config):
    """Seconds that upstreams may take."""

    connect_s: float = Field(5.0, gt=0)
    """To take a connection."""
    first_s: float = Field(60.0, gt=0)
    """To the first piece of an answer."""
    idle_s: float = Field(60.0, gt=0)
    """Between two pieces."""
    total_s: float = Field(600.0, gt=0)
    """For a whole answer."""


class LocalEncoder(Protocol):
    """An encoder in this process."""

    def embed(self, texts: Sequence[str]) -> Any:
        """[texts, width] numbers."""
        ...


Encoder = LocalEncoder | RemoteUpstream


class Addresses:
    """Opens what other addresses are for, with the keys that the environment or files hold."""

    def __init__(self, root: Root, environment: Mapping[str, str]) -> None:
        self._root, self._environment = root, environment
        self._encoders: list[RemoteUpstream] = []

    def upstream(
        self,
        source: str,
        given: UpstreamSettings | None,
        fallbacks: Sequence[UpstreamSettings],
        patience: PatienceSettings,
    ) -> Upstream:
        """The address `url#model` that answers, with those that stand in for it."""
        own = self._key(given.key if given else "", "upstream.key")
        addresses = [(source, own or self._environment.get("OPENAI_API_KEY"))]
        for index, each in enumerate(fallbacks):
            addresses.append((f"{each.url}#{each.model}", self._key(each.key, f"fallbacks.{index}.key")))
        waits = Patience(patience.connect_s, patience.first_s, patience.idle_s, patience.total_s)
        return remote(addresses, waits)

    def encoder(self, given: EncoderSettings) -> Encoder:
        """What embeds texts."""
        if given.local:
            folder = self._root.path / given.local
            name = str(folder) if folder.is_dir() else given.local
            return cast(LocalEncoder, refs.open(f"encoder:{name}", self._root))
        found = RemoteUpstream(given.url, given.model, self._key(given.key, "encoder.key"))
        self._encoders.append(found)
        return found

    def _key(self, named: str, where: str) -> str | None:
        """The key that an address names; what the environment holds for one of them is shown to no other."""
        if not named:
            return None
        return secret(named, self._environment, where, self._root.path)

    async def close(self) -> None:
        """Close the encoders' connections."""
        for each in self._encoders:
            await each.close()
