"""LoadGrid's own gate over submission trees: stricter than the official checkers, and a run of those."""
