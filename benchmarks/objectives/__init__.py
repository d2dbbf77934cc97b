"""Flow, two steps and drift, where one answer is right and where two are but not their mean: docs/objectives.md."""
