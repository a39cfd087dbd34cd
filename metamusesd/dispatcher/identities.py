"""Stages 3, 10 · dispatcher · which models' answers may serve a tier: their identities, own and other hosts'.

An identity is a digest of everything of a model that shapes its answers (cache/partition.py). It is known from a
worker's HELLO on, and stays known while all workers of a tier are away: their answers are as good as before. While
workers of one tier have different models, each has its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from metamusesd.cache.partition import identity
from metamusesd.config import Config
from metamusesd.dispatcher.hosts import Hosts
from metamusesd.wire import DATED, Hello


class Identities:
    """`defaults`: by model, the parameters that it takes where a request names none."""

    def __init__(self, hosts: Hosts, defaults: Mapping[str, Mapping[str, float]]) -> None:
        self._hosts, self._defaults = hosts, defaults
        self._own: dict[str, list[Hello]] = {}

    def __repr__(self) -> str:
        return f"<Identities {self._own}>"

    def changed(self, tier: str, hellos: Sequence[Hello]) -> None:
        """The workers of this host that serve a tier now. Models of which none is there now will come back."""
        named = {hello.model for hello in hellos}
        away = [hello for hello in self._own.get(tier, ()) if hello.model not in named]
        self._own[tier] = [*hellos, *away]

    def of_worker(self, hello: Hello) -> str:
        """Whose answers its answers are. Where the model is told the date, they are today's."""
        defaults = self._defaults.get(hello.model, {})
        today = time.strftime("%Y-%m-%d", time.gmtime()) if hello.template_digest.startswith(DATED) else ""
        return identity(hello.digest, hello.template_digest + today, hello.engine, **defaults)

    def own(self, tier: str) -> list[str]:
        """Of this host; empty: no worker of this tier has greeted yet."""
        return list(dict.fromkeys(map(self.of_worker, self._own.get(tier, ()))))

    def of_tiers(self, tiers: Iterable[str]) -> list[str]:
        """All that may answer a job with these tiers, the best tier's first."""
        return [each for tier in tiers for each in self._of_tier(tier)]

    def all_of(self, tiers: Iterable[str]) -> list[str]:
        """The same, with a name for a tier whose models nobody knows yet: two jobs that may meet different models there
        are not equal."""
        return [each for tier in tiers for each in self._of_tier(tier) or [f"unknown:{tier}"]]

    def _of_tier(self, tier: str) -> list[str]:
        others = (service.identity for service in self._hosts.services(tier))
        return list(dict.fromkeys(filter(None, (*self.own(tier), *others))))


def defaults_of(config: Config) -> dict[str, dict[str, float]]:
    """By model: what a request without parameters gets."""
    return {
        name: {"temperature": model.temperature, "top_p": model.top_p, "max_tokens": model.max_tokens}
        for name, model in config.models.items()
    }
