"""The browser app, `invdiff app`: paint a hole and watch it being filled, move the figures of the course, vote blindly.

A leaf of the library, behind the extra `app` (Gradio). `recipe` says what is to be done and how to repeat it, `jobs` is the
queue, `restoring` does it, `limits` refuses what is no photo; `server` puts the pages together.
"""
