"""What the folder of a run is: its plan, its files and what they say."""
