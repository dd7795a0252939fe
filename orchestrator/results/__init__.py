"""The table of results trees: what they hold (trees, cells, gather, rows), how it is shown (table, page)."""
