"""smnas: search whole object detectors for the Pareto front of latency against mAP."""

__version__ = "0.1.0"
