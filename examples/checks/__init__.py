"""Business checks to start from (docs/phases/test.md): copy what you need, and name the folder."""
