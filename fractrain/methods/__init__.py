"""What a method is, how methods are found, and FracTrain's own: PFQ, DFQ, FracTrain."""
