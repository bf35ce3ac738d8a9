"""What was answered, and what people said of it: tables, a journal that survives a kill, and what moves it into the database.

The room knows nothing of serving. `tables.py` says what is stored, `journal.py` and `recorder.py` how it gets there, `reader.py`
gives it back.
"""
