"""SAEs compared: the long runs, frontiers, the blind study, and data whose features are known."""
