"""A producer's side of the queue: `Client` for asyncio, `SyncClient` for everybody else."""

from metamusesd.client.client import Client
from metamusesd.client.sync import SyncClient

__all__ = ["Client", "SyncClient"]
