"""What is made of a run: tables, statistics, figures, the HTML page.

It reads run folders and runs nothing; imported by the command line and the browser app.
"""
