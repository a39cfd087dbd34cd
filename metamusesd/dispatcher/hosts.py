"""Stages 3, 6 · dispatcher · which hosts live, what they serve, and what can be routed to. Pure.

The own tiers always count, whether their workers are up or not; those of other hosts while they announce themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

from metamusesd.dispatcher.router import TierView
from metamusesd.queues.base import Host, Service
from metamusesd.tiers import TIERS


class Hosts:
    """The live hosts as one dispatcher last heard of them."""

    def __init__(self, owner: str, tiers: Sequence[TierView]) -> None:
        self._instance = owner.rpartition(":")[0]
        self._own_views = tuple(tiers)
        self.views: tuple[TierView, ...] = self._own_views  # for the router
        self.own: dict[str, Service] = {view.name: Service(view.model) for view in tiers}
        self._others: tuple[Host, ...] = ()

    def __repr__(self) -> str:
        return f"<Hosts others={len(self._others)} {' '.join(view.name for view in self.views)}>"

    def update(self, hosts: Sequence[Host]) -> None:
        """All hosts that live now. What this instance announced under an earlier nonce is no other host."""
        self._others = tuple(host for host in hosts if host.owner.rpartition(":")[0] != self._instance)
        theirs = [TierView(tier, service.model) for host in self._others for tier, service in host.tiers.items()]
        known = dict.fromkeys([*self._own_views, *theirs])
        self.views = tuple(sorted(known, key=lambda view: TIERS.index(view.name) if view.name in TIERS else len(TIERS)))

    def services(self, tier: str) -> list[Service]:
        """Whoever serves this tier."""
        own = [self.own[tier]] if tier in self.own else []
        return own + [host.tiers[tier] for host in self._others if tier in host.tiers]

    def served(self, tier: str) -> bool:
        """Another host has a worker for it."""
        return any(tier in host.tiers and host.tiers[tier].workers for host in self._others)

    def shared(self, tier: str) -> bool:
        """Another host announces this tier, whether it has a worker for it now or not."""
        return any(tier in host.tiers for host in self._others)
