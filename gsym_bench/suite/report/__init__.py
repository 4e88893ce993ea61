"""Reports: rows of results to tables, pictures and Markdown; no number is typed by hand."""
