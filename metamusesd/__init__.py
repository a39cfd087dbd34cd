"""metamusesd: a bare-metal inference daemon. See docs/architecture.md for the life of a job."""

__version__ = "0.1.0"
