"""The LoadGen side of LoadGrid: intent, measurement, evidence."""

__version__ = "0.1.0"
