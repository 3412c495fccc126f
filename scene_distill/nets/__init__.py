"""Building blocks of students and teachers."""
