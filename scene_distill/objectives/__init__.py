"""One distillation idea per file; each names its teacher, its student, and what receives gradient."""
