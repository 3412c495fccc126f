"""The frame of text to 3D: any representation, any score-distillation objective, any prior, prompts as units."""
