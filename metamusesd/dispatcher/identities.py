"""Stages 3, 10 · dispatcher · which models' answers may serve a tier: their identities, own and other hosts'.

An identity is a digest of everything of a model that shapes its answers (cache/partition.py). It is known from a
worker's HELLO on, and stays known while the worker is away: its answers are as good as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from metamusesd.cache.partition import identity
from metamusesd.config import Config
from metamusesd.dispatcher.hosts import Hosts
from metamusesd.wire import Hello


class Identities:
    """`defaults`: by tier, the parameters that its model takes where a request names none."""

    def __init__(self, hosts: Hosts, defaults: Mapping[str, Mapping[str, float]]) -> None:
        self._hosts, self._defaults = hosts, defaults
        self._own: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Identities {self._own}>"

    def greeted(self, hello: Hello) -> None:
        """A worker of this host is there, with this model."""
        self._own[hello.tier] = self.of_worker(hello)

    def of_worker(self, hello: Hello) -> str:
        """Whose answers its answers are."""
        defaults = self._defaults.get(hello.tier, {})
        return identity(hello.digest, hello.template_digest, hello.engine, **defaults)

    def own(self, tier: str) -> str:
        """Of this host; empty: no worker of this tier has greeted yet."""
        return self._own.get(tier, "")

    def of_tiers(self, tiers: Iterable[str]) -> list[str]:
        """All that may answer a job with these tiers, the best tier's first."""
        found: dict[str, None] = {}
        for tier in tiers:
            for each in (self.own(tier), *(service.identity for service in self._hosts.services(tier))):
                if each:
                    found[each] = None
        return list(found)


def defaults_of(config: Config) -> dict[str, dict[str, float]]:
    """By tier: what a request without parameters gets."""
    models = {name: config.models[tier.model] for name, tier in config.enabled_tiers().items()}
    return {
        tier: {"temperature": model.temperature, "top_p": model.top_p, "max_tokens": model.max_tokens}
        for tier, model in models.items()
    }
