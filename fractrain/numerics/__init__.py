"""Number formats: grids, granularity, rounding, and the plain path that quantizes a tensor."""
