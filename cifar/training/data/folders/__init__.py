"""Folders, archives and tables of pictures, as people have them: find the classes and parts, list and decode the pictures."""
