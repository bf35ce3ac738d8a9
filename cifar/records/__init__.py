"""Records: predictions, feedback and shadow comparisons in a database. This package does not depend on the server.

`tables.py` defines what is stored. `recorder.py` writes it, through `journal.py`, and `reader.py` reads it.
"""
