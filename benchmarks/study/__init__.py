"""The fusion study: `python -m benchmarks.fusion_study`, docs/study.md."""
