"""Speed and size, measured side by side; each module is a script that writes its JSON into ``results/``."""
