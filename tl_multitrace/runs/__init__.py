"""A whole run: what it is asked, what it does, and the folder that it writes."""
