"""FL-PQSU: prune once on the server, send 8-bit codes both ways, upload only what the loss says is worth it."""
