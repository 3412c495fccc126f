"""Parameters and nothing else: splats, anchors."""
