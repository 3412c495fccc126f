"""Borders to other programs: nerfstudio's methods and dataparsers."""
