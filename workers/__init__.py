"""The GPU side of LoadGrid: what runs on the accelerator hosts; it never imports the orchestrator or LoadGen."""
