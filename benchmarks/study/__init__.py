"""The fusion study: `python -m benchmarks.study`, docs/study.md."""
