"""Power at the wall: runs around the MLCommons power client, its readings, and the figures of each round."""
