"""One file a question; each prints ratios to peers that were measured in the same run."""
