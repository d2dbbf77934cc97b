"""From a batch to what the network takes, and what is refused on the way."""
