"""Studies: questions with a page of their own, each made by one command."""
