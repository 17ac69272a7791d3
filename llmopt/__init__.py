"""llmopt: quantize, serve, measure and recommend, with the evidence behind every number."""

__version__ = "0.1.0"
