"""Submissions: where the parts of a tree lie (layout, tree), how one is made from records, what is in one."""
