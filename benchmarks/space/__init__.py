"""Does seeing in three dimensions help? `python -m benchmarks.space`, docs/space.md."""
