"""Time and memory beside peers of the same shape: `python -m benchmarks.speed`, docs/performance.md."""
