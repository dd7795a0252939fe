"""One run, or several side by side, as a page of figures and words: read from records, nothing measured."""
