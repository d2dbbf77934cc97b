"""Which LLaVAs the policy can be built around, what is read of them besides their weights, and the tiny one."""
