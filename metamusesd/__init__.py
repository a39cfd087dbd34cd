"""metamusesd: a bare-metal inference daemon. See docs/architecture.md for the life of a job."""

__version__ = "0.1.0"
REDIS_PROTOCOL = "3"  # the form of the keys; change it with any change that older scripts would trip over
