"""How small edits of a chain fool reward models: the edits, who knows what they did, the figures and their chart."""
