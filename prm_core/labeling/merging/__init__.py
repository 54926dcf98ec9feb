"""From one label per step and strategy to one merged label per step: merges by name, and the model of first errors."""
