"""Every file that is read or written, strictly and whole: LLaVAs and policies, the Hub, what a crash left."""
