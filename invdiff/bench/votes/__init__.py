"""Blind votes on the pictures of a run: `pairs` says what a voter sees, `store` keeps the votes, `preference` what they show.

The browser app asks for them, the report prints them; nothing here knows either.
"""
