"""What is made of a run: tables, statistics, figures, the HTML page."""
