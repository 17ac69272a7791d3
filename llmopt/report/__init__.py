"""A ranking or a run for people and for programs: terminal, Markdown, JSON."""
