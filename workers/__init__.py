"""The GPU side of LoadGrid, on the accelerator hosts; it never imports the orchestrator or LoadGen."""
