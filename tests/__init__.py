"""The tests of LoadGrid."""
