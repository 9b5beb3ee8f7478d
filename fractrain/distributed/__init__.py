"""One run on several processes: collectives, ranks, BatchNorm over all of them."""
