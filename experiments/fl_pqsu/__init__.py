"""FL-PQSU's statistical checks."""
