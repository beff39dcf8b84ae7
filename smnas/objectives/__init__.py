"""What a search optimises: directions (`vector`, without torch), latency and cost of a detector."""
