"""The LoadGen side of LoadGrid: intent, measurement, evidence."""
