"""The operators measured beside their peers: what ``mmer bench`` and ``benchmarks/`` run."""
