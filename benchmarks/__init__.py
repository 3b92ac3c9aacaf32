"""One script per published number; each writes a CSV to benchmarks/results."""
