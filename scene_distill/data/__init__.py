"""Files to scenes: readers, structure from motion, images under a memory budget, procedural worlds."""
