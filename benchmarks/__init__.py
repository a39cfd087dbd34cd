"""Measurements of metamusesd beside what people would otherwise use. `python -m benchmarks NAME`; see README.md."""
