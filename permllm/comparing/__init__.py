"""What runs measured, compared: repeats, gaps, the sentence on them and the table."""
