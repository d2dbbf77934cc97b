"""How a policy is trained: rates and schedule, adapters, number types, FSDP's units."""
