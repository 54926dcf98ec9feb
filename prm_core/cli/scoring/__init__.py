"""Commands that put a trained reward model to work: score, evaluate, judge, attack, serve; a module each."""
