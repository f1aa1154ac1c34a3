"""What reproduce.py is made of: which runs a table needs, one run, where runs go, and what is shown of them."""
